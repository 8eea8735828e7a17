"""Suite P as a test: the filter allocates what was planted to be learnable; and problems of SVAMP and MathQA are read right."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from h2tune.tasks import build_task

FOLDER = Path(__file__).parents[2] / "benchmarks" / "reasoning"


@pytest.fixture
def suites(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER.parent))
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    import mathqa
    import planted
    import svamp

    yield planted, svamp, mathqa
    for name in set(sys.modules) - before:
        if name in ("planted", "svamp", "mathqa", "real_models", "suite", "common"):
            del sys.modules[name]


def allocated(planted: Any, folder: Path, rounds: int, **changes: Any) -> list[list[int]]:
    folder.mkdir()
    found: list[list[int]] = planted.one(folder, 7, 4e-3, changes, rounds)["by_round"]
    return found


@pytest.mark.slow
def test_what_is_allocated_first_is_learnable_and_of_random_paths_a_quarter(suites: Any, tmp_path: Path) -> None:
    planted = suites[0]
    ((known, learnable, wrong, code),) = allocated(planted, tmp_path / "gap", 1)
    # A round allocates some eight paths, of which one may be another; over a run it is nine tenths.
    assert learnable >= 5 and learnable >= 0.85 * (known + learnable + wrong + code)
    ((known, learnable, wrong, code),) = allocated(planted, tmp_path / "random", 1, filter="random")
    assert learnable <= 0.6 * (known + learnable + wrong + code)


@pytest.mark.slow
def test_nine_tenths_of_what_is_allocated_over_a_run_is_learnable(suites: Any, tmp_path: Path) -> None:
    rounds = allocated(suites[0], tmp_path / "gap", 4)
    total = [sum(kind) for kind in zip(*rounds, strict=True)]
    assert total[1] >= 0.85 * sum(total) and total[2] == 0


def test_equations_become_rationales(suites: Any) -> None:
    svamp = suites[1]
    assert svamp.infix("- * number0 number1 number2", "2.0 3.0 1.0") == "((2 * 3) - 1)"
    assert svamp.infix("( 76.0 - 25.0 )", "") == "( 76 - 25 )"


@pytest.mark.parametrize(
    ("rationale", "cleaned"),
    [
        ('"5 * 5 = 25 ways . answer : c ."', "5 * 5 = 25 ways. The answer is C"),
        ("5 * 5 = 25 ways . c", "5 * 5 = 25 ways. The answer is C"),
        ("5 * 5 = 25 , the correct answer is ( c ) .", "5 * 5 = 25. The answer is C"),
        ("5 * 5 = 25 ways", "5 * 5 = 25 ways. The answer is C"),
        ("hence x = 2 a", "hence x = 2. The answer is C"),
    ],
)
def test_a_rationale_ends_in_its_letter_once(suites: Any, rationale: str, cleaned: str) -> None:
    mathqa = suites[2]
    assert mathqa.path_of(rationale, "c") == cleaned
    task = build_task(mathqa.TASK)
    example = task.read({"question": "q", "choices": "a ) 1 , b ) 2", "answer": cleaned})
    assert example.gold == "C" and task.score(example, example.answer)


def test_nobody_shares_a_problem_of_mathqa(suites: Any, tmp_path: Path) -> None:
    mathqa, source = suites[2], tmp_path / "source"
    source.mkdir()
    for part, count in (("train", 60), ("test", 5)):
        rows = [
            {"Problem": f"{part} {domain} {i}", "options": "a ) 1", "Rationale": "x . a", "correct": "a", "category": domain}
            for domain in (*mathqa.DOMAINS, "other") for i in range(count)
        ]  # fmt: skip
        (source / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mathqa.write_data(argparse.Namespace(data=source, rows=20), tmp_path, 3, 4)
    names = [f"{n}-{part}" for n in range(4) for part in ("train", "validation")] + ["public"]
    read = {n: [json.loads(line)["question"] for line in (tmp_path / f"{n}.jsonl").open()] for n in names}
    assert len(read["1-train"]) == 20 and len(read["1-validation"]) == 20 and len(read["public"]) == 3 * 20
    everything = [question for questions in read.values() for question in questions]
    assert len(set(everything)) == len(everything)
    assert all("gain" in question for question in read["2-train"])


def test_a_cell_is_kept_with_its_settings_and_never_beside_one_of_others(
    suites: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import suite

    monkeypatch.setattr(suite, "RESULTS", tmp_path)
    args = argparse.Namespace(rate=0.1, seeds=2, name="x", methods=["lada"])
    suite.kept("x", "lada/0", lambda: {"accuracy": 0.5}, args)
    found = suite.kept("x", "lada/0", lambda: {"accuracy": 0.7}, args)
    assert found["accuracy"] == 0.5 and found["settings"] == {"rate": 0.1}
    assert {"command", "commit", "date", "machine"} <= found.keys()
    suite.kept("x", "local/0", lambda: {"accuracy": 0.4}, argparse.Namespace(rate=0.2))
    with pytest.raises(SystemExit, match=r"lada/0 of x\.json was made with other settings"):
        suite.kept("x", "lada/1", lambda: {"accuracy": 0.7}, argparse.Namespace(rate=0.2))
    assert list(json.loads((tmp_path / "x.json").read_text())["cells"]) == ["lada/0", "local/0"]
