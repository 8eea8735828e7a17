"""Several right paths on a question: how they travel, and that a student learns how likely they are beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from distill.lada_federation import lada
from federations import build

from h2tune.distill.learnability import EXTRA
from h2tune.distill.packing import (
    Answers,
    Given,
    pack_answers,
    pack_given,
    scores_of,
    split_off,
    unpack_answers,
    unpack_given,
)
from h2tune.distill.paths import targets
from h2tune.errors import ProtocolError
from h2tune.protocol.codec import Payload

TWO = Answers([" 3", " 03", " 4", ""], [-1.0, -2.0, -3.0, 0.0], [2, 1], torch.full((2, 3), 0.5))
CHANGES = {"samples": 3, "paths": 2, "accept": False, "explore": 0.0, "directions": "down"}


def test_answers_hold_as_many_paths_for_each_question_and_cost_what_each_costs() -> None:
    found = unpack_answers(Payload(pack_answers(TWO)), 2, 3, 2)
    assert found.of(0) == [(" 3", -1.0), (" 03", -2.0)] and found.of(1) == [(" 4", -3.0)]
    assert scores_of(found, 3, True).sizes.tolist() == [5 + EXTRA, 2]  # one EXTRA is counted with the question
    with pytest.raises(ProtocolError, match="2 questions"):
        unpack_answers(Payload(pack_answers(TWO)), 2, 3, 1)


def test_a_question_has_no_more_paths_than_agreed() -> None:
    given = [Given(5, " 3", -1.0), Given(5, " 03", -2.0), Given(1, " 4", -1.0)]
    ours = split_off(Payload(pack_given(given)))[1]
    assert unpack_given(ours, [1, 5], 2) == given
    with pytest.raises(ProtocolError, match="more than 1 for a question"):
        unpack_given(ours, [1, 5])


def test_the_paths_that_are_sent_are_right_and_differ(tmp_path: Path) -> None:
    _, clients = build(lada(changes=CHANGES, rounds=1), tmp_path)
    reasoner: Any = clients["s1"].method.reasoner
    answer = reasoner.questions.examples[0].answer
    right, other = answer, f" 0{answer.strip()}"
    assert reasoner._settle(0, [right, right, " 99999"]) == ([right], 2)
    assert reasoner._settle(0, [" 99999", other, right]) == ([other, right], 2)
    assert reasoner._settle(0, [" 99999", " 99998"]) == ([" 99999"], 0)  # a wrong one shows what the model says


def test_a_student_learns_both_paths_at_their_relative_likelihood(tmp_path: Path) -> None:
    server, clients = build(lada(changes=CHANGES, rounds=1), tmp_path)

    def answer(round: int, payload: Payload) -> Payload:
        items, examples = teacher.items(round), teacher.reasoner.questions.examples
        paths = [path for i in items for path in (examples[i].answer, f" 0{examples[i].answer.strip()}")]
        scores = torch.tensor([[0.02, 0.3, -1.0]] * len(items))
        teacher.answered = round
        return Payload(pack_answers(Answers(paths, [-0.1, -0.4] * len(items), [3] * len(items), scores)))

    teacher: Any = clients["big"].method
    teacher.answer = answer
    student: Any = clients["s1"].method
    gate, lessons = student._gate, []
    student._gate = lambda given, round: lessons.append(gate(given, round)) or lessons[0]
    server.run()
    row = next(row for row in server.method.report()["flows"]["table"] if row["student"] == "s1")
    assert row["items"] and row["learnt"] == 2 * len(row["items"]) and row["kept"] == 1
    assert row["bytes"] == sum(len(g.path.encode()) + EXTRA for g in server.method.flows.given("s1"))
    lesson = lessons[0].lessons[0]
    assert lesson.positives == 2 and len(lesson.rows) == 3  # and a wrong one
    wanted = targets([-0.1, -0.4, None], lesson.sizes, margin=3.0, tau=1.0, gamma=0.0)
    assert torch.allclose(lesson.q, wanted, atol=1e-6)  # sums travel as float32
    assert float((lesson.q[0] / lesson.q[1]).log()) == pytest.approx(0.3, abs=1e-6)
