"""How a user's own task reads a row: by the prompt that is given, or by the usual columns.

Text reaches the model to the character: what stands between prompt and answer is ``join:``, by default nothing. Only
the prompts that this package writes itself ("Question: ...") put a space before the answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from h2tune.tasks.cells import cell, optional
from h2tune.tasks.chats import ask_chat, is_chat, read_turns, solve_chat
from h2tune.tasks.example import Example, Form, Row, RowError
from h2tune.tasks.options import different, meant, split_options, without_letter, written_letters
from h2tune.tasks.rows import chat_forms, composed, fields, fill, fold, whole_field

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
        chosen, letters = _options(options, row, join) if options is not None else ((), "")
        if (column := whole_field(prompt)) and is_chat(row.get(column)):
            return replace(ask_chat(row, column, whole=whole), options=chosen, letters=letters)
        return Example(_filled(prompt, row), "", "", chosen, letters, lead=join)

    def answered(row: Row, example: Example) -> Example:
        column = whole_field(answer)
        if column is None or not is_chat(row.get(column)):
            return solve(_filled(answer, row), example)
        asked = whole_field(prompt)
        if example.messages and asked:
            return solve_chat(row, (asked,) if asked == column else (asked, column), solve, example)
        return solve(_last_turn(row, column), example)

    shown = options if isinstance(options, str) else tuple(map(str, options or ()))
    listed = [options] if isinstance(options, str) else [str(option) for option in options or ()]
    offers = tuple(column for text in listed for column in fields(text))
    said = {"choice": "{option}", "classify": "{label}"}.get(spec["kind"], "{label}" if "labels" in spec else answer)
    said, chosen = (said if whole else join + said), said != answer
    more = (*fields(prompt), *offers)
    return [
        Form(
            (), (), ask, answered, prompt, said, chosen, options=shown, more=more, gives=tuple(fields(answer)),
            offers=offers,
        )
    ]  # fmt: skip


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
        (question,), (answer,), ask, answered, f"Question: {{{question}}}{more}\nAnswer:", f" {said}", labelled, note,
        more=("input",) if more else (),
    )  # fmt: skip


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

    A text goes before a letter. Letters are those that the row writes before its options, whatever their order; where it
    writes none, the first is A.

    Raises:
        RowError: naming the options.
    """
    texts = [option.removeprefix(example.lead) for option in example.options]
    named = _LETTER.search(answer)
    letter = next(group for group in named.groups() if group).upper() if named else ""
    if (found := _by_text(answer, texts)) is None and letter:
        written = written_letters(texts)
        found = meant(letter, example.letters or (written if different(written) else ""), len(texts))
    if found is None and not letter:
        found = _by_text(answer, [without_letter(text) for text in texts])
    if found is None:
        shown = ", ".join(option.strip() for option in example.options)
        raise RowError(f"the answer {answer[-40:].strip()!r} is none of the options ({shown}), nor the letter of one")
    return replace(example, answer=example.options[found], gold=example.options[found].strip())


def _by_text(answer: str, texts: Sequence[str]) -> int | None:
    """Which of the options an answer is to the character, else the only one that it is up to case and spaces."""
    same = [i for i, text in enumerate(texts) if text == answer]
    same += [i for i, text in enumerate(texts) if composed(text.strip()) == composed(answer.strip())]
    alike = [i for i, text in enumerate(texts) if fold(text) == fold(answer)]
    return same[0] if same else alike[0] if len(alike) == 1 else None


def _options(options: Any, row: Row, join: str) -> tuple[tuple[str, ...], str]:
    """Options from one column that holds them all (``"{choices}"``), or from a list of texts and templates.

    With the letters that were written before them and are not part of them.
    """
    letters = ""
    if isinstance(options, str):
        names = fields(options)
        if len(names) != 1:
            raise RowError(f"options: {options!r} should name one column, or be a list")
        if row.get(names[0]) is None:
            cell(row, names[0])
        texts, letters = split_options(row[names[0]])
    else:
        texts = [fill(str(option), row) for option in options]
    if len(texts) < 2 or len(set(texts)) < len(texts):
        raise RowError(f"options should be two or more different ones, not {texts}")
    return tuple(join + text for text in texts), letters
