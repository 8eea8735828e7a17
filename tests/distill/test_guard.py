"""What recites private text stays; what is made wrong is wrong in one place."""

from __future__ import annotations

import random

import pytest

from h2tune.distill.corruption import corrupted
from h2tune.distill.guard import Guard

SECRET = "the patient in room nine has taken seven blue pills since Monday morning"


def test_eight_consecutive_private_words_are_recognised_whatever_their_case_and_marks() -> None:
    guard = Guard([SECRET], ["How many pills has she taken since Monday?"])
    assert guard.recites("So: The patient, in ROOM nine, has taken seven... 4")
    assert not guard.recites("The patient in room nine has taken pills 4")  # seven words, then others
    assert not guard.recites("")


@pytest.mark.parametrize("text", [
    "患者张三于二零二六年三月因胸痛入院诊断为急性心肌梗死",
    "患者は三月に胸の痛みで入院し心筋梗塞と診断された",
])  # fmt: skip
def test_scripts_without_spaces_are_read_by_characters(text: str) -> None:
    guard = Guard([text], [])
    assert guard.recites(f"答：{text[3:16]}") and not guard.recites(text[:4] + "！".join("天地玄黄"))


def test_what_is_public_is_no_secret() -> None:
    assert not Guard([SECRET], [f"As we all know, {SECRET}."]).recites(SECRET)


@pytest.mark.parametrize("path", [" 12", " She has 3 + 4 = 7 nuts.\nThe answer is 7", " answer = 6 * 2"])
def test_one_number_or_operator_is_changed_the_same_for_the_same_seed(path: str) -> None:
    for seed in range(20):
        wrong = corrupted(path, seed)
        assert wrong is not None and wrong != path and wrong == corrupted(path, seed)
        kept = [a == b for a, b in zip(path.split(), wrong.split(), strict=True)]
        assert kept.count(False) == 1
    assert len({corrupted(path, seed) for seed in range(20)}) > 2


def test_numbers_that_python_does_not_convert_stay_as_they_are() -> None:
    """A path of another participant is no reason to fail, however long its numbers are."""
    assert corrupted("9" * 5000, 1) is None
    path = "#" + "9" * 4400 + "\nanswer = 3"
    assert all(str(corrupted(path, seed)).startswith("#" + "9" * 4400 + "\n") for seed in range(20))


def test_a_path_without_numbers_cannot_be_made_wrong() -> None:
    assert corrupted(" well-known words only", 1) is None


def test_guard_holds_eight_bytes_for_a_private_run_and_refuses_what_exact_runs_do() -> None:
    draw = random.Random(0)
    words = [f"w{i}" for i in range(40)]
    private, public, asked = ([" ".join(draw.choices(words, k=30)) for _ in range(n)] for n in (200, 50, 100))
    asked += [f"{text[:20]} {' '.join(draw.choice(private).split()[3:11])}" for text in asked]
    public += [" ".join(private[0].split()[5:20])]

    def runs(text: str) -> set[tuple[str, ...]]:
        parts = text.split()
        return {tuple(parts[i : i + 8]) for i in range(len(parts) - 7)}

    exact = set().union(*map(runs, private)) - set().union(*map(runs, public))
    guard = Guard(private, public)
    assert [guard.recites(text) for text in asked] == [bool(runs(text) & exact) for text in asked]
    assert not guard.recites(" ".join(private[0].split()[5:20]))
    assert guard.runs.nbytes == 8 * len(exact)


def test_guard_of_no_private_text_refuses_nothing() -> None:
    assert not Guard([], []).recites(SECRET)


def test_guard_reads_halves_of_characters() -> None:
    """As a file may hold them that was cut."""
    assert Guard([SECRET.replace("room", "ro\ud800om")], []).recites(SECRET[20:])
