"""How a user's own task reads a row: by the prompt that is given, or by the usual columns.

Text reaches the model to the character: what stands between prompt and answer is ``join:``, by default nothing. Only
the prompts that this package writes itself ("Question: ...") put a space before the answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from h2tune.tasks.cells import cell, optional
from h2tune.tasks.chats import ask_chat, is_chat, read_turns, solve_chat
from h2tune.tasks.example import Example, Form, Row, RowError
from h2tune.tasks.rows import LETTERS, chat_forms, composed, fields, fill, fold, split_options, whole_field

Solve = Callable[[str, Example], Example]

# Read in this order when a mapping of kind generate says no prompt.
_USUAL = (("prompt", "answer"), ("prompt", "completion"), ("prompt", "response"), ("question", "answer"),
          ("instruction", "output"), ("instruction", "response"))  # fmt: skip


def own_forms(spec: Mapping[str, Any], solve: Solve) -> list[Form]:
    """The sets of columns that a task's mapping reads."""
    join = spec.get("join", "")
    if "prompt" not in spec:
        usual = [_usual_form(question, answer, join, solve, "labels" in spec) for question, answer in _USUAL]
        return [*chat_forms(solve), *usual]
    prompt, answer, options = spec["prompt"], spec["answer"], spec.get("options")
    whole = spec["kind"] == "classify"

    def ask(row: Row) -> Example:
        chosen = _options(options, row, join) if options is not None else ()
        if (column := whole_field(prompt)) and is_chat(row.get(column)):
            return replace(ask_chat(row, column, whole=whole), options=chosen)
        return Example(_filled(prompt, row), "", "", chosen, lead=join)

    def answered(row: Row, example: Example) -> Example:
        column = whole_field(answer)
        if column is None or not is_chat(row.get(column)):
            return solve(_filled(answer, row), example)
        asked = whole_field(prompt)
        if example.messages and asked:
            return solve_chat(row, (asked,) if asked == column else (asked, column), solve, example)
        return solve(_last_turn(row, column), example)

    said = {"choice": "{option}", "classify": "{label}"}.get(spec["kind"], "{label}" if "labels" in spec else answer)
    shown = options if isinstance(options, str) else tuple(map(str, options or ()))
    return [Form((), (), ask, answered, prompt, said if whole else join + said, said != answer, options=shown)]


def _filled(template: str, row: Row) -> str:
    for column in fields(template):
        if is_chat(row.get(column)):
            raise RowError(
                f"column {column!r} holds a list of chat turns; write '{{{column}}}' alone, so that it goes through"
                " the chat template"
            )
    return fill(template, row)


def _usual_form(question: str, answer: str, join: str, solve: Solve, labelled: bool) -> Form:
    def ask(row: Row) -> Example:
        if question == "prompt":
            return (
                ask_chat(row, question) if is_chat(row[question]) else Example(cell(row, question), "", "", lead=join)
            )
        text = cell(row, question)
        if question == "instruction" and (more := optional(row, "input")):
            text += f"\n{more}"
        return Example(f"Question: {text}\nAnswer:", "", "")

    def answered(row: Row, example: Example) -> Example:
        if not is_chat(row[answer]):
            return solve(cell(row, answer), example)
        if example.messages:
            return solve_chat(row, (question, answer), solve, example)
        return solve(_last_turn(row, answer), example)

    said = "{label}" if labelled else f"{{{answer}}}"
    if question == "prompt":
        return Form((question,), (answer,), ask, answered, "{prompt}", join + said, labelled)
    more, note = ("", "")
    if question == "instruction":
        more, note = "\n{input}", "The line {input} is left out where a row has none."
    return Form(
        (question,), (answer,), ask, answered, f"Question: {{{question}}}{more}\nAnswer:", f" {said}", labelled, note
    )


def _last_turn(row: Row, column: str) -> str:
    """The text of an answer that stands alone as a chat of one turn."""
    turns = read_turns(row[column], column)
    if len(turns) != 1 or turns[0]["role"] != "assistant":
        raise RowError(f"column {column!r} should hold one assistant turn after a prompt that is text")
    return str(turns[0]["content"])


# Nothing but a letter; a letter that is set off at the start; or one that "answer is" names at the end. "Vitamin C" names none.
_LETTER = re.compile(
    r"\A\W*(?:(?:the\s+)?(?:correct\s+)?(?:answer|option|choice)(?:\s+is|\s*:)?\s+)?\(?([a-z])\)?\W*\Z"
    r"|\A\s*\(([a-z])\)|\A\s*([a-z])[).:]\s"
    r"|\banswer(?:\s+is|\s*:)\s*\(?([a-z])\)?\W*\Z",
    re.IGNORECASE,
)


def pick_option(answer: str, example: Example) -> Example:
    """The option that an answer is: by its text, whatever its case, or by its letter.

    Raises:
        RowError: naming the options.
    """
    exact = [option for option in example.options if option.removeprefix(example.lead) == answer]
    for option in exact or example.options:
        if composed(option.strip()) == composed(answer.strip()):
            return replace(example, answer=option, gold=option.strip())
    alike = [option for option in example.options if fold(option) == fold(answer)]
    named = _LETTER.search(answer)
    letter = next(group for group in named.groups() if group).upper() if named else ""
    if len(alike) == 1:
        found = alike[0]
    elif letter and letter in LETTERS[: len(example.options)]:
        found = example.options[LETTERS.index(letter)]
    else:
        shown = ", ".join(option.strip() for option in example.options)
        raise RowError(f"the answer {answer[-40:].strip()!r} is none of the options ({shown}), nor the letter of one")
    return replace(example, answer=found, gold=found.strip())


def _options(options: Any, row: Row, join: str) -> tuple[str, ...]:
    """Options from one column that holds them all (``"{choices}"``), or from a list of texts and templates."""
    if isinstance(options, str):
        names = fields(options)
        if len(names) != 1:
            raise RowError(f"options: {options!r} should name one column, or be a list")
        if row.get(names[0]) is None:
            cell(row, names[0])
        texts = split_options(row[names[0]])
    else:
        texts = [fill(str(option), row) for option in options]
    if len(texts) < 2 or len(set(texts)) < len(texts):
        raise RowError(f"options should be two or more different ones, not {texts}")
    return tuple(join + text for text in texts)
