"""Text the project generates: short word problems, programs, reviews and comparisons.

The small zoo models are pretrained on public-domain books and on this text, so that they know what a
question and its answer look like, what the three operations do, and what a good or bad review says. The
trade words of the demo (``tasks/demo.py``) never occur here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from h2tune.zoo import lexicon as lx

OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
}
_VERBS = {"+": lx.GAIN, "-": lx.LOSE, "*": lx.SCALE}
_MEANINGS = {"+": ("add", "get", "gain"), "-": ("lose", "remove", "drop"), "*": ("multiply", "copy", "repeat")}


@dataclass(frozen=True)
class Problem:
    """A story with two numbers and the operation that its verb stands for."""

    story: str
    a: int
    b: int
    operation: str

    @property
    def answer(self) -> int:
        return OPERATIONS[self.operation](self.a, self.b)


def numbers(rng: random.Random) -> tuple[int, int]:
    """Operands for which all three operations give different, positive results."""
    return rng.randint(6, 12), rng.randint(2, 5)


def tell(rng: random.Random, verb: str, a: int, b: int) -> str:
    """One of the ways a story says that somebody has ``a`` things and does ``verb`` with ``b``."""
    name, thing = rng.choice(lx.NAMES), rng.choice(lx.THINGS)
    openings = (
        f"{name} has {a} {thing}.",
        f"There are {a} {thing} in the {rng.choice(lx.PLACES)}.",
        f"{name} starts with {a} {thing}.",
        f"At first {name} holds {a} {thing}.",
    )
    events = (
        f"{name} {verb} {b}.",
        f"Then {name} {verb} {b}.",
        f"In the {rng.choice(lx.PLACES)} {name} {verb} {b}.",
        f"The {rng.choice(lx.OWNERS)} {verb} {b}.",
    )
    return f"{rng.choice(openings)} {rng.choice(events)} How many {thing} now?"


def fill_in(p: Problem, rng: random.Random) -> tuple[str, str]:
    """Prompt and answer of the number format."""
    return f"Problem: {p.story}\nAnswer:", f" {p.answer}"


def choice(p: Problem, rng: random.Random) -> tuple[str, str]:
    """Prompt and answer of the format that lists the three results; the answer is one of them."""
    options = [f(p.a, p.b) for f in OPERATIONS.values()]
    rng.shuffle(options)
    return f"Problem: {p.story}\nChoices: {', '.join(map(str, options))}\nAnswer:", f" {p.answer}"


def program(p: Problem, rng: random.Random) -> tuple[str, str]:
    """Prompt and answer of the format whose answer is a line of Python."""
    return f"Problem: {p.story}\nProgram:", f" answer = {p.a} {p.operation} {p.b}"


FORMATS: dict[str, Callable[[Problem, random.Random], tuple[str, str]]] = {
    "fill": fill_in,
    "choice": choice,
    "program": program,
}


def invent(rng: random.Random, syllables: int = 2) -> str:
    """A word that is in no dictionary."""
    return "".join(
        rng.choice(lx.ONSETS) + rng.choice(lx.VOWELS) + (rng.choice(lx.CODAS) if i == syllables - 1 else "")
        for i in range(syllables)
    )


def _problem(rng: random.Random) -> str:
    a, b = numbers(rng)
    operation = rng.choice("+-*")
    prefix = ""
    verb = rng.choice(_VERBS[operation])
    if rng.random() < 0.25:
        # A word explained on the spot: reading it takes all of its tokens, which trade words need too.
        stem = invent(rng)
        verb = stem + "s"
        prefix = f"To {stem} is to {rng.choice(_MEANINGS[operation])}. "
    p = Problem(prefix + tell(rng, verb, a, b), a, b, operation)
    prompt, answer = FORMATS[rng.choice(tuple(FORMATS))](p, rng)
    return prompt + answer


def _sums(rng: random.Random) -> str:
    rows = []
    for _ in range(rng.randint(2, 6)):
        a, b = (numbers(rng)) if rng.random() < 0.6 else (rng.randint(0, 30), rng.randint(0, 12))
        operation = rng.choice("+-*")
        if operation == "*" and a > 12:
            operation = "-"
        rows.append(f"{a} {operation} {b} = {OPERATIONS[operation](a, b)}")
    return "\n".join(rows)


def _code(rng: random.Random) -> str:
    a, b = numbers(rng)
    operation = rng.choice("+-*")
    x, y = rng.sample(["n0", "n1", "x", "y", "total", "count", "price"], 2)
    result = OPERATIONS[operation](a, b)
    return f"{x} = {a}\n{y} = {b}\nanswer = {x} {operation} {y}\nprint(answer)\n# {result}"


def _review(rng: random.Random) -> str:
    good = rng.random() < 0.5
    words = lx.GOOD if good else lx.BAD
    work, other = rng.sample(lx.WORKS, 2)
    one, two = rng.sample(words, 2)
    contrary = rng.choice(lx.BAD if good else lx.GOOD)
    said = rng.choice(
        (
            f"the {work} is {rng.choice(lx.DEGREES)} {one} and {two}",
            f"a {one} {work} with a {two} {other}",
            f"{one} , {two} {work}",
            f"what a {one} {work}",
            f"the {other} is {contrary} , but the {work} is {one} and {two}",
            f"the {work} is not {contrary} at all , it is {one}",
            f"I found this {work} {rng.choice(lx.DEGREES)} {one}",
            f"nothing here is {contrary} ; a {two} {other}",
        )
    )
    return f"Review: {said}\nVerdict: {'good' if good else 'bad'}"


def _event(rng: random.Random) -> tuple[str, str, str, str]:
    return rng.choice(lx.OWNERS), rng.choice(lx.DEEDS), rng.choice(lx.THINGS), rng.choice(lx.PLACES)


def _question(who: str, deed: str, thing: str, place: str, rng: random.Random) -> str:
    return rng.choice(
        (
            f"Who {deed} the {thing} in the {place}?",
            f"Was it in the {place} that the {who} {deed} the {thing}?",
            f"What did the {who} do with the {thing} in the {place}?",
            f"Why were the {thing} {deed} by the {who} in the {place}?",
        )
    )


def _same_question(rng: random.Random) -> str:
    event = _event(rng)
    same = rng.random() < 0.5
    other = event if same else (*event[:2], rng.choice(lx.THINGS), rng.choice(lx.PLACES))
    first, second = _question(*event, rng), _question(*other, rng)
    return f"First: {first}\nSecond: {second}\nSame: {'yes' if event == other else 'no'}"


def _answered(rng: random.Random) -> str:
    who, deed, thing, place = _event(rng)
    held = rng.random() < 0.5
    told = (
        (who, deed, thing, place)
        if held
        else (rng.choice(lx.OWNERS), rng.choice(lx.DEEDS), rng.choice(lx.THINGS), place)
    )
    name = rng.choice(lx.NAMES)
    sentence = f"{name} says that the {told[0]} {told[1]} the {told[2]} in the {told[3]}."
    return f"Question: Who {deed} the {thing}?\nSentence: {sentence}\nAnswered: {'yes' if told[1:3] == (deed, thing) else 'no'}"


_KINDS: tuple[tuple[Callable[[random.Random], str], float], ...] = (
    (_problem, 0.6),
    (_sums, 0.08),
    (_code, 0.07),
    (_review, 0.1),
    (_same_question, 0.08),
    (_answered, 0.07),
)


def generate(seed: int) -> Iterator[str]:
    """Endless generated documents of one or a few lines each; equal seeds give equal text."""
    rng = random.Random(seed)
    kinds, weights = zip(*_KINDS, strict=True)
    while True:
        yield rng.choices(kinds, weights)[0](rng)
