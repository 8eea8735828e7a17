"""Write the small data sets of the examples. Everything is generated from a seed; nothing is downloaded.

    python examples/make_data.py           # writes examples/data again, byte for byte the same

Two families of files:

- ``tickets``: short notes to a help desk. One generator, three organisations, three questions about a note: is it
  urgent, what is it about, is the writer content?
- ``trade``: word problems with eighteen invented verbs ("Ann brolks 4"), and two episodes of the public practice
  problems for them: enough to see the format. (`demo:fill?split=practice&n=4800` as a source makes as many as needed.)
"""

from __future__ import annotations

import csv
import json
import random
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from h2tune.tasks.demo_problems import demo_rows

TOPICS = {
    "billing": ("the invoice", "a refund", "the payment", "the price", "my credit card"),
    "delivery": ("the parcel", "the courier", "the shipment", "the delivery date", "my address"),
    "login": ("the password", "my account", "the login page", "the reset link", "my user name"),
}
MOODS = {
    "content": ("thank you, this was quick", "your team is kind", "I am happy with the help", "very good service"),
    "annoyed": ("this is the third time", "I am tired of waiting", "nobody answers me", "very poor service"),
}
URGENCY = {
    "urgent": ("we cannot work until it is solved", "I need it today", "please call me at once", "it is an emergency"),
    "routine": ("there is no hurry", "any day this month is fine", "whenever you have time", "I only want to know"),
}
OPENINGS = (
    "Hello, a question about {topic}.",
    "It is about {topic}.",
    "I write because of {topic}.",
    "Once more {topic}.",
)


def notes(rng: random.Random) -> Iterable[dict[str, str]]:
    """Endless different notes with their topic, urgency and mood."""
    seen = set()
    while True:
        topic, mood, urgency = rng.choice(list(TOPICS)), rng.choice(list(MOODS)), rng.choice(list(URGENCY))
        said = [rng.choice(MOODS[mood]), rng.choice(URGENCY[urgency])]
        rng.shuffle(said)
        text = " ".join([rng.choice(OPENINGS).format(topic=rng.choice(TOPICS[topic])),
                         *(part[0].upper() + part[1:] + "." for part in said)])  # fmt: skip
        if text not in seen:
            seen.add(text)
            yield {"note": text, "topic": topic, "mood": mood, "urgency": urgency}


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_tickets(folder: Path, seed: int = 0) -> None:
    """Three organisations with 120 training and 100 test notes each; no note is in two files."""
    source = iter(notes(random.Random(f"tickets/{seed}")))
    for split, count in (("train", 120), ("test", 100)):
        clinic, shop, bank = ([next(source) for _ in range(count)] for _ in range(3))
        write_csv(folder / f"clinic-{split}.csv", [{"text": r["note"], "urgent": r["urgency"]} for r in clinic])
        write_jsonl(folder / f"shop-{split}.jsonl", [{"message": r["note"], "about": r["topic"]} for r in shop])
        rows = ["note\tcontent", *(f"{r['note']}\t{'yes' if r['mood'] == 'content' else 'no'}" for r in bank)]
        (folder / f"bank-{split}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    write_jsonl(folder / "shop-new.jsonl", [{"message": next(source)["note"]} for _ in range(5)])


def write_trade(folder: Path, seed: int = 0) -> None:
    """Problems in two answer formats, 24 to train on, and practice problems that say what a verb means this time."""
    for form in ("fill", "program"):
        for split, count in (("train", 24), ("validation", 60), ("test", 100), ("practice", 32)):
            rows = demo_rows(split, form, count, seed)
            keys = ("episode", "lexicon", "prompt", "answer") if split == "practice" else ("prompt", "answer", "gold")
            write_jsonl(folder / f"trade-{form}-{split}.jsonl", [{k: row[k] for k in keys} for row in rows])


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "data"
    folder.mkdir(parents=True, exist_ok=True)
    write_tickets(folder)
    write_trade(folder)


if __name__ == "__main__":
    main()
