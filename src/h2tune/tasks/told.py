"""What is told of a trained task where h2tune is not: the prompt with columns in braces, the answer, what it is chosen from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from h2tune.tasks.cells import plain_text
from h2tune.tasks.chats import COLUMNS
from h2tune.tasks.custom import with_columns
from h2tune.tasks.example import Form, Task
from h2tune.tasks.read_by import ReadBy
from h2tune.tasks.rows import whole_field

_LAST = "{last turn of the assistant}"


@dataclass(frozen=True)
class TaskTexts:
    """The texts of a task.

    Attributes:
        prompt, answer: with columns in braces where their texts go.
        exact: whether the prompt is that text, and not a description of it.
        options: for ``choice``: the options, or the text that names their column.
        written: what the data hold for a label, where the task says it by a mapping.
        notes: sentences on what the texts cannot say.
    """

    prompt: str
    answer: str
    exact: bool = True
    options: str | tuple[str, ...] = ()
    written: Mapping[str, str] | None = None
    notes: tuple[str, ...] = ()


def task_texts(
    task: Task, spec: Any, columns: Mapping[str, str] | None, read_by: Sequence[ReadBy], *, template: bool
) -> TaskTexts:
    """What is told of a task.

    Args:
        columns: the file's names for columns that the task knows by others.
        read_by: how its training rows were read; most rows first.
        template: whether the tokenizer has a chat template.
    """
    forms = {form.name: form for form in with_columns(task, columns).forms}
    known = [one for one in read_by if one.form in forms]
    if not known and len(forms) == 1:
        known = [ReadBy(next(iter(forms)), False, 0)]
    if not known:
        return TaskTexts("the row's text as the task reads it; its columns are not known here",
                         "{label}" if task.labels else "{answer}", exact=False)  # fmt: skip
    first, form = known[0], forms[known[0].form]
    prompt, answer, exact, notes = _chat(form, task, template) if first.chat else (form.prompt, form.answer, True, [])
    notes += [form.note] if form.note and not first.chat else []
    options = form.options if task.kind == "choice" else ()
    written = _written(spec)
    notes += _choices(task, form, options, written)
    if others := known[1:]:
        names = "; ".join(f"{forms[o.form].name or 'a text'}{' (a chat)' if o.chat else ''}" for o in others)
        notes.append(f"{sum(o.rows for o in others)} of its training rows were read by other columns: {names}.")
    return TaskTexts(prompt, answer, exact, options, written, tuple(notes))


def _chat(form: Form, task: Task, template: bool) -> tuple[str, str, bool, list[str]]:
    """Prompt, answer, whether the prompt is that text, and notes, of a question that is a chat."""
    opened = task.kind != "classify"
    lead = "" if template or not opened else " "
    column = form.asks[0] if form.asks else whole_field(form.prompt)
    ends = (form.asks and form.asks[0] in COLUMNS) or (
        column is not None and whole_field(form.answer.strip()) == column
    )
    answer = lead + (_LAST if ends and opened else form.answer.lstrip())
    if template:
        return "the turns of a chat, through the tokenizer's chat template", answer, False, []
    note = "The line of role and content is written for every turn: the tokenizer has no chat template."
    return "{role}: {content}\n" + "assistant:" * opened, answer, True, [note]


def _written(spec: Any) -> Mapping[str, str] | None:
    if not isinstance(spec, Mapping) or "preset" in spec:
        return None
    given = spec.get("labels")
    if not isinstance(given, Mapping):
        return None
    return {plain_text(value, "labels:"): plain_text(label, "labels:") for value, label in given.items()}


def _choices(task: Task, form: Form, options: str | Sequence[str], written: Mapping[str, str] | None) -> list[str]:
    notes = []
    if form.chosen and task.kind == "generate" and task.labels:
        notes.append(f"{{label}} is one of: {', '.join(task.labels)}.")
    if form.answer.endswith("{option}") and form.chosen and options:
        fixed = f"one of: {', '.join(option.strip() for option in options)}"
        notes.append(f"{{option}} is {f'one of the texts in {options}' if isinstance(options, str) else fixed}.")
    if written and any(value != label for value, label in written.items()):
        notes.append(f"In the data {', '.join(f'{value} stands for {label}' for value, label in written.items())}.")
    return notes
