"""The problems of the suites with a recorded teacher: SVAMP, and MathQA answered by short Python programs.

Of both, the teacher has problems of its own, as the server of LaDa may, and a student has one kind of problem, mostly or only.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import svamp

Rows = list[dict[str, str]]


@dataclass(frozen=True)
class Problems:
    """What a suite draws its data from.

    Attributes:
        name: under which figures are kept. rows_of: the problems of a file.
        fixed_rows: from the data's folder and the number of public questions, what is the same for all seeds: the teacher's
            own problems, the public questions, and what is left for students.
        students_rows: from what is left, the test problems, seed, number of the student and the arguments, the student's parts.
    """

    name: str
    task: dict[str, Any]
    rows_of: Callable[[Path], Rows]
    fixed_rows: Callable[[Path, int], tuple[Rows, Rows, Rows]]
    students_rows: Callable[[Rows, Rows, int, int, argparse.Namespace], dict[str, Rows]]


def svamp_fixed(folder: Path, public: int) -> tuple[Rows, Rows, Rows]:
    """The teacher has 120 problems."""
    rows = list({row["question"]: row for row in svamp.rows_of(folder / "train.jsonl")}.values())
    random.Random("recorded").shuffle(rows)
    return rows[:120], rows[120 : 120 + public], rows[120 + public :]


def svamp_students(left: Rows, test: Rows, seed: int, student: int, args: argparse.Namespace) -> dict[str, Rows]:
    """Two thirds of a student's rows are of one kind of problem."""
    rng = random.Random(f"recorded/{seed}/{student}")
    left, test = rng.sample(left, len(left)), rng.sample(test, args.tests)
    kinds = sorted({row["kind"] for row in left})
    own = kinds[(student + seed) % len(kinds)]
    mostly, others = ([row for row in left if (row["kind"] == own) is same] for same in (True, False))
    one, two = round(args.rows * 2 / 3), args.rows - round(args.rows * 2 / 3)
    parts = {"train": mostly[:one] + others[:two], "validation": mostly[one : one + 14] + others[two : two + 6],
             "test": test}  # fmt: skip
    if len(parts["train"]) < args.rows:
        sys.exit(
            f"there are only {len(mostly)} problems of the kind {own!r}: too few for {args.rows} rows, choose fewer"
        )
    for rows in parts.values():
        rng.shuffle(rows)
    return parts


DOMAINS = ("physics", "gain", "general")
LONGEST = 170  # characters of a program; nine of ten are shorter


def programs_of(path: Path) -> Rows:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if len(row["output"]) <= LONGEST]


def programs_fixed(folder: Path, public: int) -> tuple[Rows, Rows, Rows]:
    """The teacher has the problems of the other domains, and 600 of the three."""
    rows = programs_of(folder / "train.jsonl")
    random.Random("recorded").shuffle(rows)
    three, others = ([row for row in rows if (row["category"] in DOMAINS) is inside] for inside in (True, False))
    own = others + three[:600]
    random.Random("teacher").shuffle(own)
    return own, three[600 : 600 + public], three[600 + public :]


def programs_students(left: Rows, test: Rows, seed: int, student: int, args: argparse.Namespace) -> dict[str, Rows]:
    """A student has the problems of one domain, and is tested on that."""
    rng, domain = random.Random(f"programs/{seed}/{student}"), DOMAINS[student % len(DOMAINS)]
    own, asked = ([row for row in rows if row["category"] == domain] for rows in (left, test))
    drawn = rng.sample(own, args.rows + 20)
    return {"train": drawn[:-20], "validation": drawn[-20:], "test": rng.sample(asked, args.tests)}


SVAMP = Problems("reasoning-recorded", svamp.TASK, svamp.rows_of, svamp_fixed, svamp_students)
PROGRAMS = Problems(
    "reasoning-programs", {"preset": "program", "max_new_tokens": 128}, programs_of, programs_fixed, programs_students
)
