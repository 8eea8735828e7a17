"""Secure aggregation: the server learns the sum of the clients' cores, and no single one.

Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving Machine Learning", figure 4, for a server that
keeps to the protocol and looks at what it gets. Client i sends, in whole numbers modulo 2^64,

    y_i = x_i + PRG(b_i) + sum_{j > i} PRG(s_ij) - sum_{j < i} PRG(s_ij)

x_i is w_i S_i in steps of 2^-32; s_ij is agreed on by i and j (X25519), b_i is i's own. The pairs' masks cancel in the sum.
Every client's b_i and key are shared out among all (Shamir, any ``threshold`` of them suffice): of who answered b_i is
recovered, of who dropped out the key, never both of one client. All secrets are fresh in every round.

Who deals shares commits to b_i and to every share. So shares that do not fit name who lied: the helper, where a share is
another than was dealt; the dealer, where shares that fit give another secret than promised.

Primitives are the libraries' (cryptography, PyCryptodome); this file only arranges them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from h2tune.errors import ClientError

if TYPE_CHECKING:  # optional: imported where it is used
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

STEP_BITS = 32  # x_i counts steps of 2^-32: n w |S| must stay below 2^31
INSTALL = "needs the libraries of h2tune[secure]: pip install 'h2tune[secure]'"
SEED = 16  # bytes of a secret that is shared out, and of a commitment
SEALED = 3 * SEED  # bytes of two encrypted shares with their seal
Shares = dict[str, str]  # for each client, hexadecimal
Publics = tuple[str, str, str]
"""Of one client: keys for masks and for the channel to others, and the commitment to its own secret b_i, hexadecimal."""


class SecureError(ClientError, ValueError):
    """Somebody asks for what would give a client away, or sends what cannot be."""


def context_of(run: str, number: int) -> bytes:
    """What binds secrets to one round of one run."""
    return f"{run} {number}".encode()


def is_available() -> bool:
    return find_spec("cryptography") is not None and find_spec("Crypto") is not None


def to_steps(core: Tensor, weight: int) -> np.ndarray:
    """w S as whole steps modulo 2^64, flat."""
    steps = torch.round(core.detach().cpu().double() * weight * 2.0**STEP_BITS)
    return steps.long().reshape(-1).numpy().view(np.uint64)


def from_steps(total: np.ndarray, shape: torch.Size) -> Tensor:
    """The sum of w S in float64."""
    return torch.from_numpy(total.view(np.int64).copy()).view(shape).double() / 2.0**STEP_BITS


def stream(seed: bytes, length: int) -> np.ndarray:
    """PRG: so many numbers modulo 2^64 from a seed (ChaCha20)."""
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

    key = _derive(seed, b"stream")
    return np.frombuffer(Cipher(ChaCha20(key, bytes(16)), None).encryptor().update(bytes(8 * length)), np.uint64)


def _derive(secret: bytes, purpose: bytes) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(SHA256(), 32, None, b"h2tune " + purpose).derive(secret)


def committed(secret: bytes) -> bytes:
    """What binds who publishes it to a secret, and tells nothing of it."""
    return _derive(secret, b"commitment")[:SEED]


class _Key:
    """A key to agree on secrets with others, made from a seed that can be shared out."""

    def __init__(self, seed: bytes) -> None:
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

        self.seed = seed
        self._private = X25519PrivateKey.from_private_bytes(_derive(seed, b"key"))

    @property
    def public(self) -> bytes:
        return self._private.public_key().public_bytes_raw()

    def agree(self, other: bytes) -> bytes:
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

        try:
            return self._private.exchange(X25519PublicKey.from_public_bytes(other))
        except ValueError:
            raise SecureError("invalid public key") from None


def check_public(key: bytes) -> None:
    """Raise SecureError if nobody could agree on a secret with who sent this public key."""
    _Key(bytes(SEED)).agree(key)


def _split(secret: bytes, threshold: int, count: int) -> list[bytes]:
    from Crypto.Protocol.SecretSharing import Shamir

    return [share for _, share in Shamir.split(threshold, count, secret)]


def _join(shares: dict[int, bytes]) -> bytes:
    from Crypto.Protocol.SecretSharing import Shamir

    return Shamir.combine([(place + 1, share) for place, share in shares.items()])


@dataclass
class ClientSecrets:
    """One client's part in one round.

    Args:
        name: the client's own.
        threshold: how many clients must help to reveal a secret; fewer learn nothing.
        context: run and round: nothing of one round is of use in another.
    """

    name: str
    threshold: int
    context: bytes
    random: Callable[[int], bytes] = field(default=os.urandom, repr=False)

    def __post_init__(self) -> None:
        self._mask, self._channel, self._own = (
            _Key(self.random(SEED)),
            _Key(self.random(SEED)),
            self.random(SEED),
        )
        self.members: dict[str, tuple[bytes, bytes]] = {}
        self._held: dict[str, tuple[bytes, bytes]] = {}
        self._revealed: list[str] | None = None

    def publics(self) -> Publics:
        """What all may know of this client in this round."""
        return self._mask.public.hex(), self._channel.public.hex(), committed(self._own).hex()

    def share_out(self, publics: dict[str, Publics]) -> Shares:
        """Shares of this client's two secrets, for each other client encrypted to it, with a commitment to each."""
        if self.members or len(publics) < self.threshold or self.name not in publics:
            raise SecureError(f"{self.name} is asked to share its secrets with {len(publics)} clients, or twice")
        try:
            self.members = {n: (bytes.fromhex(m), bytes.fromhex(c)) for n, (m, c, _) in publics.items()}
        except ValueError:
            raise SecureError(f"{self.name} is sent invalid public keys") from None
        places, found = sorted(self.members), {}
        keys, owns = (_split(s, self.threshold, len(places)) for s in (self._mask.seed, self._own))
        for place, other in enumerate(places):
            if other == self.name:
                self._held[other] = (keys[place], owns[place])
            else:
                sealed = self._cipher(self.name, other).encrypt(bytes(12), keys[place] + owns[place], None)
                found[other] = (sealed + committed(keys[place]) + committed(owns[place])).hex()
        return found

    def mask(self, values: np.ndarray, sealed: Shares) -> np.ndarray:
        """y_i for x_i. ``sealed`` are the others' shares for this client, and say who takes part."""
        from cryptography.exceptions import InvalidTag

        if not set(sealed) <= set(self.members) or len(sealed) + 1 < self.threshold:
            raise SecureError(f"{self.name} is asked to mask its core for {len(sealed) + 1} clients")
        for other, text in sealed.items():
            try:
                sealed_shares, promised = _opened(text)
                opened = self._cipher(other, self.name).decrypt(bytes(12), sealed_shares, None)
            except (InvalidTag, ValueError):
                raise SecureError(f"the shares of {other} for {self.name} were tampered with") from None
            self._held[other] = (opened[:SEED], opened[SEED:])
            if tuple(map(committed, self._held[other])) != promised:
                raise SecureError(f"the shares of {other} for {self.name} are others than {other} promised")
        masked: np.ndarray = values + stream(self._own, len(values))
        for other in sealed:
            masked += sign(self.name, other) * stream(self._pair(other), len(values))
        return masked

    def reveal(self, answered: list[str]) -> dict[str, str]:
        """Shares of b_j for clients that answered, of the key for those that did not; only once in a round."""
        if len(set(answered)) < self.threshold or not set(answered) <= set(self._held):
            raise SecureError(
                f"{self.name} is asked to reveal a sum of {len(answered)} clients; it takes {self.threshold}"
            )
        if self._revealed not in (None, sorted(answered)):
            raise SecureError(f"{self.name} is asked a second time, for other clients: that could give one away")
        self._revealed = sorted(answered)
        return {name: held[1 if name in answered else 0].hex() for name, held in self._held.items()}

    def _pair(self, other: str) -> bytes:
        return _derive(self._mask.agree(self.members[other][0]), b"pair" + self.context)

    def _cipher(self, sender: str, receiver: str) -> ChaCha20Poly1305:
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        other = receiver if sender == self.name else sender
        purpose = f"shares {sender} {receiver} ".encode() + self.context
        return ChaCha20Poly1305(_derive(self._channel.agree(self.members[other][1]), purpose))


def _opened(text: str) -> tuple[bytes, tuple[bytes, bytes]]:
    """Of what `ClientSecrets.share_out` says for one client: the encrypted shares, and the commitments to both."""
    data = bytes.fromhex(text)
    return data[:SEALED], (data[SEALED : SEALED + SEED], data[SEALED + SEED :])


def sign(name: str, other: str) -> np.uint64:
    """+1 or -1 modulo 2^64: with it the masks of a pair cancel."""
    return np.uint64(1) if other > name else np.uint64(2**64 - 1)


class MaskedSum:
    """The server's part: adds masked vectors, takes the masks off at the end.

    Args:
        length: numbers in a vector.
        publics: what every participant has published.
        dealt: by dealer, what its `ClientSecrets.share_out` gave; the clients whose masks are in the sums.
        context: as the clients'.

    Attributes:
        liars: clients whose shares do not fit what was promised, with what is wrong.
    """

    def __init__(self, length: int, publics: dict[str, Publics], dealt: dict[str, Shares], context: bytes) -> None:
        self.total, self.publics, self.dealt, self.context = np.zeros(length, np.uint64), publics, dealt, context
        self.answered: list[str] = []
        self.liars: dict[str, str] = {}

    def add(self, name: str, masked: np.ndarray) -> None:
        if name in self.answered or masked.shape != self.total.shape:
            raise SecureError(f"{name} sends {masked.shape} masked numbers, expected {self.total.shape} once")
        self.total = self.total + masked
        self.answered.append(name)

    def unmask(self, revealed: dict[str, Shares], threshold: int) -> np.ndarray:
        """The sum of x_i over who answered.

        Args:
            revealed: by client, what `ClientSecrets.reveal` gave.

        Raises:
            SecureError: if fewer than ``threshold`` clients have helped, or a dealer has lied.
        """
        honest = {name: shares for name, shares in revealed.items() if self._fits(name, shares)}
        if len(honest) < threshold:
            raise SecureError(f"only {len(honest)} clients helped to reveal the sum; it takes {threshold}")
        secrets = {dealer: self._secret(dealer, honest, threshold) for dealer in self.dealt}
        if wrong := [dealer for dealer, secret in secrets.items() if not self._promised(dealer, secret)]:
            self.liars |= dict.fromkeys(wrong, "the shares of its secret do not give the secret that it promised")
            raise SecureError(f"the secrets of {', '.join(wrong)} cannot be recovered")
        total = self.total.copy()
        for name, secret in secrets.items():
            total -= stream(secret, len(total)) if name in self.answered else self._left_over(name, _Key(secret))
        return total

    def _fits(self, helper: str, shares: Shares) -> bool:
        """Whether a helper gives the shares that it was dealt."""
        for dealer in self.dealt.keys() - {helper}:
            promised = _opened(self.dealt[dealer][helper])[1]
            if committed(bytes.fromhex(shares[dealer])) != promised[dealer in self.answered]:
                self.liars[helper] = f"its share of a secret of {dealer} is another than {dealer} gave it"
                return False
        return True

    def _secret(self, dealer: str, honest: dict[str, Shares], threshold: int) -> bytes:
        """A dealer's secret from shares that fit; its own share, to which nobody is bound, only where it is needed."""
        places = {name: place for place, name in enumerate(sorted(self.publics))}
        helpers = sorted(honest, key=lambda name: name == dealer)[:threshold]
        return _join({places[name]: bytes.fromhex(honest[name][dealer]) for name in helpers})

    def _promised(self, dealer: str, secret: bytes) -> bool:
        mask, _, own = self.publics[dealer]
        return committed(secret).hex() == own if dealer in self.answered else _Key(secret).public.hex() == mask

    def _left_over(self, gone: str, key: _Key) -> np.ndarray:
        """The masks that the others have in common with a client that dropped out."""
        found = np.zeros_like(self.total)
        for name in self.answered:
            pair = _derive(key.agree(bytes.fromhex(self.publics[name][0])), b"pair" + self.context)
            found += sign(name, gone) * stream(pair, len(found))
        return found
