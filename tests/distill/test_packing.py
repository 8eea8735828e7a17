"""Answers and paths as tensors: their exact size, and everything that is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from h2tune.distill.packing import (
    LONGEST,
    PREFIX,
    Answers,
    Given,
    pack_answers,
    pack_given,
    split_off,
    unpack_answers,
    unpack_given,
)
from h2tune.errors import ProtocolError
from h2tune.protocol.codec import Message, Payload, decode, encode

PATHS = [" 12", "", " zwölf – 12"]
ANSWERS = Answers(PATHS, [-1.5, 0.0, -3.25], [1, 0, 1], torch.tensor([[0.5, 0.25, -1], [-1, -1, -1], [1, 0.5, 0.5]]))


def tensor_bytes(tensors: dict[str, Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors.values())


def test_answers_come_back_as_they_were_at_nine_bytes_a_path_and_six_a_question() -> None:
    packed = pack_answers(ANSWERS)
    assert tensor_bytes(packed) == sum(len(p.encode()) + 9 for p in PATHS) + 6 * len(PATHS)
    found = unpack_answers(Payload(packed), 3, 1)
    assert (found.paths, found.logp, found.right) == (PATHS, ANSWERS.logp, ANSWERS.right)
    assert torch.equal(found.scores, ANSWERS.scores)


def test_paths_come_back_as_they_were_at_twelve_bytes_each() -> None:
    given = [Given(7, " 12", -1.5), Given(2, " zwölf", -2.0)]
    packed = pack_given(given)
    assert tensor_bytes(packed) == sum(len(g.path.encode()) + 12 for g in given)
    host, ours = split_off(Payload(packed | {"S": torch.zeros(2)}, {"evaluate": True, "lada/learnt": {}}))
    assert set(host.tensors) == {"S"} and host.meta == {"evaluate": True} and ours.meta == {"learnt": {}}
    assert unpack_given(ours, [2, 7]) == given


@pytest.mark.parametrize("count", [10, 128])
def test_on_the_wire_a_message_is_its_tensors_and_a_bounded_header(count: int) -> None:
    answers = Answers([" 123"] * count, [-1.0] * count, [1] * count, torch.zeros(count, 3))
    data = encode(Message("answer", "run", 1, "c", "lada", Payload(pack_answers(answers))))
    assert 0 < len(data) - tensor_bytes(pack_answers(answers)) < 1500
    assert decode(data).payload.tensors.keys() == pack_answers(answers).keys()


def change(name: str, make: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    def apply(tensors: dict[str, Tensor]) -> None:
        tensors[name] = make(tensors[name])

    return apply


@pytest.mark.parametrize(
    "spoil",
    [
        change("ends", lambda t: t.flip(0)),
        change("ends", lambda t: t + 1),
        change("ends", lambda t: t[:-1]),
        change("ends", lambda t: t.long()),
        change("text", lambda t: t | 0x80),
        change("text", lambda t: t[:-1]),
        change("logp", lambda t: -t),
        change("right", lambda t: t + 1),
        change("scores", lambda t: t - 0.5),
        change("scores", lambda t: t[:, :2]),
        change("scores", lambda t: t.float()),
        lambda tensors: tensors.pop("right"),
        lambda tensors: tensors.update(extra=torch.zeros(1)),
    ],
)
def test_bad_answers_are_refused(spoil: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = pack_answers(ANSWERS)
    spoil(tensors)
    with pytest.raises(ProtocolError):
        unpack_answers(Payload(tensors), 3, 1)


def test_a_path_of_endless_length_is_refused() -> None:
    long = Answers(["x" * (LONGEST + 1)], [-1.0], [0], torch.zeros(1, 3))
    with pytest.raises(ProtocolError, match=str(LONGEST)):
        unpack_answers(Payload(pack_answers(long)), 1, 1)


@pytest.mark.parametrize("given", [[Given(9, " 1", -1.0)], [Given(1, " 1", -1.0), Given(1, " 2", -1.0)]])
def test_paths_on_questions_that_were_not_asked_or_twice_are_refused(given: list[Given]) -> None:
    ours = Payload({k.removeprefix(PREFIX): t for k, t in pack_given(given).items()})
    with pytest.raises(ProtocolError, match="question"):
        unpack_given(ours, [1, 2])
