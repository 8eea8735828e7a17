"""The tasks that come ready, each with one prompt for training and testing and the column sets it reads.

Every preset also reads MathInstruct rows (``source``, ``instruction``, ``output``) or the rows of the authors'
JSON files (``task``, ``qestion``, ``answer``: the key is misspelt there), where such rows exist for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from h2tune.tasks import scoring
from h2tune.tasks.cells import optional, trimmed
from h2tune.tasks.example import Example, Form, Kind, Row, RowError, Task, TaskError
from h2tune.tasks.glue import GLUE, glue_task
from h2tune.tasks.options import LETTERS, TOO_MANY, different, meant, split_options
from h2tune.tasks.rows import asker, chat_forms, options_key, reader, spaced
from h2tune.tasks.sandbox import check_program, run_programs

# What the `task` and `source` columns of mixed files say about rows of each task.
_TASK_NAMES = {
    "gsm8k": "blank_fill",
    "aqua": "choice",
    "program": "program",
    "sst2": "ssc",
    "qqp": "spc",
    "qnli": "nli",
}
_TOLD_BY = ("task", "source")
_SOURCES = {"gsm8k": "CoT/gsm", "aqua": "CoT/aqua", "program": "PoT/"}
_WRITE_PROGRAM = re.compile(r"\s*Let's write a (?:Python )?program(?: to solve it)?\.?\s*$", re.IGNORECASE)
_CHOICES = re.compile(r"\s*Answer Choices:\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Preset:
    """A ready task: what it does by default, in which other ways it can be used, and how it is made."""

    kinds: tuple[Kind, ...]
    make: Callable[[str, Kind], Task]


def _belongs(name: str) -> Callable[[Row], bool]:
    """Rows of other tasks in a mixed file are passed over; rows that say nothing belong."""

    def accepts(row: Row) -> bool:
        task, source = row.get("task"), str(row.get("source", ""))
        if task in _TASK_NAMES.values() and task != _TASK_NAMES.get(name):
            return False
        return not re.search(r"\b[CP]oT/", source) or _SOURCES.get(name, "\0") in source

    return accepts


def _question(text: str, ending: str = "Answer") -> Example:
    return Example(f"Question: {text}\n{ending}:", "", "")


def _form(
    question: str, answer: str, solve: Callable[[str, Example], Example], ask: Callable[[str], Example], note: str = ""
) -> Form:
    return Form(
        (question,), (answer,), lambda row: ask(trimmed(row, question)), lambda row, e: solve(trimmed(row, answer), e),
        ask(f"{{{question}}}").prompt, f" {{{answer}}}", note=note,
    )  # fmt: skip


# Numbers.

_STEPS = "In the answer, what stands in <<>> is left out, and a new line with 'The answer is' replaces ####."
_SVAMP = (
    "{Body} is left out where it is empty. Where it does not end a sentence, a comma follows it, and {Question} begins"
    " with a small letter."
)


def _solve_number(answer: str, example: Example) -> Example:
    answer = re.sub(r"<<[^<>]*>>", "", answer)
    answer = re.sub(r"\s*####\s*", "\nThe answer is ", answer).strip()
    gold = scoring.number_text(scoring.reference_number(answer))
    solved = replace(example, answer=spaced(answer), gold=gold)
    if not scoring.score_number(solved, answer):
        raise RowError(
            f"the answer {answer[-60:]!r} would itself count as wrong: it is read up to a line that asks anew"
        )
    return solved


def _svamp_question(row: Row) -> Example:
    parts = [text for column in ("Body", "Question") if (text := optional(row, column).strip())]
    if not parts:
        raise RowError("columns 'Body' and 'Question' are empty" if "Body" in row else "column 'Question' is empty")
    if len(parts) == 2 and not parts[0].endswith((".", "?", "!")):
        # The body is the beginning of the sentence that the question ends.
        parts = [parts[0].rstrip(",") + ",", parts[1][0].lower() + parts[1][1:]]
    return _question(" ".join(parts))


def _bare_number(row: Row, example: Example) -> Example:
    return _solve_number(f"The answer is {trimmed(row, 'Answer')}", example)


def _gsm8k(name: str, kind: Kind) -> Task:
    forms = (
        _form("question", "answer", _solve_number, _question, _STEPS),
        Form(
            ("Question",),
            ("Answer",),
            _svamp_question,
            _bare_number,
            "Question: {Body} {Question}\nAnswer:",
            " The answer is {Answer}",
            note=_SVAMP,
            more=("Body",),
        ),
        _form("qestion", "answer", _solve_number, _question, _STEPS),
        _form("instruction", "output", _solve_number, _question, _STEPS),
        *chat_forms(_solve_number),
    )
    return Task(
        name=name, kind=kind, max_new_tokens=320, description="word problems with a number as the answer",
        read=reader(forms), ask=asker(forms), forms=forms, score=scoring.score_number, accepts=_belongs(name), told_by=_TOLD_BY,
    )  # fmt: skip


# Letters.


def _choice_prompt(question: str, options: list[str], written: str = "") -> Example:
    """Options with the letters that the row writes, whatever their order: answers and predictions mean those."""
    if len(options) > len(LETTERS):
        raise RowError(TOO_MANY)
    letters = written if written and different(written) else LETTERS[: len(options)]
    listed = " ".join(f"({letter}) {option}" for letter, option in zip(letters, options, strict=True))
    return Example(
        f"Question: {question}\nChoices: {listed}\nAnswer:", "", "", tuple(f" {x}" for x in letters), written,
        offered=options_key(options),
    )  # fmt: skip


def _written_choices(text: str) -> Example:
    question, *rest = _CHOICES.split(text, maxsplit=1)
    if not rest:
        raise RowError("the question has no 'Answer Choices: (A) ... (B) ...'")
    return _choice_prompt(question, *split_options(rest[0]))


def solve_letter(answer: str, example: Example) -> Example:
    """The letter that an answer names, checked against the options."""
    letters = "".join(option.strip() for option in example.options)
    letter = scoring.answer_letter(answer, letters)
    if letter is None:
        raise RowError(f"the answer {answer[-40:]!r} names none of the options {', '.join(letters)}")
    meant(letter, example.letters, len(letters))
    return replace(example, answer=f" {letter}", gold=letter)


def _letter_form(asks: tuple[str, ...], answer: str, ask: Callable[[Row], Example], question: str, note: str) -> Form:
    shown = _choice_prompt(question, ["{option A}", "{option B}"]).prompt
    options = "a letter for each option of the row: those that it writes, else A, B and so on"
    return Form(
        asks,
        (answer,),
        ask,
        lambda row, e: solve_letter(trimmed(row, answer), e),
        shown,
        " {letter}",
        True,
        note,
        options,
        offers=tuple(name for name in asks if name == "options"),
    )


def _options_form(question: str) -> Form:
    def ask(row: Row) -> Example:
        return _choice_prompt(trimmed(row, question), *split_options(row["options"]))

    note = "There are as many options as {options} holds."
    return _letter_form((question, "options"), "correct", ask, f"{{{question}}}", note)


def _written_form(column: str, answer: str) -> Form:
    note = f"Question and options stand in {{{column}}}, with 'Answer Choices:' between them."
    return _letter_form((column,), answer, lambda row: _written_choices(trimmed(row, column)), "{question}", note)


def _aqua(name: str, kind: Kind) -> Task:
    forms = (
        _options_form("question"),
        _options_form("Problem"),
        _written_form("qestion", "answer"),
        _written_form("instruction", "output"),
    )
    return Task(
        name=name, kind=kind, max_new_tokens=8, description="multiple choice, the answer is a letter",
        read=reader(forms), ask=asker(forms), forms=forms, score=scoring.score_choice, accepts=_belongs(name), told_by=_TOLD_BY,
    )  # fmt: skip


# Programs.

_REQUEST = "A request at its end to write a program is left out."


def _ask_program(text: str) -> Example:
    return _question(_WRITE_PROGRAM.sub("", text), "Program")


def _solve_program(answer: str, example: Example) -> Example:
    return replace(example, answer=spaced(answer))


def _solve_with_value(row: Row, example: Example) -> Example:
    return replace(_solve_program(trimmed(row, "output"), example), gold=trimmed(row, "value"))


def run_gold_programs(examples: list[Example]) -> list[Example | None]:
    """Fills in the value of every reference program that came without one; programs that fail are dropped."""
    missing = [i for i, example in enumerate(examples) if not example.gold]
    values = run_programs([scoring.reference_program(examples[i].answer) for i in missing])
    done: list[Example | None] = list(examples)
    for i, value in zip(missing, values, strict=True):
        done[i] = None if value is None else replace(examples[i], gold=value)
    return done


def why_no_value(example: Example) -> str:
    """Why the reference program of an example came to no value."""
    return check_program(scoring.reference_program(example.answer)) or (
        "it fails, takes too long, or neither sets 'answer' nor prints a value"
    )


def _program(name: str, kind: Kind) -> Task:
    forms = (
        Form(
            ("instruction",),
            ("output", "value"),
            lambda row: _ask_program(trimmed(row, "instruction")),
            _solve_with_value,
            "Question: {instruction}\nProgram:",
            " {output}",
            note=_REQUEST,
        ),
        _form("instruction", "output", _solve_program, _ask_program, _REQUEST),
        _form("qestion", "answer", _solve_program, _ask_program, _REQUEST),
        *chat_forms(_solve_program),
    )
    return Task(
        name=name, kind=kind, max_new_tokens=256, description="word problems answered by a short Python program",
        read=reader(forms), ask=asker(forms), forms=forms, score=scoring.score_program,
        accepts=_belongs(name), told_by=_TOLD_BY, finish=run_gold_programs,
    )  # fmt: skip


# The generated demo tasks: rows of tasks/demo.py, which bring their own prompts.


def _demo(name: str, kind: Kind) -> Task:
    scores = {
        "demo-fill": scoring.score_number,
        "demo-choice": scoring.score_choice,
        "demo-program": scoring.score_line,
    }

    def ask(row: Row) -> Example:
        options = tuple(spaced(str(option)) for option in row.get("options") or ())
        if name == "demo-choice" and len(options) < 2:
            raise RowError("needs a column 'options' with two or more options")
        return Example(trimmed(row, "prompt"), "", "", options)

    def solve(row: Row, example: Example) -> Example:
        return replace(example, answer=spaced(trimmed(row, "answer")), gold=trimmed(row, "gold"))

    said = " {option}" if kind == "choice" else " {answer}"
    forms = (
        Form(("prompt",), ("answer", "gold"), ask, solve, "{prompt}", said, kind == "choice", options="{options}",
             more=("options",), offers=("options",)),
    )  # fmt: skip
    return Task(
        name=name, kind=kind, max_new_tokens=24, description=f"generated word problems, {name.removeprefix('demo-')} format",
        read=reader(forms), ask=asker(forms), forms=forms, score=scores[name],
    )  # fmt: skip


def _glue(name: str, kind: Kind) -> Task:
    return replace(glue_task(name, kind), accepts=_belongs(name), told_by=_TOLD_BY)


PRESETS: dict[str, Preset] = {
    "gsm8k": Preset(("generate",), _gsm8k),
    "aqua": Preset(("choice", "generate"), _aqua),
    "program": Preset(("generate",), _program),
    **{name: Preset(("classify", "generate", "choice"), _glue) for name in GLUE},
    "demo-fill": Preset(("generate",), _demo),
    "demo-choice": Preset(("choice", "generate"), _demo),
    "demo-program": Preset(("generate",), _demo),
}


def preset_task(name: str, kind: Kind | None = None) -> Task:
    """The task of a preset, in its default kind or another that it can take."""
    preset = PRESETS[name]
    if kind is not None and kind not in preset.kinds:
        raise TaskError(f"task {name} cannot be of kind {kind!r}; it can be {' or '.join(preset.kinds)}")
    return preset.make(name, kind or preset.kinds[0])
