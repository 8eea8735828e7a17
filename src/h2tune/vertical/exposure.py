"""What may cross between parties, and what limits the inference from it.

`ALLOWED` is the whole list: both sides hold every message against it, before sending and after receiving. `SAID` says it for
people: `h2tune plan` and the report show these lines.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from h2tune.errors import ProtocolError
from h2tune.protocol.codec import Payload
from h2tune.vertical.agreed import AGREED
from h2tune.vertical.align import DIGEST


@dataclass(frozen=True)
class Sizes:
    """Sizes that shapes are made of: classes, embedding, rows of a batch. -1 where any length is allowed."""

    classes: int = -1
    dim: int = -1
    batch: int = -1


@dataclass(frozen=True)
class Field:
    """A tensor that a message may hold; its values are `least` or more, where that is given."""

    shape: tuple[str | int, ...]
    dtype: torch.dtype = torch.float32
    needed: bool = True
    least: float | None = None

    def shape_for(self, sizes: Sizes) -> tuple[int, ...]:
        """The shape in numbers; -1 stands for any length."""
        known = {"C": sizes.classes, "d": sizes.dim, "B": sizes.batch, "*": -1}
        return tuple(known[n] if isinstance(n, str) else n for n in self.shape)


_KEYS = Field(("*", DIGEST), torch.uint8)
_BYTES = Field(("*",), torch.uint8, needed=False)
_PLACES = Field(("*",), torch.int32)
_BATCH, _CLASSES, _SHARES = Field(("B", "d")), Field(("C", "d")), Field(("C",), least=0.0)
_GRADIENT = Field(("B", "d"), needed=False)

# (kind, direction) -> tensors by name, and plain values by name.
ALLOWED: dict[tuple[str, str], tuple[dict[str, Field], dict[str, type]]] = {
    ("join", "down"): ({"request": _BYTES, "test_request": _BYTES}, {"form": str}),
    ("join", "up"): (
        {
            "keys": Field(("*", DIGEST), torch.uint8, needed=False),
            "test_keys": Field(("*", DIGEST), torch.uint8, needed=False),
            "setup": _BYTES, "response": _BYTES, "test_setup": _BYTES, "test_response": _BYTES,
            "labels": Field(("*", DIGEST), torch.uint8, needed=False),
        },
        {"rows": int, "test_rows": int},
    ),
    ("align", "down"): (
        {"keys": _KEYS, "places": _PLACES, "test_keys": _KEYS, "test_places": _PLACES, "classes": Field(("C", DIGEST), torch.uint8)},
        {"rows": int, "test_rows": int},
    ),
    ("align", "up"): ({"labels": _KEYS}, {}),
    ("step", "down"): ({"gradient": _GRADIENT}, {"step": int, "keep": int}),
    ("step", "up"): ({"z": _BATCH}, {}),
    ("local", "down"): ({"gradient": _GRADIENT, "nu": _CLASSES, "mu": _CLASSES, "prior": _SHARES}, {}),
    ("local", "up"): ({"nu": _CLASSES, "mu": _CLASSES, "counts": _SHARES, "prior": _SHARES}, {}),
    ("predict", "down"): ({}, {"split": str, "start": int, "stop": int}),
    ("predict", "up"): ({"z": Field(("*", "d"))}, {}),
    ("rejoin", "down"): ({}, {"round": int}),
    ("rejoin", "up"): ({}, {}),
    ("finish", "down"): ({}, {"best": int}),
    ("finish", "up"): ({}, {}),
}  # fmt: skip

TEXTS = {("join", "down"): {AGREED}}
"""Lists of texts, by name, of the messages that may hold any."""

SAID: dict[tuple[str, str], str] = {
    ("join", "up"): "once: hashes of ids (with psi: blinded ids), hashes of the names of its labels of min_count rows or more,"
    " and how many rows it has",
    ("align", "up"): "once: hashes of the names of its labels of min_count rows or more beside the aligned ones",
    ("step", "up"): "every step: embeddings of the aligned people of a batch; the active party may try to invert them",
    ("local", "up"): "every round: prototypes, class means, counts of classes of min_count rows or more, and class shares",
    ("predict", "up"): "when the result is scored or used: embeddings of the people asked for",
    ("join", "down"): "once: the settings that all act by, and with psi its ids, blinded",
    ("align", "down"): "once: which people are aligned, by the hashes of their ids, and hashes of the names of all classes",
    ("step", "down"): "every step: gradients of those embeddings; without label_dp they give the labels of aligned people away",
    ("local", "down"): "every round: prototypes and class means for this party, made with the labels of aligned people, class shares of"
    " all parties, and the last gradients",
    ("predict", "down"): "when the result is scored or used: which people are asked for",
}  # fmt: skip
"""What leaves a passive party (``up``) and the active one (``down``), for people."""
STAYS = (
    "features, ids, labels, class names and networks; of a single person who is not aligned, all but the hash of the id:"
    " such people count in prototypes, class means, counts and shares only"
)


def leaves(way: str) -> list[str]:
    """A line for each thing that goes this way: ``up`` from a passive party, ``down`` to it."""
    return [text for (_, direction), text in SAID.items() if direction == way]


def check(kind: str, way: str, payload: Payload, sizes: Sizes, who: str) -> Payload:
    """The payload, if it holds exactly what such a message may hold.

    Raises:
        ProtocolError: naming what is wrong and with whom.
    """
    if (kind, way) not in ALLOWED:
        raise ProtocolError(f"{who}: {kind!r} is not a kind of message")
    tensors, values = ALLOWED[kind, way]
    if spoken := sorted(payload.texts.keys() - TEXTS.get((kind, way), set())):
        raise ProtocolError(f"{who}: {kind} may not hold {spoken[0]!r}")
    if unknown := sorted(payload.tensors.keys() - tensors.keys() | payload.meta.keys() - values.keys()):
        raise ProtocolError(f"{who}: {kind} may not hold {unknown[0]!r}")
    for name, field in tensors.items():
        found = payload.tensors.get(name)
        if found is None:
            if field.needed:
                raise ProtocolError(f"{who}: {kind} lacks {name!r}")
            continue
        wanted = field.shape_for(sizes)
        fits = len(wanted) == found.dim() and all(w in (-1, n) for w, n in zip(wanted, found.shape, strict=True))
        if not fits or found.dtype != field.dtype:
            shape = tuple(found.shape)
            raise ProtocolError(
                f"{who}: {name!r} in {kind} has shape {shape} and type {found.dtype}, expected {wanted} and {field.dtype}"
            )
        if field.least is not None and found.numel() and float(found.min()) < field.least:
            raise ProtocolError(f"{who}: {name!r} in {kind} holds values below {field.least:g}")
    for name, kind_of in values.items():
        if name in payload.meta and type(payload.meta[name]) is not kind_of:
            raise ProtocolError(f"{who}: {name!r} in {kind} is not of type {kind_of.__name__}")
    return payload


def check_rows(asked: Payload, answer: Payload, who: str) -> None:
    """Raise ProtocolError where an answer to ``predict`` has more or fewer rows than were asked for."""
    wanted, found = asked.meta["stop"] - asked.meta["start"], len(answer.tensors["z"])
    if found != wanted:
        raise ProtocolError(f"{who}: predict was asked for {wanted} rows and has {found}")


def flip_matrix(epsilon: float, classes: int) -> Tensor:
    """Randomised response: chance that a label of class i is used as class j (C x C)."""
    keep = math.exp(epsilon) / (math.exp(epsilon) + classes - 1)
    other = (1 - keep) / max(classes - 1, 1)
    return torch.full((classes, classes), other) + (keep - other) * torch.eye(classes)


def randomise(labels: Tensor, epsilon: float, classes: int, secret: bytes) -> Tensor:
    """Labels after randomised response. Everything that is computed from them alone is `epsilon`-private in a label.

    Args:
        secret: what the draws follow from. All parties know the run's seed: whoever can repeat the draws can undo them.
    """
    if classes < 2:
        return labels
    draws = np.frombuffer(hashlib.shake_256(b"labels" + secret).digest(16 * len(labels)), "<u8").reshape(-1, 2)
    # Rounded up, so that the chance of another class is never below what epsilon asks for.
    flipped = draws[:, 0] < np.uint64(math.ceil((classes - 1) / (math.exp(epsilon) + classes - 1) * 2.0**64))
    moved = torch.from_numpy(np.where(flipped, 1 + draws[:, 1] % np.uint64(classes - 1), 0).astype(np.int64))
    return (labels + moved) % classes


def true_counts(reported: Tensor, flip: Tensor) -> Tensor:
    """Rows of each class before randomised response, estimated from those after it (C); none below 0."""
    estimate: Tensor = torch.linalg.solve(flip.T, reported).clamp_min(0)
    return estimate * (reported.sum() / estimate.sum().clamp_min(1e-12))


def withhold(counts: Tensor, least: int) -> Tensor:
    """Counts with those below the least replaced by 0."""
    return torch.where(counts < least, 0.0, counts)


def add_noise(gradient: Tensor, amount: float, seed: int) -> Tensor:
    """A gradient with Gaussian noise relative to its root mean square. A heuristic: it guarantees nothing."""
    if amount == 0:
        return gradient
    generator = torch.Generator().manual_seed(seed)
    size = gradient.square().mean().sqrt()
    return gradient + amount * size * torch.randn(gradient.shape, generator=generator)
