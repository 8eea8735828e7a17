"""Secure aggregation as the server runs it: three exchanges beside a round's own, of which it understands nothing.

keys      every client makes fresh keys and says the public ones
shares    every client shares its two secrets out, encrypted to each other client; the server only passes them on
(train)   clients train and send their cores under masks
unmask    clients that are still there give the shares that take the masks off the sum

A client that is gone before `shares` ends is not in the sum; one that goes later is taken out of it by the others' shares.
A round of which a sum has been asked for is never held again: the difference of two sums over nearly the same clients
would be a core.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Any, Protocol

from h2tune.aggregation.secret_sharing import SEALED, SEED, Publics, SecureError, Shares, check_public, context_of
from h2tune.errors import ProtocolError
from h2tune.protocol.codec import Payload
from h2tune.protocol.exchange import Ask, QuorumMissed, Reply, RoundInterrupted, RoundSpoiled, payload_of

KEY_HEX, SHARE_HEX = 64, 2 * SEED  # characters of a key, and of a share or a commitment
DEALT_HEX = 2 * (SEALED + 2 * SEED)  # two encrypted shares with their seal, and a commitment to each
MASKED = "train"  # the action whose answers are masked


class Sums(Protocol):
    """What takes masked updates in, and gives their sum."""

    def expect(self, publics: dict[str, Publics], dealt: dict[str, Shares], context: bytes) -> None:
        """Updates of the clients that have dealt shares will follow."""

    def check_company(self, names: Collection[str]) -> None:
        """Raise ValueError if a sum over these clients would give single values away."""

    def reveal(self, revealed: dict[str, Shares]) -> None:
        """Take the masks off. Raises ValueError if that cannot be done."""

    def liars(self) -> dict[str, str]:
        """Clients that have broken the protocol in `reveal`, with what they did."""


class SecureAsk:
    """Wraps a round's ``ask``: of what clients send of `MASKED` only the sum can be read.

    Args:
        threshold: clients that must help to reveal a sum.
    """

    def __init__(self, ask: Ask, sums: Sums, threshold: int) -> None:
        self.ask, self.sums, self.threshold = ask, sums, threshold
        self.run, self.round = ask.run, ask.round
        self.exclude, self.takes_part, self.excluded = ask.exclude, ask.takes_part, ask.excluded
        self.hold_once = ask.hold_once

    def __call__(
        self,
        kind: str,
        payloads: dict[str, Payload],
        read: Callable[[Reply], Any] = payload_of,
        *,
        again: bool = True,
    ) -> dict[str, Any]:
        if kind != MASKED:
            return self.ask(kind, payloads, read, again=again)
        publics, dealt = self._agree(list(payloads))
        self.sums.expect(publics, dealt, context_of(self.run, self.round))
        members = sorted(dealt)
        self._check_company(members, payloads)
        # Nobody is asked again: a client that restarts has lost its secrets, and takes part in the next round.
        requests = {n: _with_shares(payloads[n], {m: dealt[m][n] for m in members if m != n}) for n in members}
        found = self.ask(kind, requests, read, again=False)
        self._enough(len(found), "are left")
        self._check_company(found, payloads)
        self.hold_once()
        answered = Payload(meta={"answered": list(found)})
        revealed = self.ask("unmask", dict.fromkeys(found, answered), _reader(members, SHARE_HEX), again=False)
        try:
            self.sums.reveal(revealed)
        except SecureError as error:
            raise QuorumMissed(str(error)) from None
        except ValueError as error:
            raise RoundSpoiled(str(error)) from None
        finally:
            for name, reason in self.sums.liars().items():
                self.exclude(name, reason)
        return found

    def _check_company(self, names: Collection[str], selected: Collection[str]) -> None:
        """Begin the round again where others than expected are left: then it is without the entries that lack company."""
        try:
            self.sums.check_company(names)
        except ValueError as error:
            raise RoundInterrupted(str(error), without=set(selected) - set(names)) from None

    def _agree(self, names: list[str]) -> tuple[dict[str, Publics], dict[str, Shares]]:
        """Public keys, and what each client deals to each other."""
        publics = self.ask("keys", dict.fromkeys(names, Payload()), _keys, again=False)
        self._enough(len(publics), "made keys")
        told = Payload(meta={"publics": {name: list(keys) for name, keys in publics.items()}})
        dealt = self.ask(
            "shares", dict.fromkeys(publics, told), _reader(list(publics), DEALT_HEX, own=False), again=False
        )
        self._enough(len(dealt), "shared their secrets out")
        return publics, dealt

    def _enough(self, count: int, did: str) -> None:
        if count < self.threshold:
            raise QuorumMissed(f"{count} clients {did}; it takes {self.threshold} to reveal a sum")


def _with_shares(payload: Payload, sealed: dict[str, str]) -> Payload:
    return Payload(payload.tensors, payload.meta | {"sealed": sealed}, payload.texts)


def _keys(reply: Reply) -> Publics:
    """Public keys with which others can agree; an invalid one would make every honest client give up."""
    meta = reply.payload.meta
    keys = _hex(meta.get("mask"), KEY_HEX), _hex(meta.get("channel"), KEY_HEX)
    try:
        for key in keys:
            check_public(bytes.fromhex(key))
    except SecureError as error:
        raise ProtocolError(str(error)) from None
    return *keys, _hex(meta.get("own"), SHARE_HEX)


def _reader(names: list[str], length: int, own: bool = True) -> Callable[[Reply], dict[str, str]]:
    """Reads one share for each client, or for each other one."""

    def read(reply: Reply) -> dict[str, str]:
        shares = reply.payload.said("shares", dict[str, str])
        wanted = [name for name in names if own or name != reply.client]
        if missing := [name for name in wanted if name not in shares]:
            raise ProtocolError(f"its shares lack {', '.join(missing)}")
        return {name: _hex(shares[name], length) for name in wanted}

    return read


def _hex(value: Any, length: int) -> str:
    if not isinstance(value, str) or not re.fullmatch(rf"[0-9a-f]{{{length}}}", value):
        raise ProtocolError("its keys or shares are not as this version of h2tune writes them")
    return value
