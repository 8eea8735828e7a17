"""Right or wrong: numbers compared as numbers, labels as whole words, letters as letters, programs by value.

The released code of H2Tune compared strings (45 was not 45.0), looked for labels anywhere in the text ("no" was
found in "know"), and took the article "a" for the option A. Every rule here has a test against one of these.
"""

from __future__ import annotations

import ast
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from itertools import islice

from h2tune.tasks.example import Example, RowError
from h2tune.tasks.options import LETTERS
from h2tune.tasks.rows import fold
from h2tune.tasks.sandbox import run_programs

# Every repetition below is bounded or meets no character twice: texts come from models and from other participants, and a
# search that goes back over 16 kB of commas or empty lines takes seconds.
_DIGITS = r"(?:(?:\d{1,3}(?:,\d{3}){1,20}(?![\d,])|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?"
# A minus belongs to the number only where it cannot be a subtraction: "16-3" ends in 3, "= -3" in -3.
_NUMBER = re.compile(rf"(?:(?<![\w.)\]%])[-\u2212]\s?)?(?:\$\s?-?)?{_DIGITS}(?:\s*/\s*{_DIGITS})?")
_TRIGGER = re.compile(r"\banswer\s+is\b[\s:*]*|####\s*", re.IGNORECASE)
_NEXT_QUESTION = re.compile(
    r"\n[^\S\n]*(?:(?:Question|Problem|Review|First|Instruction|USER|ASSISTANT)\s*+\d*:"
    r"|###(?!#)\s*(?i:Instruction|Question|Problem|Input|Review|Response|User|Human|Assistant)\b)"
)
_ASKED_ANEW = re.compile(
    r"\n[^\S\n]*(?:###\s*)?(?:Answer|Program|Verdict|Same|Answered|Response|ASSISTANT)\s*:", re.IGNORECASE
)
_FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)


def own_part(text: str, holds_answer: Callable[[str], bool] = bool) -> str:
    """A generated text up to where the model goes on to invent the next question.

    A line like "Problem: find 3*4." may also be a step of an answer. It begins the next question where an answer has
    been stated before it, or where what is before it may be one and nothing that follows states another for this question.

    Args:
        holds_answer: whether a text may be a whole answer; by default every text that is not empty.
    """
    text = text.strip()
    for marker in islice(_NEXT_QUESTION.finditer(text), 8):
        before, after = text[: marker.start()].strip(), text[marker.start() :]
        if _stated(before, holds_answer):
            return before
        stated = _stated(after, holds_answer)
        if holds_answer(before) and (stated is None or _ASKED_ANEW.search(after, 0, stated.start() + 1)):
            return before
    return text


def _stated(text: str, holds_answer: Callable[[str], bool]) -> re.Match[str] | None:
    """The first "The answer is" of a text behind which an answer stands."""
    return next((at for at in islice(_TRIGGER.finditer(text), 8) if holds_answer(text[at.end() :])), None)


def parse_number(text: str) -> float | None:
    """The value of a text that is one number: ``$1,000.``, ``45%``, ``1/3``, ``-2.5e3``; otherwise None."""
    match = _NUMBER.fullmatch(text.strip().rstrip(".% ").strip())
    if match is None:
        return None
    over, _, under = re.sub(r"[$,\s]", "", match[0]).replace("\u2212", "-").partition("/")
    divisor = float(under or 1)
    value = float(over) / divisor if divisor else math.inf
    return value if math.isfinite(value) else None


def same_number(a: float, b: float) -> bool:
    """Whole numbers must be equal; others agree to one part in 10,000 (answers are rounded when written down)."""
    if a == round(a) and b == round(b):
        return a == b
    return math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-9)


def final_number(text: str, *, first_line: bool = False) -> float | None:
    """The number that a text ends on: after its last "The answer is", else the last one of the first paragraph.

    first_line: look for it in the first line only, for tasks whose whole answer is one line.
    """
    found = _final_match(text, first_line)
    return parse_number(found[0]) if found else None


def _final_match(text: str, first_line: bool = False) -> re.Match[str] | None:
    """Where that number stands."""
    triggers = list(_TRIGGER.finditer(text))
    if triggers:
        start = triggers[-1].end()
        first = _NUMBER.search(text, start)
        return _standing(text, first.start(), _line_end(text, first.end()))[0] if first else None
    start = len(text) - len(text.lstrip())
    end = text.find("\n" if first_line else "\n\n", start)
    found = None
    for found in _NUMBER.finditer(text, start, end if end >= 0 else len(text)):
        pass
    return found


def _line_end(text: str, start: int) -> int:
    end = text.find("\n", start)
    return end if end >= 0 else len(text)


_EQUALS = re.compile(r"[=\u2248]|\bequals\b")
# Between two numbers: what makes them one expression, and what shows that they are not.
_OPERATOR = re.compile(
    r"[-+*/^(\u2212\u2013\u00d7\u00f7\u00b7\u22c5]|\bx\b|\b(?:of|times|plus|minus)\b|\\(?:times|cdot|div)"
)
_STOP = re.compile(r"\n|[.,;:!?](?:\s|\Z)")


def _standing(text: str, start: int, end: int) -> list[re.Match[str]]:
    """The numbers of a stretch of text that are no left side of an equation: the 12 of ``3 + 9 = 12``."""
    found: list[re.Match[str]] = []
    left: list[re.Match[str]] = []  # an expression so far; an equals sign behind it makes it a left side
    for number in _NUMBER.finditer(text, start, end):
        # The first character of a number may be the minus of a subtraction ("9 -3").
        gap = text[left[-1].end() : number.start() + 1] if left else ""
        if len(left) > 1 and _EQUALS.search(gap) and not _STOP.search(gap):
            left = []
        elif not _OPERATOR.search(gap) or _EQUALS.search(gap) or _STOP.search(gap):
            found, left = found + left, []
        left.append(number)
    return found + left


# What stands before a number and makes it a part of something else: 0,5 and 1 000, 12:30, 3 1/2, 10^6, 5-6, 2*3, 5 km2, a fraction of LaTeX.
_PART_OF_MORE = re.compile(r"(?:\d ?[-+*/\u2212\u2013\u00d7\u00f7] ?|\d[ ,.:]?|\^|\d ?[A-Za-z]+|frac\{|\}\{)\Z")
_SCALE = r"(?i:hundred|thousand|million|billion|trillion|dozen|lakh|crore)(?:th)?s?\b"
_GOES_ON = re.compile(
    r"[ ,.:^/]?\d|\s?[-+*/^\u2212\u2013\u00d7\u00f7]\s?[$(]?\d|\s?x\s?\d"
    rf"|[\s-]?{_SCALE}|(?:[kKM]|[bm]n)\b|\s+and\s+(?:a|one)\s+(?:half|third|quarter)\b",
)


def reference_number(answer: str) -> float:
    """The number that a reference answer ends on.

    Raises:
        RowError: there is none, or it may mean another one: ``0,5`` would be 5, ``1 000`` 0, and ``12 in 3 boxes`` 3.
    """
    match = _final_match(answer)
    number = parse_number(match[0]) if match else None
    if match is None or number is None:
        raise RowError(f"no number in the answer {answer[-60:]!r}")
    before, after = answer[: match.start()], answer[match.end() :]
    stop = match[0].startswith(".") and before[-1:].isalpha()  # Rs.5
    if stop or _PART_OF_MORE.search(before) or _GOES_ON.match(after):
        raise RowError(
            f"the answer {answer[-60:]!r} would be read as {number_text(number)}; write numbers as 0.5, 1000, 7/2 or 1e6,"
            " and units without digits"
        )
    others = [other for other in _beside(answer, match) if other is None or not same_number(other, number)]
    if others:
        raise RowError(
            f"the answer {answer[-60:]!r} holds several numbers and would be read as {number_text(number)}; write the one"
            " that counts alone after 'The answer is'"
        )
    return number


def _beside(answer: str, match: re.Match[str]) -> list[float | None]:
    """The other numbers that may be meant: those of the same line, behind "The answer is" if that is there."""
    triggers = [trigger.end() for trigger in _TRIGGER.finditer(answer)]
    start = max([answer.rfind("\n", 0, match.start()) + 1, *triggers])
    standing = _standing(answer, start, _line_end(answer, match.end()))
    equals = list(_EQUALS.finditer(answer, start, match.start()))
    if not triggers and equals and not re.search(r"\d|[.,;:!?]\s", answer[equals[-1].end() : match.start()]):
        # A line that ends in an equation ends in its result: "for 3 boxes she pays 2 * 6 = 12".
        standing = [other for other in standing if other.start() > match.start()]
    return [parse_number(other[0]) for other in standing]


def number_text(number: float) -> str:
    """A number as short text that reads back as the same number."""
    short = f"{number:.15g}"
    return short if float(short) == number else repr(number)


def score_number(example: Example, text: str) -> bool:
    """Whether the text ends on the gold number."""
    gold = parse_number(example.gold)
    own = own_part(text, lambda part: _NUMBER.search(part) is not None)
    found = final_number(own, first_line="\n" not in example.answer.strip())
    return gold is not None and found is not None and same_number(found, gold)


def _words(text: str, exact: bool = False) -> list[str]:
    """Words with their combining marks, which carry the vowels of many scripts, in Unicode's form C."""
    text = _composed(text) if exact else _composed(_composed(text).casefold())
    words = [""]
    for char in text:
        if char.isalnum() or char == "_" or (words[-1] and unicodedata.category(char) in ("Mn", "Mc")):
            words[-1] += char
        elif words[-1]:
            words.append("")
    return [word for word in words if word]


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def leading_label(text: str, labels: tuple[str, ...]) -> str | None:
    """The label that the text begins with, as whole words whatever their case; the longest where several do.

    Labels that differ in case only are compared with their case, and labels that signs tell apart by their characters.
    """
    text = re.sub(r"^\W*(?:the\s+)?answer\s+is\b[\s:]*", "", text.strip(), flags=re.IGNORECASE)
    for exact in (False, True):
        known = {label: _words(label, exact) for label in labels}
        if all(known.values()) and len({tuple(words) for words in known.values()}) == len(labels):
            words = _words(text, exact)
            return max((label for label, own in known.items() if words[: len(own)] == own), key=len, default=None)
    text = _composed(text)
    return max((label for label in labels if text.startswith(_composed(label.strip()))), key=len, default=None)


def score_label(labels: tuple[str, ...]) -> Callable[[Example, str], bool]:
    """A scorer for answers that are one of some labels."""

    def score(example: Example, text: str) -> bool:
        return leading_label(text, labels) == example.gold

    return score


def score_text(example: Example, text: str) -> bool:
    """Equal up to case, spacing and the final stop; an answer of one line is compared with the first line."""
    if "\n" not in example.gold.strip():
        text = text.strip().split("\n")[0]
    found, gold = (fold(_composed(part)) for part in (text, example.gold))
    # An answer that is nothing but stops keeps them: no empty text is right.
    return (found.rstrip(". ") or found) == (gold.rstrip(". ") or gold)


def find_letter(text: str, letters: str = "ABCDE") -> str | None:
    """The option that an answer names: after "answer is", else at its start, in brackets, or standing alone.

    A capital A before a lower-case word is an article and never counts, nor does a small a, unless in brackets; nor
    does the I of "I think".
    """
    text = text.strip()
    small, verb = letters.lower(), r"(?:is|was|because|since|and|or)\b"
    alone = rf"(?!A\s+(?!{verb})[a-z])(?!I\s+(?!(?:is|because|since|or)\b)[a-z])([{letters}])(?![\w'\u2019])"
    named = rf"\(?(?:{alone}|(?!a\s+(?!{verb})\w)([{small}])\b(?!['\u2019]))"
    # A named option may be a small letter; the last "answer is" is the conclusion.
    conclusions = re.findall(rf"\banswer(?:\s+is|\s*:)[\s:*]*(?:(?:option|choice)\s+)?{named}", text)
    if conclusions:
        return "".join(conclusions[-1]).upper()
    for pattern in (
        rf"\A\W*{alone}",
        rf"\b(?:option|choice|answer)\s+{named}",
        rf"\(\s*([{letters}{small}])\s*\)",
        rf"(?<![\w'\u2019]){alone}\)",
        rf"(?<![\w'\u2019]){alone}",
    ):
        found = re.search(pattern, text)
        if found:
            return next(group for group in found.groups() if group).upper()
    return None


def answer_letter(answer: str, letters: str = "ABCDE") -> str | None:
    """The option that a reference answer names: ``c`` and a rationale ending in C both count."""
    letter = answer.strip("() .\n").upper()
    found = letter if len(letter) == 1 else find_letter(answer, letters)
    return found if found and found in letters else None


def score_choice(example: Example, text: str) -> bool:
    """Whether the text names the right option: by its letter where options are letters, else by its content."""
    names = tuple(option.strip() for option in example.options)
    if text.strip() in names:  # an option is that option, whatever numbers or other options stand in it
        return text.strip() == example.gold
    if not names or all(len(name) == 1 and name in LETTERS for name in names):
        letters = "".join(names) or "ABCDE"
        own = own_part(text, lambda part: find_letter(part, letters) is not None)
        return find_letter(own, letters) == example.gold
    if parse_number(example.gold) is not None:
        return score_number(example, text)
    return leading_label(text, names) == example.gold


def program_text(text: str, *, one_line: bool = False) -> str:
    """The program in a generated text: inside its fence if it has one, without what follows it.

    What cannot be parsed is cut off line by line, since models go on writing after a finished program.

    Args:
        one_line: its first line alone, where it stands in no fence.
    """
    fenced = _FENCE.search(text)
    body = fenced[1] if fenced else own_part(text)
    lines = body.strip().split("\n")[: 1 if one_line and not fenced else 60]
    for end in range(len(lines), 0, -1):
        source = "\n".join(lines[:end])
        try:
            ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        return source
    return ""


def reference_program(answer: str) -> str:
    """The program that a reference answer is, out of its fence if it has one; nothing else is cut off.

    A mistake in it is the user's to see: the lines before it may come to another value.
    """
    fenced = _FENCE.search(answer)
    return (fenced[1] if fenced else answer).strip()


def score_program(example: Example, text: str) -> bool:
    """Whether the program in the text, run in the sandbox, comes to the gold value."""
    return score_programs([example], [text])[0]


def score_line(example: Example, text: str) -> bool:
    """The same for tasks whose programs are one line, whatever a model goes on to write."""
    return score_programs([example], [text], one_line=True)[0]


def score_programs(examples: Sequence[Example], texts: Sequence[str], *, one_line: bool = False) -> list[bool]:
    """`score_program` of many; programs share a child process, whose start takes longer than most programs.

    Where the reference has one line, the first line of a text counts if the whole comes to no value.
    """
    sources = [program_text(text, one_line=one_line) for text in texts]
    references = [reference_program(example.answer) for example in examples]
    values = _values([*sources, *(own for own, example in zip(references, examples, strict=True) if not example.gold)])
    short = [
        source if source in values or "\n" in reference else program_text(text, one_line=True)
        for source, reference, text in zip(sources, references, texts, strict=True)
    ]
    values |= _values([source for source in short if source not in values])
    golds = [example.gold or values.get(own) for example, own in zip(examples, references, strict=True)]
    return [_same_value(values.get(source), gold) for source, gold in zip(short, golds, strict=True)]


def _values(sources: Sequence[str]) -> dict[str, str]:
    """What programs come to; those that come to nothing are left out."""
    wanted = list(dict.fromkeys(source for source in sources if source.strip()))
    values = zip(wanted, run_programs(wanted), strict=True) if wanted else ()
    return {source: value for source, value in values if value is not None}


def score_all(score: Callable[[Example, str], bool], examples: Sequence[Example], texts: Sequence[str]) -> list[bool]:
    """A task's ``score`` of many examples and texts."""
    if score in (score_program, score_line):
        return score_programs(examples, texts, one_line=score is score_line)
    return [score(example, text) for example, text in zip(examples, texts, strict=True)]


def _same_value(value: str | None, gold: str | None) -> bool:
    if value is None or gold is None:
        return False
    found, wanted = parse_number(value), parse_number(gold)
    if found is None or wanted is None:
        return value.strip() == gold.strip()
    return same_number(found, wanted)
