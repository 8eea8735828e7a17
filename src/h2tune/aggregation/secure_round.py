"""Secure aggregation as the server runs it: three exchanges beside a round's own, of which it understands nothing.

keys      every client makes fresh keys and says the public ones
shares    every client shares its two secrets out, encrypted to each other client; the server only passes them on
(round)   clients train and send their cores under masks
unmask    clients that are still there give the shares that take the masks off the sum

Who is gone before `shares` ends is not in the sum; who is gone later is taken out of it by the others' shares.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from h2tune.aggregation.secret_sharing import SecureError, check_public, context_of
from h2tune.protocol.codec import Message, Payload, ProtocolError

Ask = Callable[[str, dict[str, Payload], int], Iterator[tuple[str, Message, dict[str, int]]]]
KEY_HEX, SHARE_HEX, SEALED_HEX = 64, 32, 96  # characters of a key, a share, two encrypted shares with their seal


class SecureRound:
    """One round's exchanges.

    Args:
        ask: the server's way to ask clients: kind, payloads, round.
        refuse: the server's way to exclude a client: name, reason, round.
    """

    def __init__(
        self, ask: Ask, refuse: Callable[[str, str, int], None], run: str, number: int, threshold: int
    ) -> None:
        self.ask, self.refuse, self.number, self.threshold = ask, refuse, number, threshold
        self.context = context_of(run, number)
        self.publics: dict[str, tuple[str, str]] = {}
        self.members: list[str] = []
        self.bytes: dict[str, dict[str, int]] = {}  # by client, as in a round's record

    def agree(self, requests: dict[str, Payload]) -> dict[str, Payload]:
        """Keys and shares; the requests of those that took part, with the others' shares for each."""
        self.publics = self._exchange("keys", dict.fromkeys(requests, Payload()), _keys)
        if len(self.publics) < self.threshold:
            return {}

        def shares(name: str, found: dict[str, Any]) -> dict[str, str]:
            return {other: _hex(found["shares"][other], SEALED_HEX) for other in self.publics.keys() - {name}}

        told = Payload(meta={"publics": {n: list(keys) for n, keys in self.publics.items()}})
        sealed = self._exchange("shares", dict.fromkeys(self.publics, told), shares)
        self.members = sorted(sealed)
        if len(self.members) < self.threshold:
            return {}
        for name in self.members:
            requests[name].meta["sealed"] = {n: sealed[n][name] for n in self.members if n != name}
        return {name: requests[name] for name in self.members}

    def reveal(self, answered: list[str]) -> dict[str, dict[str, str]]:
        """What takes the masks off the sum of those that answered; by client that helped."""

        def shares(name: str, found: dict[str, Any]) -> dict[str, str]:
            return {n: _hex(found["shares"][n], SHARE_HEX) for n in self.members}

        return self._exchange("unmask", dict.fromkeys(answered, Payload(meta={"answered": answered})), shares)

    def _exchange(self, kind: str, payloads: dict[str, Payload], read: Callable[[str, dict[str, Any]], Any]
                  ) -> dict[str, Any]:  # fmt: skip
        """Ask, count the bytes, and read each answer; who sends what cannot be read is excluded."""
        taken = {}
        for name, message, traffic in self.ask(kind, payloads, self.number):
            for way, count in traffic.items():
                self.bytes.setdefault(name, {}).setdefault(way, 0)
                self.bytes[name][way] += count
            try:
                taken[name] = read(name, message.payload.meta)
            except (KeyError, TypeError, ProtocolError, SecureError) as error:
                self.refuse(name, f"its part in {kind!r} cannot be read: {error!r}", self.number)
        return taken


def _keys(name: str, found: dict[str, Any]) -> tuple[str, str]:
    """Public keys with which others can agree; one that is none would make every honest client give up."""
    keys = _hex(found["mask"], KEY_HEX), _hex(found["channel"], KEY_HEX)
    for key in keys:
        check_public(bytes.fromhex(key))
    return keys


def _hex(value: Any, length: int) -> str:
    if not isinstance(value, str) or not re.fullmatch(rf"[0-9a-f]{{{length}}}", value):
        raise ProtocolError("it is not hexadecimal of the right length")
    return value
