"""How the default anchor text (anchors.txt) was made: public-domain sentences and generated everyday text.

Run as: python -m h2tune.zoo.make_anchors --books children/train.txt fiction/train.txt > anchors.txt

Half of the lines come from public-domain books, half from the generator behind the zoo's pretraining: stories with
numbers, sums, reviews, questions. None of the demo's trade words is in it, and no test item of any task.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from h2tune.zoo.corpus import generate

_SENTENCE = re.compile(r"[A-Z][a-z][A-Za-z ,;']{25,90}[.!?](?=\s)")


def book_sentences(paths: list[Path], count: int, rng: random.Random) -> list[str]:
    """Plain sentences of moderate length, spread over the books."""
    found: list[str] = []
    for path in paths:
        sentences = sorted(set(_SENTENCE.findall(path.read_text(encoding="utf-8"))))
        found += rng.sample(sentences, count // len(paths))
    return found


def generated_lines(count: int, seed: int) -> list[str]:
    def lines() -> Iterator[str]:
        for text in generate(seed):
            line = " ".join(text.split())
            if len(line) < 160:
                yield line

    return list(dict.fromkeys(islice(lines(), 4 * count)))[:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--books", type=Path, nargs="+", required=True)
    parser.add_argument("--count", type=int, default=300)
    args = parser.parse_args()
    rng = random.Random(2026)
    lines = book_sentences(args.books, args.count // 2, rng) + generated_lines(args.count - args.count // 2, 2026)
    rng.shuffle(lines)
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
