"""Suite R1, real models on SVAMP: LaDa beside local training, random paths and FedMKT.

Each client has 100 problems of one operation mostly, public questions are 600 other problems with a rationale made from their
equation, the test has 300 in other wordings. The teacher has 400 problems of its own, as the server of LaDa may: nobody else
has them.

    python benchmarks/reasoning/svamp.py --svamp FOLDER --teacher MODEL --students MODEL MODEL

`--help` has the rest: measuring the untouched models, and tuning the teacher first.
"""

from __future__ import annotations

import json
import random
import re
from argparse import Namespace
from pathlib import Path

from real_models import Suite, jsonl, main, write_client

TASK = {
    "kind": "generate",
    "prompt": "Question: {question}\nAnswer:",
    "answer": " {answer}",
    "score": "number",
    "max_new_tokens": 40,
}
OWN = 400  # problems of the teacher, the same for all seeds


def infix(equation: str, numbers: str) -> str:
    """``- number0 number1`` with its numbers as ``(8 - 3)``; an equation that is infix already stays."""
    values = [f"{float(value):g}" for value in numbers.split()]
    parts = [values[int(p[6:])] if p.startswith("number") else p for p in equation.split()]
    if parts[0] not in "+-*/":
        return re.sub(r"\.0\b", "", equation)
    stack: list[str] = []
    for part in reversed(parts):
        stack.append(f"({stack.pop()} {part} {stack.pop()})" if part in "+-*/" else f"{float(part):g}")
    return stack[0]


def rows_of(path: Path) -> list[dict[str, str]]:
    """Questions with a rationale that the equation gives, ``8 - 3 = 5. The answer is 5``, and the kind of problem."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        equation = infix(str(row["Equation"]).strip(), str(row.get("Numbers", "")))
        equation = equation.removeprefix("(").removesuffix(")").strip()
        answer = f"{float(row['Answer']):g}"
        body = f"{row['Body'].strip().rstrip('.')}. " if row.get("Body") else ""
        kind = str(row.get("Type") or row["Equation"].split()[0])
        text = f"{equation} = {answer}. The answer is {answer}"
        found.append({"question": body + row["Question"], "answer": text, "kind": kind})
    return found


def teachers_rows(svamp: Path) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The teacher's own problems, and those that are left for all others; no question is in both."""
    rows = list({row["question"]: row for row in rows_of(svamp / "train.jsonl")}.values())
    random.Random("teacher").shuffle(rows)
    return rows[:OWN], rows[OWN:]


def write_data(args: Namespace, folder: Path, seed: int, clients: int) -> None:
    """Files of a seed: each client's rows come from one kind of problem for two thirds."""
    rng = random.Random(f"real/{seed}")
    (own, rows), test = teachers_rows(args.data), rows_of(args.data / "test.jsonl")
    rng.shuffle(rows)
    kinds = sorted({row["kind"] for row in rows})
    write_client(folder, 0, own, test)
    for number in range(1, clients):
        kind = kinds[number % len(kinds)]
        mostly = [row for row in rows if row["kind"] == kind][:80]
        others = [row for row in rows if row["kind"] != kind][:40]
        rows = [row for row in rows if row not in mostly and row not in others]
        part = mostly + others
        rng.shuffle(part)
        write_client(folder, number, part, test)
    jsonl(folder / "public.jsonl", rows)


if __name__ == "__main__":
    main(Suite("svamp", "reasoning-real", TASK, write_data), __doc__)
