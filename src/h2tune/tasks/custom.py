"""Tasks by name or as a mapping: a preset with changes, or one's own columns and prompt."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

from h2tune.tasks import scoring
from h2tune.tasks.cells import plain_text
from h2tune.tasks.example import UNNAMED, Example, Form, Kind, Row, RowError, Task, TaskError, called
from h2tune.tasks.labels import label_finder, label_scorer, solve_label
from h2tune.tasks.own_forms import own_forms, pick_option
from h2tune.tasks.presets import PRESETS, preset_task, run_gold_programs
from h2tune.tasks.rows import SeveralQuestionsError, asker, composed, fields, fill, reader, renamed_fields

_COMMON = ("kind", "columns", "max_new_tokens", "name", "description")
_PRESET_KEYS = ("preset", *_COMMON)
_OWN_KEYS = (*_COMMON, "prompt", "answer", "join", "options", "labels", "ignore_case", "score")
_QUOTE = 'YAML reads yes, no, on and off as true and false; write them in quotes, as "yes"'
_TOOLS = "tools"  # the column that every chat may have beside it
_SCORES: dict[str, Callable[[Example, str], bool]] = {
    "number": scoring.score_number,
    "text": scoring.score_text,
    "choice": scoring.score_choice,
    "program": scoring.score_program,
}


def build_task(spec: str | Mapping[str, Any]) -> Task:
    """A task from the name of a preset or from a mapping (see docs/tasks.md); ``TaskError`` says what is wrong."""
    if isinstance(spec, str):
        return preset_task(_known(spec, PRESETS, "task"))
    if not isinstance(spec, Mapping):
        raise TaskError(f"a task is the name of a preset or a mapping, not {spec!r}")
    keys = _PRESET_KEYS if "preset" in spec else _OWN_KEYS
    for key in spec:
        _known(key, keys, "key of a task")
        _check_finite(key, spec[key])
    kind = spec.get("kind")
    if kind is not None:
        _known(kind, get_args(Kind), "kind of task")
    if "preset" in spec:
        task = preset_task(_known(spec["preset"], PRESETS, "task"), kind)
    else:
        task = _own_task(spec, kind)
    return _changed(task, spec)


def _check_finite(key: str, value: Any) -> None:
    """Refuse what YAML reads as infinite or as no number; the files of a run could not hold it."""
    parts = [*value.keys(), *value.values()] if isinstance(value, Mapping) else value
    for part in parts if isinstance(parts, list | tuple) else (parts,):
        if isinstance(part, float) and not math.isfinite(part):
            raise TaskError(f"{key}: YAML reads .inf and .nan as numbers; where they are texts, write them in quotes")


def _known(name: object, known: Iterable[str], what: str) -> str:
    known = list(known)
    if isinstance(name, str) and name in known:
        return name
    near = difflib.get_close_matches(str(name).lower(), known, 1, 0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
    raise TaskError(f"unknown {what} {name!r}; {hint}")


def _changed(task: Task, spec: Mapping[str, Any]) -> Task:
    changes: dict[str, Any] = {key: str(spec[key]) for key in ("name", "description") if key in spec}
    if "max_new_tokens" in spec:
        tokens = spec["max_new_tokens"]
        if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
            raise TaskError(f"max_new_tokens should be a whole number of 1 or more, not {tokens!r}")
        changes["max_new_tokens"] = tokens
    return with_columns(replace(task, **changes), spec.get("columns"))


def with_columns(task: Task, columns: Mapping[str, str] | None) -> Task:
    """The task reading other columns: ``{name the task knows: name in the file}``."""
    if columns is None:
        return task
    if not isinstance(columns, Mapping) or not all(isinstance(name, str) for pair in columns.items() for name in pair):
        raise TaskError(f"columns should map names that the task knows to names in the file, not {columns!r}")
    columns = _read_columns(task, columns)

    def require(row: Row) -> None:
        for column in columns.values():
            if column not in row:
                raise RowError(f"no column {column!r}")

    def renamed(row: Row) -> Row:
        # The file's column goes by its new name only: what was called so before is another thing.
        kept = {name: value for name, value in row.items() if name not in {*columns, *columns.values()}}
        return kept | {known: row[column] for known, column in columns.items() if column in row}

    def read(row: Row) -> Example:
        require(row)
        return task.read(renamed(row))

    def ask(row: Row, trained: Sequence[str] = ()) -> Example:
        try:
            return task.ask(renamed(row), trained)  # a question needs no column of answers
        except SeveralQuestionsError:
            raise
        except RowError:
            require(row)
            raise

    return replace(
        task,
        read=read,
        ask=ask,
        accepts=lambda row: task.accepts({**row, **{k: row[c] for k, c in columns.items() if c in row}}),
        texts=tuple(columns.get(name, name) for name in task.texts),
        told_by=tuple(columns.get(name, name) for name in task.told_by),
        names=tuple((name, columns.get(now, now)) for name, now in _names(task).items()),
        forms=tuple(_renamed_form(form, columns) for form in task.forms),
    )


def _names(task: Task) -> dict[str, str]:
    """What the file calls each column that a task reads."""
    read = (column for form in task.forms for column in form.asks + form.more + form.answers + form.gives)
    return {column: column for column in (*read, _TOOLS)} | dict(task.names)


def _read_columns(task: Task, columns: Mapping[str, str]) -> Mapping[str, str]:
    """The entries whose name the task reads. Others do nothing, and finished runs may hold some.

    Raises:
        TaskError: one of the others gives away a column that the task itself reads.
    """
    read = tuple(dict.fromkeys(task.asked_columns + task.answer_columns))
    known = {*read, *task.told_by, dict(task.names).get(_TOOLS, _TOOLS)}
    for name, column in columns.items():
        if task.forms and name not in known and column in read and column not in columns:
            raise TaskError(
                f"columns: {called(task.name)} reads {', '.join(read)}; there is no {name!r}. Write the task's name first,"
                " then the file's, and only where they differ"
            )
    return {name: column for name, column in columns.items() if name in known} if task.forms else columns


def _renamed_form(form: Form, columns: Mapping[str, str]) -> Form:
    """A form whose texts name the file's columns; its name stays, since examples carry it."""
    options = renamed_fields(form.options, columns) if isinstance(form.options, str) else form.options
    prompt, note = renamed_fields(form.prompt, columns), renamed_fields(form.note, columns)
    answer = form.answer if form.chosen else renamed_fields(form.answer, columns)
    return replace(form, prompt=prompt, answer=answer, note=note, options=options)


def _check_texts(spec: Mapping[str, Any], kind: Kind) -> None:
    """Refuse keys of a mapping that are no texts, or that lack another."""
    if not isinstance(spec.get("join", ""), str):
        raise TaskError(f"join: should be the text between prompt and answer, such as ' ', not {spec['join']!r}")
    if not isinstance(spec.get("ignore_case", False), bool):
        raise TaskError(f"ignore_case: should be true or false, not {spec['ignore_case']!r}")
    for key in ("prompt", "answer"):
        if key in spec and not isinstance(spec[key], str):
            raise TaskError(f"{key}: should be text with columns in braces, such as '{{question}}', not {spec[key]!r}")
    if kind != "generate" and not ("prompt" in spec and "answer" in spec):
        raise TaskError(f"a task of kind {kind} needs prompt: and answer:")
    if ("prompt" in spec) != ("answer" in spec):
        raise TaskError(
            "prompt: and answer: belong together; leave both out to read messages or prompt/answer columns"
        )
    if "prompt" in spec and not fields(spec["prompt"]):
        raise TaskError(f"prompt: {spec['prompt']!r} names no column; write '{{column}}' where its text belongs")
    if "answer" in spec and not fields(spec["answer"]):
        raise TaskError(
            f"answer: {spec['answer']!r} names no column, so all rows would have one answer; write '{{column}}'"
        )
    if ("options" in spec) != (kind == "choice"):
        raise TaskError(
            "options: belongs to kind choice" if "options" in spec else "a task of kind choice needs options:"
        )


def _own_task(spec: Mapping[str, Any], kind: Kind | None) -> Task:
    if kind is None:
        raise TaskError("a task needs a preset or a kind: generate, choice or classify")
    _check_texts(spec, kind)
    options = spec.get("options", ())
    if not isinstance(options, str | list | tuple):
        raise TaskError(f"options: should be a list, or a column in braces that holds one, not {options!r}")
    if any(isinstance(option, bool) for option in options):
        raise TaskError(f"options: {_QUOTE}")
    labels, written = _labels(spec, kind)
    if spec.get("ignore_case") and not labels:
        raise TaskError(
            "ignore_case: belongs to labels:" + ("; options match whatever their case" if kind == "choice" else "")
        )
    fixed = _fixed_options(options)
    if kind == "choice" and labels:
        _require_options(labels, fixed)
    if not any(value[:1].isspace() for value, _ in written):
        spec = _lead_apart(spec)
    name = str(spec.get("name", UNNAMED))
    solve = _solver(spec, kind, name, labels, written)
    forms = own_forms(spec, solve)
    return Task(
        name=name, kind=kind, labels=labels or fixed, max_new_tokens=64 if kind == "generate" else 8, description="own data",
        read=reader(forms), ask=asker(forms), forms=tuple(forms), score=_scorer(spec, kind, labels),
        finish=run_gold_programs if spec.get("score") == "program" else None,
        texts=tuple(dict.fromkeys(fields(spec.get("prompt", "")))),
    )  # fmt: skip


def _fixed_options(options: Any) -> tuple[str, ...]:
    """Options that are the same for every row; none where a column holds them."""
    if isinstance(options, str) or any(fields(str(option)) for option in options):
        return ()
    return tuple(fill(str(option), {}).strip() for option in options)


def _require_options(labels: Sequence[str], fixed: Sequence[str]) -> None:
    if not fixed:
        raise TaskError("labels: of kind choice needs options: that are a list of texts, the same for every row")
    for label in labels:
        if label not in map(composed, fixed):
            raise TaskError(f"labels: {label!r} is none of the options ({', '.join(fixed)})")


def _lead_apart(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """The space that ``answer: " {text}"`` begins with stands between prompt and answer; it is no part of the answer."""
    answer = str(spec.get("answer", ""))
    space = answer[: len(answer) - len(answer.lstrip())]
    return {**spec, "answer": answer.lstrip(), "join": spec.get("join", "") + space} if space else spec


def _labels(spec: Mapping[str, Any], kind: Kind) -> tuple[tuple[str, ...], tuple[tuple[str, int], ...]]:
    """Names of the labels, and how else the file writes them."""
    given = spec.get("labels")
    if given is None:
        if kind == "classify":
            raise TaskError(
                "a task of kind classify needs labels: a list, or a mapping from what the file writes to names"
            )
        return (), ()
    listed = given if isinstance(given, list | tuple) else ()
    pairs = list(given.items()) if isinstance(given, Mapping) else [(label, label) for label in listed]
    if len(pairs) < 2:
        raise TaskError(f"labels: needs two or more, not {given!r}")
    if any(isinstance(label, bool) for pair in pairs for label in pair):
        raise TaskError(f"labels: {_QUOTE}")
    texts = [(plain_text(value, "labels:"), composed(plain_text(label, "labels:"))) for value, label in pairs]
    names = list(dict.fromkeys(label for _, label in texts))
    if len(names) < 2 or not all(text for pair in texts for text in pair):
        raise TaskError(f"labels: needs two or more different ones, not {given!r}")
    return tuple(names), tuple((value, names.index(label)) for value, label in texts)


def _scorer(spec: Mapping[str, Any], kind: Kind, labels: tuple[str, ...]) -> Callable[[Example, str], bool]:
    if "score" in spec:
        score = _known(spec["score"], _SCORES, "score")
        if score == "program" and kind != "generate":
            raise TaskError(f"score: program belongs to kind generate; a task of kind {kind} writes no programs")
        return _SCORES[score]
    if labels and kind != "choice":
        return label_scorer(kind, labels)
    return scoring.score_choice if kind == "choice" else scoring.score_text


def _solver(spec: Mapping[str, Any], kind: Kind, name: str, labels: tuple[str, ...],
            written: tuple[tuple[str, int], ...]) -> Callable[[str, Example], Example]:  # fmt: skip
    """What to do with the text of the answer."""
    find = label_finder(name, labels, written, ignore_case=spec.get("ignore_case", False)) if labels else None
    score = spec.get("score")

    def understood(answer: str, example: Example) -> Example:
        if kind == "choice":
            return pick_option(answer if find is None else labels[find(answer)], example)
        if find is not None:
            return solve_label(kind, find(answer), example, labels)
        return replace(example, answer=example.lead + answer, gold=_gold(answer, score))

    def solve(answer: str, example: Example) -> Example:
        solved = understood(answer, example)
        text = answer if kind == "generate" and find is None else solved.gold
        if score in ("number", "text", "choice") and not _SCORES[score](solved, text):
            raise RowError(f"with score: {score} the answer {solved.gold[-40:]!r} would itself count as wrong")
        return solved

    return solve


def _gold(answer: str, score: str | None) -> str:
    """What a written answer is compared with: a number, a letter, or the whole text; a program's value comes later."""
    if score == "program":
        return ""
    if score == "number":
        return scoring.number_text(scoring.reference_number(answer))
    if score == "choice":
        letter = scoring.answer_letter(answer)
        if letter is None:
            raise RowError(
                f"with score: choice an answer names a letter from A to E, {answer[-60:]!r} does not; for words write"
                " score: text"
            )
        return letter
    return answer.strip()
