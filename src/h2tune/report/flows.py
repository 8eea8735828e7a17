"""What flowed between a large model and small ones (`method: lada`): a table of who was given what and why, and examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from h2tune.report.values import list_of, mapping, text, texts, whole
from h2tune.utils.numbers import number


@dataclass(frozen=True)
class Flow:
    """What a student was given in a round.

    questions, right, high: of the round, of them answered right by a teacher, of them worth learning for this student.
    given, explored, bytes, budget: paths allocated, of them at random; bytes of them and allowed.
    learnt: paths that passed the student's own check. refused: others with the reason, in words.
    losses: nats per byte of student and teacher over what was given, and over all questions of the round.
    """

    round: int
    student: str
    teachers: tuple[str, ...]
    questions: int
    right: int
    high: int
    given: int
    explored: int
    bytes: int
    budget: int
    learnt: int | None
    refused: str
    kept: float | None
    given_losses: tuple[float | None, float | None]
    all_losses: tuple[float | None, float | None]
    given_speed: float | None
    all_speed: float | None

    @property
    def outcome(self) -> str:
        """What became of it."""
        if self.kept is None:
            return "nothing learnt"
        return "kept" if self.kept == 1 else "half kept" if self.kept else "taken back: validation was worse"


@dataclass(frozen=True)
class PathExample:
    """An allocated path in full, with the figures that spoke for it; all of it is on a public question."""

    student: str
    teacher: str
    question: str
    path: str
    own: str
    n_student: float | None
    n_teacher: float | None
    rho: float | None
    value: float | None


@dataclass(frozen=True)
class Flows:
    """All that flowed in a run."""

    filter: str
    rows: tuple[Flow, ...]
    examples: tuple[PathExample, ...]


def read_flows(value: Any) -> Flows | None:
    """The flows of a run's metrics; None where the method has none. Forgiving, as all reading of runs is."""
    data = mapping(value)
    rows = [row for entry in list_of(data.get("table")) if (row := _row(mapping(entry))) is not None]
    if not rows:
        return None
    examples = tuple(_example(mapping(entry)) for entry in list_of(data.get("examples")))
    return Flows(text(data.get("filter")), tuple(rows), examples)


def _row(data: Mapping[str, Any]) -> Flow | None:
    round = whole(data.get("round"))
    if round is None:
        return None
    refused = {str(reason): whole(count) or 0 for reason, count in mapping(data.get("refused")).items()}
    return Flow(
        round=round,
        student=text(data.get("student")),
        teachers=texts(data.get("from")),
        questions=whole(data.get("questions")) or 0,
        right=whole(data.get("right")) or 0,
        high=whole(data.get("high")) or 0,
        given=len(list_of(data.get("items"))),
        explored=whole(data.get("explored")) or 0,
        bytes=whole(data.get("bytes")) or 0,
        budget=whole(data.get("budget")) or 0,
        learnt=whole(data.get("learnt")),
        refused=", ".join(f"{count} {reason}" for reason, count in sorted(refused.items())),
        kept=number(data.get("kept")),
        given_losses=(number(data.get("n_student")), number(data.get("n_teacher"))),
        all_losses=(number(data.get("n_student_slice")), number(data.get("n_teacher_slice"))),
        given_speed=number(data.get("rho")),
        all_speed=number(data.get("rho_slice")),
    )


def _example(data: Mapping[str, Any]) -> PathExample:
    return PathExample(
        student=text(data.get("student")),
        teacher=text(data.get("teacher")),
        question=text(data.get("question")),
        path=text(data.get("path")),
        own=text(data.get("own")),
        n_student=number(data.get("n_student")),
        n_teacher=number(data.get("n_teacher")),
        rho=number(data.get("rho")),
        value=number(data.get("value")),
    )
