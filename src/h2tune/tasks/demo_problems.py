"""Data of the demo: word problems whose verbs are trade words, which no model has met before.

Somebody who reads "Ann brolks 4" can only know from examples whether Ann gains, loses or multiplies. Three
clients meet the same eighteen words, each in another format of the answer and each in few examples.
"""

from __future__ import annotations

import random
import zlib
from typing import Any

from h2tune.tasks.example import Example, Row, TaskError
from h2tune.zoo import lexicon as lx
from h2tune.zoo.corpus import FORMATS, OPERATIONS, Problem, numbers, tell

# One syllable each: the words that the pretraining text invents have two, so none of these occurs there.
TRADE_WORDS: dict[str, str] = {
    "brolks": "+", "snunds": "+", "glemps": "+", "klunds": "+", "zolks": "+", "tralks": "+",
    "drelks": "-", "fremps": "-", "junds": "-", "plimps": "-", "skonds": "-", "vulks": "-",
    "flemps": "*", "glonds": "*", "nulks": "*", "stolks": "*", "wemps": "*", "zimps": "*",
}  # fmt: skip
SPLITS = ("train", "validation", "test", "anchors", "practice")
EPISODE = 16  # practice problems under one assignment of meanings


def _part(story: str) -> str:
    """The split that a story belongs to, whoever tells it: no two splits can ever share one."""
    share = zlib.crc32(story.encode()) % 10
    return "train" if share < 5 else "validation" if share < 6 else "test" if share < 8 else "anchors"


def _problems(split: str, verbs: list[tuple[str, str]], n: int, rng: random.Random) -> list[Problem]:
    """``n`` different problems of a split that use all the verbs equally often, up to one."""
    problems: dict[str, Problem] = {}
    deck: list[tuple[str, str]] = []
    while len(problems) < n:
        deck = deck or rng.sample(verbs, len(verbs))
        verb, operation = deck[-1]
        a, b = numbers(rng)
        story = tell(rng, verb, a, b)
        if _part(story) == split and story not in problems:
            problems[story] = Problem(story, a, b, operation)
            deck.pop()
    return list(problems.values())


def demo_rows(split: str, format: str, n: int, seed: int) -> list[Row]:
    """Rows with the columns ``prompt``, ``answer``, ``gold`` and, for the choice format, ``options``."""
    if format not in FORMATS:
        raise TaskError(f"the demo has no format {format!r}; there are: {', '.join(FORMATS)}")
    if split not in SPLITS:
        raise TaskError(f"the demo has no split {split!r}; there are: {', '.join(SPLITS)}")
    if split == "practice":
        return _practice_rows(format, n, seed)
    rng = random.Random(f"demo/{seed}/{split}/{format}")
    rows: list[Row] = []
    for problem in _problems(split, list(TRADE_WORDS.items()), n, rng):
        prompt, answer = FORMATS[format](problem, rng)
        row: dict[str, Any] = {"prompt": prompt, "answer": answer.strip(), "gold": str(problem.answer)}
        if format == "choice":
            row["options"] = [str(operation(problem.a, problem.b)) for operation in OPERATIONS.values()]
        rows.append(row)
    return rows


def _practice_rows(format: str, n: int, seed: int) -> list[Row]:
    """Public problems in which the trade words mean something at random, anew in every episode.

    They teach a model to let itself be told what a word means, and nothing about what the words do mean. Their
    stories come from the same part of all stories as the anchors.
    """
    rng = random.Random(f"demo-practice/{seed}/{format}")
    rows: list[Row] = []
    while len(rows) < n:
        lexicon = {word: rng.choice("+-*") for word in TRADE_WORDS}
        verbs = rng.sample(list(lexicon.items()), min(EPISODE, len(lexicon)))
        for problem in _problems("anchors", verbs, EPISODE, rng):
            prompt, answer = FORMATS[format](problem, rng)
            episode = len(rows) // EPISODE
            rows.append({"prompt": prompt, "answer": answer.strip(), "lexicon": lexicon, "episode": episode})
    return rows[:n]


def demo_problems(split: str, format: str, n: int, seed: int) -> list[Example]:
    """``n`` examples in a format (fill, choice, program); equal arguments give equal examples.

    Splits share no story, whatever their seeds and formats.
    """
    from h2tune.tasks.presets import preset_task

    task = preset_task(f"demo-{format}") if format in FORMATS else None
    rows = demo_rows(split, format, n, seed)
    assert task is not None
    return [task.read(row) for row in rows]


def demo_anchors(n: int = 300, seed: int = 0) -> list[str]:
    """``n`` unlabelled stories of the domain, half with trade words and half with everyday verbs.

    They are told like the problems, without answers, and are in no training, validation or test data.
    """
    rng = random.Random(f"demo-anchors/{seed}")
    everyday = [(verb, sign) for sign, verbs in (("+", lx.GAIN), ("-", lx.LOSE), ("*", lx.SCALE)) for verb in verbs]
    stories = _problems("anchors", list(TRADE_WORDS.items()), (n + 1) // 2, rng)
    stories += _problems("anchors", everyday, n // 2, rng)
    rng.shuffle(stories)
    return [problem.story for problem in stories]
