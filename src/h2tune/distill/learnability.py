"""What a student can learn from a teacher now, and which paths it is given within its budget of bytes.

    G = w c max(0, 2 rho_S - rhobar_S) omega                                               (`gaps`)

    w        whether the teacher's path is right, or the share of its samples that agree
    c        1 - n_T / n_S, the share of the student's loss that the teacher shows to be reducible
    rho_S    Brier score over cross-entropy of the student: the relative speed at which its loss falls (LARK, arXiv
             2605.30651, measures the same rate from one forward pass)
    rhobar   the same over the whole slice: what learns at less than half the usual rate is not learnable now
    omega    how much likelier the question became than under the bare base: the student's domain

What is high is relative to what the pair has seen: at least half of the largest 90th percentile of any round so far.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
NOISE = 0.01  # of c: scores travel in half precision
HIGH = 0.5  # of the 90th percentile
GREW, SHRANK, RANGE = 1.25, 0.5, (1 / 8, 2.0)  # of a budget: after success, after failure, limits
EXTRA = 12  # bytes of a path beside its text: number, end, log-likelihood


@dataclass(frozen=True)
class Scores:
    """What one participant says of a round's questions; NaN where there is nothing to say.

    Attributes:
        n: nats per byte on the reference answer. rho: Brier score over cross-entropy there. omega: domain weight.
        right: share of right (or agreeing) answers among its samples. path_right: whether the path it sends is.
        sizes: bytes of the path. usable: whether it has sent one.
    """

    n: Values
    rho: Values
    omega: Values
    right: Values
    path_right: Values
    sizes: NDArray[np.int64]

    @property
    def usable(self) -> NDArray[np.bool_]:
        return self.sizes > 0


def gaps(
    teacher: Scores,
    student: Scores,
    lengths: Values,
    *,
    reducible: bool = True,
    up: bool = False,
    solved: bool = True,
) -> Values:
    """G of every question of a slice.

    Args:
        lengths: bytes of the reference answers, 0 where there is none.
        reducible: whether c is a factor. up: whether the student is the large model (then omega is 1).
        solved: whether questions count that the student itself answers right; it needs right answers to tell.

    Returns:
        One number of 0 or more for each question. Without reference answers: w.
    """
    w = np.where(teacher.usable, teacher.path_right, 0.0)
    if not solved:
        w = np.where(student.right > 0, 0.0, w)
    known = (
        (lengths > 0) & np.isfinite(teacher.n) & np.isfinite(student.n) & (student.n > 0) & np.isfinite(student.rho)
    )
    if not known.any():
        return w if not (lengths > 0).any() else np.zeros_like(w)
    with np.errstate(all="ignore"):
        c = 1 - teacher.n / student.n
    c = np.where(known & (c >= NOISE), c if reducible else 1.0, 0.0)
    nats = np.where(known, student.n * lengths, 0.0)
    usual = float((np.where(known, student.rho, 0.0) * nats).sum() / nats.sum())
    speed = np.where(known, np.maximum(0.0, 2 * student.rho - usual), 0.0)
    omega = np.ones_like(w) if up else np.where(np.isfinite(student.omega), student.omega, 1.0)
    return w * c * speed * omega


def bands(teacher: Scores, student: Scores) -> Values:
    """``w 4 p (1 - p)``, p the student's share of right answers: most where it is right half of the time."""
    w = np.where(teacher.usable, teacher.path_right, 0.0)
    return w * 4 * student.right * (1 - student.right)


def high(values: Values) -> float:
    """90th percentile of the positive values, 0 where there are none."""
    positive = values[values > 0]
    return float(np.quantile(positive, 0.9)) if positive.size else 0.0


def fill(order: Iterable[int], sizes: Sequence[int] | NDArray[np.int64], budget: float) -> list[int]:
    """Items in the given order as they fit into a budget of bytes; one that does not fit is skipped."""
    taken, left = [], budget
    for item in order:
        need = int(sizes[item]) + EXTRA
        if need <= left:
            taken.append(item)
            left -= need
    return taken


@dataclass
class Allocation:
    """What a student is given in a round.

    Attributes:
        chosen: (teacher's name, question's place in the slice), in the order of choice.
        explored: those of them that were taken at random. budget: bytes allowed. spent: bytes used.
        threshold: least value that counts as high, by teacher. values: of the chosen, in their order.
    """

    chosen: list[tuple[str, int]] = field(default_factory=list)
    explored: set[tuple[str, int]] = field(default_factory=set)
    budget: float = 0.0
    spent: int = 0
    threshold: dict[str, float] = field(default_factory=dict)
    values: list[float] = field(default_factory=list)


def allocate(
    values: dict[str, Values],
    sizes: dict[str, NDArray[np.int64]],
    allowed: dict[str, NDArray[np.bool_]],
    thresholds: dict[str, float],
    budget: float,
    explore: float,
    seed: int,
) -> Allocation:
    """Allocate paths of one or several teachers to one student.

    A question comes from the teacher with the largest value, equal ones in the order of their names. Places in the slice
    break ties: questions are numbered by their digests, so no client and no order of clients is favoured.

    Args:
        values: of each teacher's path on each question. sizes: bytes of the paths.
        allowed: which paths may be explored. thresholds: least value that counts as high.
        budget: bytes. explore: share of it for random others.
    """
    best: dict[int, tuple[float, str]] = {}
    for name in sorted(values):
        for item in np.flatnonzero((values[name] > 0) & (values[name] >= thresholds[name]) & (sizes[name] > 0)):
            if int(item) not in best or values[name][item] > best[int(item)][0]:
                best[int(item)] = (float(values[name][item]), name)
    order = sorted(best, key=lambda item: (-best[item][0], item))
    need = {item: int(sizes[best[item][1]][item]) for item in order}
    taken = fill(order, _lookup(need), (1 - explore) * budget) if order else []
    found = Allocation([(best[i][1], i) for i in taken], budget=budget, threshold=dict(thresholds))
    found.values = [best[i][0] for i in taken]
    found.spent = sum(need[i] + EXTRA for i in taken)
    if explore and taken:
        _explore(found, values, sizes, allowed, explore * budget, seed)
    return found


def _explore(
    found: Allocation,
    values: dict[str, Values],
    sizes: dict[str, NDArray[np.int64]],
    allowed: dict[str, NDArray[np.bool_]],
    budget: float,
    seed: int,
) -> None:
    """Add random paths on questions that were not chosen."""
    have = {item for _, item in found.chosen}
    pool = [
        (name, int(item))
        for name in sorted(values)
        for item in np.flatnonzero(allowed[name] & (sizes[name] > 0))
        if int(item) not in have
    ]
    random.Random(seed).shuffle(pool)
    left = budget
    for name, item in pool:
        need = int(sizes[name][item]) + EXTRA
        if item in have or need > left:
            continue
        have.add(item)
        left -= need
        found.spent += need
        found.chosen.append((name, item))
        found.explored.add((name, item))
        found.values.append(float(values[name][item]))


def at_equal_bytes(
    order: Sequence[tuple[str, int]], sizes: dict[str, NDArray[np.int64]], spent: int
) -> list[tuple[str, int]]:
    """Paths in the given order, one for a question, as they fit into the bytes that another filter spent."""
    taken: list[tuple[str, int]] = []
    left, have = spent, set()
    for name, item in order:
        need = int(sizes[name][item]) + EXTRA
        if item not in have and need <= left:
            taken.append((name, item))
            have.add(item)
            left -= need
    return taken


def adapted(budget: float, start: float, accepted: bool) -> float:
    """A student's budget after a phase: more after success, less after failure, within an eighth and twice its start."""
    changed = budget * (GREW if accepted else SHRANK)
    return min(max(changed, RANGE[0] * start), RANGE[1] * start)


def _lookup(need: dict[int, int]) -> NDArray[np.int64]:
    table = np.zeros(max(need) + 1, dtype=np.int64)
    for item, size in need.items():
        table[item] = size
    return table


Rank = Callable[[str, int], float]


def ranked(pool: Iterable[tuple[str, int]], rank: Rank) -> list[tuple[str, int]]:
    """A pool of paths by a rank, the least first; ties by question and name."""
    return sorted(pool, key=lambda entry: (rank(*entry), entry[1], entry[0]))
