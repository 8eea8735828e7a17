"""What frames by words are practised on: public texts, or pairs of them, as a model reads them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from h2tune.errors import MethodError
from h2tune.frames.anchor_text import vocabulary
from h2tune.frames.anchor_text import words as spans
from h2tune.frames.base import FramedAdapter
from h2tune.frames.word_codes import TextCodes
from h2tune.tasks.example import Example
from h2tune.tasks.prompts import Encoded, encode

Texts = tuple[str, ...]
"""One text, or two that a task asks about together."""


@dataclass
class Pool:
    """Practice texts as a model reads them.

    Attributes:
        rows: for each label, each text's prompt with that label as the answer.
        asked: index of the first answer token in each text's rows. first: its id for each label.
        places: for each text the last tokens of the words that have a code, and the codes (words x rank).
        features: texts x rank.
    """

    prompts: list[str]
    rows: list[list[Encoded]]
    asked: list[int]
    first: list[int]
    places: list[tuple[list[int], Tensor]]
    features: Tensor


def columns_of(method: FramedAdapter) -> Texts:
    """The columns that hold what the client's task asks about, one or two."""
    given = method.settings.text_column
    columns = (given,) if given else method.context.task.texts
    if len(columns) not in (1, 2):
        raise MethodError(
            f"{method.context.name}: frames: words needs a task that asks about one text or two, and"
            f" {method.context.task.name} reads {', '.join(columns) or 'columns that it does not name'};"
            " name the text's column as `text_column`"
        )
    return columns


def practice_texts(lines: list[str], pairs: bool = False, seed: int = 0) -> list[Texts]:
    """The public texts and others made of their words: new company for every word, and for pairs every kind of overlap.

    Args:
        lines: a text each, or two with a tab between them.
    """
    rng = random.Random(seed)
    singles = [text.strip() for line in lines for text in line.split("\t")]
    counts = vocabulary(singles)
    # Added up once: thousands of words would be added up again for every bag.
    known, weights = list(counts), list(accumulate(count**0.5 for count in counts.values()))

    def bag(size: int) -> list[str]:
        return rng.choices(known, cum_weights=weights, k=size)

    if pairs:
        return _practice_pairs(lines, singles, bag, rng)
    sizes = (rng.randint(2, 14) for _ in range(int(1.3 * len(singles))))
    bags = [" ".join(bag(size)) for size in sizes]
    joined = [" ".join(rng.sample(singles, 2)) for _ in range(int(0.8 * len(singles)))]
    texts = [*singles, *bags, *joined]
    rng.shuffle(texts)
    return [(text,) for text in texts]


def _practice_pairs(
    lines: list[str], singles: list[str], bag: Callable[[int], list[str]], rng: random.Random
) -> list[Texts]:
    """Pairs as they are; with a strange second text; and with a second text that has some share of the first one's words."""
    whole = [tuple(t.strip() for t in line.split("\t")[:2]) for line in lines if "\t" in line]
    strange = [(rng.choice(singles), rng.choice(singles)) for _ in range(len(singles) // 3)]
    mixed = []
    for _ in range(len(singles) // 2):
        first = rng.choice(singles)
        held = [first[a:b] for a, b in spans(first)]
        size, share = rng.randint(3, 14), rng.random()
        words = [rng.choice(held) if held and rng.random() < share else bag(1)[0] for _ in range(size)]
        mixed.append((first, " ".join(words)))
    texts = [*whole, *strange, *mixed]
    rng.shuffle(texts)
    return texts


def question_of(method: FramedAdapter, texts: Texts) -> Example:
    """How the task asks about the texts: its prompt, and its labels as the options."""
    return method.context.task.ask(dict(zip(columns_of(method), texts, strict=True)))


def asked(
    method: FramedAdapter, texts: list[Texts], options: tuple[str, ...]
) -> tuple[list[Example], list[list[Encoded]], list[int], list[int]]:
    """The texts as the task asks about them, their rows for each label, where answers begin, and each label's first token.

    Raises:
        MethodError: if two labels begin with the same token, which is what practice tells them apart by.
    """
    context = method.context
    longest = context.config.max_length or context.base.context
    examples = [question_of(method, text) for text in texts]
    rows = [
        encode(
            [replace(e, answer=o, options=()) for e in examples], context.tokenizer, max_length=longest, truncate=True
        )
        for o in options
    ]
    borders = [next(i for i, label in enumerate(row.labels) if label != -100) for row in rows[0]]
    first = [row[0].labels[borders[0]] for row in rows]
    if len(set(first)) < len(first):
        raise MethodError(
            f"{context.name}: frames: words needs labels that begin with different tokens, and this model's tokenizer begins"
            f" two of these alike: {', '.join(o.strip() for o in options)}; write them in other words"
        )
    return examples, rows, borders, first


def make_pool(method: FramedAdapter, codes: TextCodes, texts: list[Texts], options: tuple[str, ...]) -> Pool:
    """All that practice reads: the texts with every label, where their words stand, and what they say."""
    examples, rows, borders, first = asked(method, texts, options)
    context = method.context
    encoded = context.tokenizer([e.prompt for e in examples], add_special_tokens=False, return_offsets_mapping=True)
    places: list[tuple[list[int], Tensor]] = []
    for example, text, border, ids, offsets in zip(
        examples, texts, borders, encoded["input_ids"], encoded["offset_mapping"], strict=True
    ):
        shift = border - len(ids)  # tokens before the prompt; negative where the text was cut
        ends = {end: i + shift for i, (_, end) in enumerate(offsets)}
        starts = _starts(example.prompt, text)
        found = [(ends[starts[n] + end], code) for n, end, code in codes.read(text) if starts and starts[n] + end in ends]  # fmt: skip
        found = [(place, code) for place, code in found if place >= 0] if shift >= 0 else []
        read = torch.stack([code for _, code in found]) if found else torch.zeros(0, codes.rank)
        places.append(([place for place, _ in found], read))
    return Pool([e.prompt for e in examples], rows, borders, first, places, codes.features(texts))


def _starts(prompt: str, texts: Texts) -> list[int]:
    """Where the texts begin in the prompt, one after the other; nothing if one cannot be found."""
    found, begin = [], 0
    for text in texts:
        begin = prompt.find(text, begin)
        if begin < 0:
            return []
        found.append(begin)
        begin += len(text)
    return found
