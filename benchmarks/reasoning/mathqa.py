"""Suite R2, the paper's shape: MathQA's physics, gain and general problems, a client for each, a letter after a written path.

Public questions are other problems of the same three domains. The teacher has problems of the other domains: nobody else has
them. A path is the problem's rationale, cleaned, and ends in "The answer is C"; problems with one of over 300 characters are left out.

    python benchmarks/reasoning/mathqa.py --mathqa FOLDER --teacher MODEL --students MODEL MODEL MODEL

`--help` has the rest: measuring the untouched models, and tuning the teacher first.
"""

from __future__ import annotations

import json
import random
import re
from argparse import Namespace
from pathlib import Path

from real_models import Rows, Suite, jsonl, main, write_client

TASK = {
    "kind": "generate",
    "prompt": "Question: {question}\nChoices: {choices}\nAnswer:",
    "answer": " {answer}",
    "score": "choice",
    "max_new_tokens": 160,
}
DOMAINS = ("physics", "gain", "general")
LONGEST = 300  # characters of a rationale
_ENDING = re.compile(
    r"[\s.,;:]*\b(?:the\s+)?(?:correct\s+)?(?:ans(?:wer)?|option|choice)?\s*(?:is|:|=|-|option)*\s*\(?\s*\b[a-e]\b\s*\)?[\s.\"!]*$",
    re.IGNORECASE,
)


def path_of(rationale: str, letter: str) -> str:
    """A rationale without its own ending, whose form differs from problem to problem, and with the same one for all."""
    text = _ENDING.sub("", rationale.strip().strip('"').strip()).strip(" .,;")
    return f"{text}. The answer is {letter.upper()}"


def rows_of(path: Path) -> dict[str, Rows]:
    """Problems by domain."""
    found: dict[str, Rows] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if len(row["Rationale"]) <= LONGEST:
            kept = {
                "question": row["Problem"],
                "choices": row["options"],
                "answer": path_of(row["Rationale"], row["correct"]),
            }
            found.setdefault(row["category"], []).append(kept)
    return found


def write_data(args: Namespace, folder: Path, seed: int, clients: int) -> None:
    """Files of a seed: every student has one domain; what the three leave is public."""
    train, test = rows_of(args.data / "train.jsonl"), rows_of(args.data / "test.jsonl")
    others = sorted(train.keys() - set(DOMAINS))
    own = [row for domain in others for row in train[domain]]
    random.Random("teacher").shuffle(own)
    write_client(folder, 0, own, [row for domain in others for row in test[domain]])
    rng = random.Random(f"mathqa/{seed}")
    for rows in train.values():
        rng.shuffle(rows)
    for number in range(1, clients):
        domain = DOMAINS[(number - 1) % len(DOMAINS)]
        taken, train[domain] = train[domain][: args.rows + 20], train[domain][args.rows + 20 :]
        write_client(folder, number, taken, test[domain])
    public = [row for domain in DOMAINS for row in train[domain]]
    rng.shuffle(public)
    jsonl(folder / "public.jsonl", public)


if __name__ == "__main__":
    main(Suite("mathqa", "reasoning-mathqa", TASK, write_data, rows=580), __doc__)
