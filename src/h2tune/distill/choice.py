"""Which of a round's paths a student is given, by each of the filters."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from h2tune.distill.bandit import ENOUGH, Bandit, by_clusters, features
from h2tune.distill.learnability import (
    EXTRA,
    Allocation,
    Scores,
    Values,
    allocate,
    at_equal_bytes,
    bands,
    gaps,
    ranked,
)
from h2tune.distill.settings import LadaSettings

INFINITE = 1 << 40  # bytes: no budget


class Memory(Protocol):
    """What is remembered of pairs from round to round."""

    settings: LadaSettings

    def bandit(self, pair: str) -> Bandit: ...

    def threshold(self, pair: str, values: Values) -> float: ...


@dataclass(frozen=True)
class Pair:
    """A teacher and a student in a round. lengths, asked: bytes of the reference answers and of the questions."""

    teacher: str
    student: str
    theirs: Scores
    own: Scores
    lengths: Values
    asked: Values

    @property
    def name(self) -> str:
        return f"{self.teacher}>{self.student}"


@dataclass
class Choice:
    """What a student is given, and the figures behind it.

    Attributes:
        questions, right, high: questions of the slice, of them answered right by a teacher, of them worth learning.
        least: bytes of the shortest path worth learning. features: z of `filter: bandit`, by teacher.
    """

    allocation: Allocation
    pairs: list[Pair]
    questions: int = 0
    right: int = 0
    high: int = 0
    least: float = 0.0
    features: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def figures(self) -> dict[str, float | None]:
        """Means over what was chosen, and over the slice: student's and teacher's nats per byte, speed of learning."""
        by_name = {pair.teacher: pair for pair in self.pairs}
        chosen = self.allocation.chosen
        found: dict[str, float | None] = {}
        of: dict[str, Callable[[Pair], Values]] = {
            "n_student": lambda pair: pair.own.n,
            "n_teacher": lambda pair: pair.theirs.n,
            "rho": lambda pair: pair.own.rho,
        }
        for key, values in of.items():
            found[key] = _mean(np.asarray([values(by_name[t])[place] for t, place in chosen]))
            found[f"{key}_slice"] = _mean(np.concatenate([values(pair) for pair in self.pairs]))
        return found


def _mean(values: Values) -> float | None:
    finite = values[np.isfinite(values)] if len(values) else values
    return float(finite.mean()) if len(finite) else None


def choose(memory: Memory, pairs: list[Pair], budget: float, seed: int, up: bool, answered: bool = True) -> Choice:
    """Allocate paths of all its teachers to one student.

    Args:
        up: whether the student is the large model. answered: whether the questions come with right answers.
    """
    settings = memory.settings
    sizes = {pair.teacher: pair.theirs.sizes for pair in pairs}
    found = Choice(Allocation(budget=budget), pairs, len(pairs[0].lengths))
    right = np.zeros(found.questions, dtype=bool)
    for pair in pairs:
        right |= (pair.theirs.right if settings.filter in ("band", "bandit") else pair.theirs.path_right) > 0
    found.right = int(right.sum())
    if settings.filter == "gold":
        found.allocation.chosen = [(pairs[0].teacher, place) for place in range(found.questions)]
        found.allocation.values = [0.0] * found.questions
        return found
    if settings.filter == "bandit":
        _by_bandit(memory, found, sizes, budget, seed)
        return found
    values = {
        p.teacher: bands(p.theirs, p.own) if settings.filter == "band"
        else gaps(
            p.theirs, p.own, p.lengths, reducible=settings.reducible, up=up, solved=settings.solved or not answered
        ) for p in pairs
    }  # fmt: skip
    thresholds = {p.teacher: memory.threshold(p.name, values[p.teacher]) for p in pairs}
    allowed = {p.teacher: p.theirs.path_right > 0 for p in pairs}
    found.allocation = allocate(values, sizes, allowed, thresholds, budget, settings.explore, seed)
    worth = [sizes[t][(v > 0) & (v >= thresholds[t]) & (sizes[t] > 0)] for t, v in values.items()]
    found.high = sum(map(len, worth))
    found.least = float(min((int(w.min()) for w in worth if len(w)), default=0) + EXTRA)
    if settings.filter not in ("gap", "band"):
        _instead(found, settings.filter, values, sizes, seed)
    return found


def _instead(found: Choice, filter: str, values: dict[str, Values], sizes: dict[str, Any], seed: int) -> None:
    """A baseline's choice: everything, or as many bytes as `gap` would have spent."""
    gap, by_name = found.allocation, {pair.teacher: pair for pair in found.pairs}
    pool = [(t, int(place)) for t in sorted(sizes) for place in np.flatnonzero(sizes[t] > 0)]
    if filter == "teacher-loss":
        order = ranked(pool, lambda t, place: _or(by_name[t].theirs.n[place], np.inf))
    elif filter == "student-loss":
        order = ranked(pool, lambda t, place: -_or(by_name[t].own.n[place], -np.inf))
    else:
        order = list(pool)
        random.Random(seed).shuffle(order)
    chosen = at_equal_bytes(order, sizes, INFINITE if filter == "all" else gap.spent)
    spent = sum(int(sizes[t][place]) + EXTRA for t, place in chosen)
    found.allocation = Allocation(
        chosen, set(), gap.budget, spent, gap.threshold, [float(values[t][p]) for t, p in chosen]
    )


def _or(value: float, other: float) -> float:
    return float(value) if np.isfinite(value) else other


def _by_bandit(memory: Memory, found: Choice, sizes: dict[str, Any], budget: float, seed: int) -> None:
    """Round 1 of a pair by clusters, later by u > 1/2; within the budget."""
    order: list[tuple[str, int]] = []
    scores: dict[tuple[str, int], float] = {}
    for pair in found.pairs:
        z = features(pair.theirs, pair.own, pair.asked)
        found.features[pair.teacher] = z
        bandit = memory.bandit(pair.name)
        u = bandit.scores(z) if bandit.trained else np.full(len(z), ENOUGH)
        picked = by_clusters(z, seed) if not bandit.trained else [int(i) for i in np.flatnonzero(u > ENOUGH)]
        usable = [(pair.teacher, i) for i in picked if pair.theirs.sizes[i] > 0]
        order += usable
        scores |= {entry: float(u[entry[1]]) for entry in usable}
    if any(memory.bandit(pair.name).trained for pair in found.pairs):
        order = ranked(order, lambda t, place: -scores[t, place])
    found.high = len(order)
    found.least = float(min((int(sizes[t][place]) for t, place in order), default=0) + EXTRA)
    chosen = at_equal_bytes(order, sizes, int(budget))
    spent = sum(int(sizes[t][place]) + EXTRA for t, place in chosen)
    found.allocation = Allocation(chosen, set(), budget, spent, {}, [scores[entry] for entry in chosen])
