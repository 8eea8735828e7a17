"""What flows between whom: allocation of a round's paths to every student, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from h2tune.distill.bandit import Bandit, rewards
from h2tune.distill.choice import Choice, Pair, choose
from h2tune.distill.learnability import HIGH, adapted, high
from h2tune.distill.packing import Answers, Given, scores_of
from h2tune.distill.said import Learnt
from h2tune.distill.settings import LadaSettings
from h2tune.tasks.public import Questions
from h2tune.utils.seeds import derive

EXAMPLES = 3
UNANSWERED = (
    "the public questions have no right answers: {} may learn what smaller models are wrongly sure of."
    " method.directions: down lets paths flow from it alone"
)


class Flows:
    """The server's memory of all pairs.

    Attributes:
        budgets: bytes that each student may be given. peaks: of each pair, the largest 90th percentile of any round.
        table: a row for each round and student. examples: some allocated paths in full.
        bandits, levels: of `filter: bandit`, by pair and by student. notices: of the last round.
    """

    def __init__(self, settings: LadaSettings, seed: int) -> None:
        self.settings, self.seed = settings, seed
        self.budgets: dict[str, float] = {}
        self.peaks: dict[str, float] = {}
        self.table: list[dict[str, Any]] = []
        self.examples: list[dict[str, Any]] = []
        self.bandits: dict[str, Bandit] = {}
        self.levels: dict[str, float] = {}
        self.notices: list[str] = []
        self.served: list[str] = []  # students that were given something so far
        self.chosen: dict[str, Choice] = {}
        self._given: dict[str, list[Given]] = {}
        self._items: list[int] = []

    def teachers_of(self, student: str, present: Mapping[str, Any]) -> list[str]:
        """Who may teach a student: the large model, or for the large model everybody else."""
        teacher = self.settings.teacher
        if not self.settings.flows(student == teacher):
            return []
        names = [name for name in sorted(present) if name != teacher] if student == teacher else [teacher]
        return [name for name in names if name in present]

    def allocate(self, number: int, questions: Questions, items: list[int], answers: dict[str, Answers]) -> None:
        """Allocate the paths of a round to all students that answered."""
        samples, answered = self.settings.samples, questions.answered
        scores = {name: scores_of(found, samples, answered) for name, found in answers.items()}
        examples = [questions.examples[i] for i in items]
        lengths = np.asarray([len(e.answer.encode()) for e in examples], dtype=np.float64)
        asked = np.asarray([len(e.prompt.encode()) for e in examples], dtype=np.float64)
        self.chosen, self._given, self._items, self.notices = {}, {}, items, []
        for student in sorted(answers):
            teachers = self.teachers_of(student, answers)
            if not teachers:
                continue
            budget = self.budgets.setdefault(student, float(self.settings.bytes))
            pairs = [Pair(t, student, scores[t], scores[student], lengths, asked) for t in teachers]
            seed = derive(self.seed, "allocate", number, student)
            allowed = budget if lengths.any() else min(2 * budget, 2.0 * self.settings.bytes)
            found = choose(self, pairs, allowed, seed, up=student == self.settings.teacher, answered=answered)
            self.chosen[student] = found
            gold = [("", 0.0)]  # the student has the reference answers
            self._given[student] = [
                Given(items[place], path, logp)
                for t, place in found.allocation.chosen
                for path, logp in (gold if self.settings.filter == "gold" else answers[t].of(place))
            ]
            self._note(number, student, found, items)
        self._show(questions, items, answers, scores)
        if self.settings.teacher not in answers:
            self.notices.append(f"nobody was given anything: the teacher {self.settings.teacher} did not take part")
        if number == 1 and not answered and self.settings.directions == "both":
            self.notices.append(UNANSWERED.format(self.settings.teacher))
        self._tell()

    def given(self, client: str) -> list[Given]:
        """The paths that a client is given in this round."""
        return self._given.get(client, [])

    def bandit(self, pair: str) -> Bandit:
        if pair not in self.bandits:
            self.bandits[pair] = Bandit(derive(self.seed, "bandit", pair))
        return self.bandits[pair]

    def threshold(self, pair: str, values: Any) -> float:
        """Least value that counts as high, now that a pair has seen these, too."""
        self.peaks[pair] = max(self.peaks.get(pair, 0.0), high(values))
        return HIGH * self.peaks[pair]

    def _note(self, number: int, student: str, found: Choice, items: list[int]) -> None:
        """The round's row of the table."""
        allocation, figures = found.allocation, found.figures()
        row = {
            "round": number, "student": student, "questions": len(items), "right": found.right, "high": found.high,
            "items": [items[place] for _, place in allocation.chosen], "from": sorted({t for t, _ in allocation.chosen}),
            "explored": len(allocation.explored), "bytes": allocation.spent, "budget": round(allocation.budget),
            "learnt": None, "refused": {}, "kept": None,
        }  # fmt: skip
        self.table.append(row | figures)

    def _show(self, questions: Questions, items: list[int], answers: dict[str, Answers], scores: Any) -> None:
        """Keep three allocated paths in full, the last ones of each direction; all of it is on public questions."""
        for up in (False, True):
            shown = []
            for student, found in sorted(self.chosen.items()):
                if (student == self.settings.teacher) is not up:
                    continue
                for (teacher, place), value in zip(
                    found.allocation.chosen[:EXAMPLES], found.allocation.values, strict=False
                ):
                    shown.append({
                        "up": up, "student": student, "teacher": teacher, "value": value,
                        "question": questions.examples[items[place]].prompt, "path": _first(answers[teacher], place),
                        "own": _first(answers[student], place),
                        "n_teacher": _number(scores[teacher].n[place]), "n_student": _number(scores[student].n[place]),
                        "rho": _number(scores[student].rho[place]),
                    })  # fmt: skip
            if shown:
                self.examples = [e for e in self.examples if e["up"] is not up] + shown[:EXAMPLES]

    def _tell(self) -> None:
        """Say it at once where nothing flows, and why."""
        if self.settings.filter == "gold":
            return
        for student, found in sorted(self.chosen.items()):
            if found.allocation.chosen:
                self.served = sorted({*self.served, student})
            elif found.right == 0 and student not in self.served:
                who = "its students" if student == self.settings.teacher else f"the teacher {self.settings.teacher}"
                self.notices.append(
                    f"{student} was given nothing: {who} answered none of the {found.questions} public questions right."
                    " Easier questions, or a model that has learnt the task, are needed"
                )
            elif found.high and found.least > (room := (1 - self.settings.explore) * found.allocation.budget):
                kept = "" if not self.settings.explore else f" (less {self.settings.explore:.0%} for exploring)"
                self.notices.append(
                    f"{student} was given nothing: its budget of {found.allocation.budget:.0f} bytes{kept} is too small for"
                    f" any path; the shortest that it should learn from needs {found.least:.0f}, and there are {room:.0f}."
                    " Raise method.budget"
                )

    def close(self, number: int, learnt: Mapping[str, Learnt]) -> None:
        """A round is over: note what students learnt, adapt budgets, train the bandits."""
        for row in self.table:
            if row["round"] != number or row["student"] not in learnt:
                continue
            said = learnt[row["student"]]
            row |= {"learnt": said.learnt, "refused": dict(said.refused), "kept": said.kept}
            if said.refused and not any(r["learnt"] for r in self.table if r["student"] == row["student"]):
                why = ", ".join(f"{reason} ({count})" for reason, count in sorted(said.refused.items()))
                self.notices.append(
                    f"{row['student']} has learnt from no path so far; it refused each after its own check: {why}"
                )
            if said.kept is not None:
                start, name = float(self.settings.bytes), row["student"]
                self.budgets[name] = adapted(self.budgets[name], start, said.kept > 0)
        if self.settings.filter == "bandit":
            for student, said in sorted(learnt.items()):
                if student in self.chosen:
                    self._reward(student, said, self.chosen[student])

    def _reward(self, student: str, said: Learnt, found: Choice) -> None:
        level, before = said.level or (0.0, 0.0)
        reward = rewards(said.moves, level, self.levels.get(student, before), self.settings.alpha)
        self.levels[student] = level
        by_pair: dict[str, list[tuple[int, float]]] = {}
        for teacher, place in found.allocation.chosen:
            if (item := self._items[place]) in reward:
                by_pair.setdefault(teacher, []).append((place, reward[item]))
        for teacher, entries in sorted(by_pair.items()):
            z = found.features[teacher][[place for place, _ in entries]]
            self.bandit(f"{teacher}>{student}").learn(z, [r for _, r in entries])

    # ---- what is kept, and shown

    def tensors(self) -> dict[str, Tensor]:
        return {f"{pair}/{k}": t for pair, bandit in self.bandits.items() for k, t in bandit.tensors().items()}

    def plain(self) -> dict[str, Any]:
        return {"budgets": self.budgets, "peaks": self.peaks, "table": self.table, "examples": self.examples,
                "levels": self.levels, "served": self.served}  # fmt: skip

    def load(self, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        for key in ("budgets", "peaks", "table", "examples", "levels", "served"):
            setattr(self, key, plain[key])
        held: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            pair, _, key = name.rpartition("/")
            held.setdefault(pair, {})[key] = tensor
        for pair, own in held.items():
            self.bandit(pair).load(own)

    def report(self) -> dict[str, Any]:
        """The table and the examples."""
        return {"teacher": self.settings.teacher, "filter": self.settings.filter, "table": self.table,
                "examples": self.examples}  # fmt: skip


def _first(answers: Answers, place: int) -> str:
    return answers.of(place)[0][0] if answers.of(place) else ""


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
