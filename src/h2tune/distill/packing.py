"""Reasoning paths and scores as tensors, and back: checked strictly, since others have written them.

    up     text U8, ends I32, logp F32 (8 bytes a path beside its text), right U8, scores F16 (7 a question)
    down   text U8, ids I32, ends I32, logp F32 (12 bytes a path beside its text)

Texts travel as bytes: the JSON header of a message ends at 1 MiB.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from h2tune.distill.learnability import EXTRA, Scores, Values
from h2tune.errors import ProtocolError
from h2tune.protocol.codec import Payload, expect

LONGEST = 16_384  # bytes of a path
PREFIX = "lada/"  # before the names of what LaDa adds to a host's message
Shapes = dict[str, tuple[int, ...]]
ANSWER: Shapes = {"text": (-1,), "ends": (-1,), "logp": (-1,), "right": (-1,), "scores": (-1, 3)}
GIVEN: Shapes = {"text": (-1,), "ids": (-1,), "ends": (-1,), "logp": (-1,)}
_TYPES = {"text": torch.uint8, "ends": torch.int32, "ids": torch.int32, "logp": torch.float32, "right": torch.uint8,
          "scores": torch.float16}  # fmt: skip


@dataclass(frozen=True)
class Answers:
    """What a participant answers to a round's questions.

    Attributes:
        paths: as many for each question (`method.paths`), question by question; empty where it has fewer that may be sent.
        logp: log-likelihood of each path under its own model, end token included.
        right: of its samples, how many are right; without right answers how many agree with the path.
        scores: questions x (n, rho, omega), -1 where there is none.
    """

    paths: list[str]
    logp: list[float]
    right: list[int]
    scores: Tensor

    def of(self, place: int) -> list[tuple[str, float]]:
        """Paths on a question of the slice, with their log-likelihoods."""
        each = len(self.paths) // len(self.right)
        own = range(place * each, (place + 1) * each)
        return [(self.paths[i], self.logp[i]) for i in own if self.paths[i]]


@dataclass(frozen=True)
class Given:
    """A path that a student is given: number of the question, text, log-likelihood under its writer."""

    item: int
    path: str
    logp: float


def pack_answers(answers: Answers) -> dict[str, Tensor]:
    text, ends = _pack_texts(answers.paths)
    return {
        "text": text,
        "ends": ends,
        "logp": torch.tensor(answers.logp, dtype=torch.float32),
        "right": torch.tensor(answers.right, dtype=torch.uint8),
        "scores": answers.scores.half(),
    }


def unpack_answers(payload: Payload, count: int, samples: int, paths: int = 1) -> Answers:
    """Answers to ``count`` questions, with ``paths`` paths for each.

    Raises:
        ProtocolError: anything about them is not as it must be.
    """
    tensors = _checked(payload, ANSWER, "the answers")
    wanted = {"ends": count * paths, "logp": count * paths, "right": count, "scores": count}
    if any(len(tensors[name]) != number for name, number in wanted.items()):
        raise ProtocolError(f"the answers are not for the {count} questions that were asked")
    scores = tensors["scores"].float()
    if bool(((scores < 0) & (scores != -1)).any()):
        raise ProtocolError("the answers hold a score below 0")
    right = tensors["right"].tolist()
    if max(right, default=0) > samples:
        raise ProtocolError(f"the answers hold more right ones than the {samples} that were asked for")
    return Answers(_unpack_texts(tensors["text"], tensors["ends"]), _log_likelihoods(tensors["logp"]), right, scores)


def pack_given(given: Sequence[Given]) -> dict[str, Tensor]:
    text, ends = _pack_texts([entry.path for entry in given])
    return {
        PREFIX + "text": text,
        PREFIX + "ids": torch.tensor([entry.item for entry in given], dtype=torch.int32),
        PREFIX + "ends": ends,
        PREFIX + "logp": torch.tensor([entry.logp for entry in given], dtype=torch.float32),
    }


def split_off(payload: Payload) -> tuple[Payload, Payload]:
    """What a message holds for the host, and what for LaDa."""
    own = {k.removeprefix(PREFIX): t for k, t in payload.tensors.items() if k.startswith(PREFIX)}
    rest = {k: t for k, t in payload.tensors.items() if not k.startswith(PREFIX)}
    meta = {k.removeprefix(PREFIX): v for k, v in payload.meta.items() if k.startswith(PREFIX)}
    others = {k: v for k, v in payload.meta.items() if not k.startswith(PREFIX)}
    return Payload(rest, others, payload.texts), Payload(own, meta)


def unpack_given(payload: Payload, asked: Sequence[int], most: int = 1) -> list[Given]:
    """The paths that a student was given on the questions that it was asked; none if the message holds none.

    Args:
        most: paths that a question may have.

    Raises:
        ProtocolError: anything about them is not as it must be.
    """
    if not payload.tensors:
        return []
    tensors = _checked(payload, GIVEN, "the paths")
    items, logp = tensors["ids"].tolist(), _log_likelihoods(tensors["logp"])
    paths = _unpack_texts(tensors["text"], tensors["ends"])
    if not len(items) == len(paths) == len(logp) or max(Counter(items).values(), default=0) > most:
        raise ProtocolError(f"the paths are more than {most} for a question, or not one for each number")
    if strange := set(items) - set(asked):
        raise ProtocolError(f"there is a path on question {min(strange)}, which was not asked in this round")
    return [Given(*entry) for entry in zip(items, paths, logp, strict=True)]


def scores_of(answers: Answers, samples: int, answered: bool) -> Scores:
    """Answers as the numbers that a filter reads."""
    scores = answers.scores.double().numpy()
    scores = np.where(scores < 0, np.nan, scores)
    right = np.asarray(answers.right, dtype=np.float64) / samples
    several = [answers.of(place) for place in range(len(answers.right))]
    # Of several paths all but one bring what is counted beside a text (`EXTRA`) here.
    sizes = np.asarray(
        [sum(len(p.encode()) + EXTRA for p, _ in own) - (EXTRA if own else 0) for own in several], np.int64
    )
    # With right answers, a right sample is the one that is sent; without, agreement stands in for being right.
    path_right: Values = (right > 0).astype(np.float64) if answered else right
    return Scores(scores[:, 0], scores[:, 1], scores[:, 2], right, path_right, sizes)


def _checked(payload: Payload, shapes: Shapes, what: str) -> dict[str, Tensor]:
    expect(payload, shapes, what)
    for name, tensor in payload.tensors.items():
        if tensor.dtype != _TYPES[name]:
            raise ProtocolError(f"{what}: the tensor {name!r} is of type {tensor.dtype}, expected {_TYPES[name]}")
    return payload.tensors


def _log_likelihoods(tensor: Tensor) -> list[float]:
    if bool((tensor > 0).any()):
        raise ProtocolError("a log-likelihood is above 0")
    return [float(value) for value in tensor.tolist()]


def _pack_texts(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    encoded = [text.encode() for text in texts]
    ends = np.cumsum([len(data) for data in encoded], dtype=np.int64)
    body = b"".join(encoded)
    text = torch.frombuffer(bytearray(body), dtype=torch.uint8) if body else torch.zeros(0, dtype=torch.uint8)
    return text, torch.from_numpy(ends.astype(np.int32))


def _unpack_texts(text: Tensor, ends: Tensor) -> list[str]:
    data, places = text.numpy().tobytes(), [0, *ends.tolist()]
    if any(b < a or b - a > LONGEST for a, b in pairwise(places)) or places[-1] != len(data):
        raise ProtocolError(f"the ends of the paths do not fit their text, or a path has more than {LONGEST} bytes")
    try:
        return [data[a:b].decode() for a, b in pairwise(places)]
    except UnicodeDecodeError:
        raise ProtocolError("a path is not UTF-8 text") from None
