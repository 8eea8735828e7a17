"""From rows to examples: read, check, sample; hold out a validation set; count what train and test share."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from h2tune.tasks.cells import whole_text
from h2tune.tasks.custom import with_columns
from h2tune.tasks.example import Example, Row, RowError, Task, TaskError, called
from h2tune.tasks.presets import why_no_value
from h2tune.tasks.rows import fold
from h2tune.tasks.sources import read_rows
from h2tune.utils.tables import other_separator

T = TypeVar("T")


def load_examples(
    source: str,
    task: Task,
    *,
    split: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    columns: Mapping[str, str] | None = None,
    part: str | None = None,
    answered: bool = True,
) -> list[Example]:
    """The examples of a source, in its order.

    source: a .jsonl, .json, .csv, .tsv or .parquet file, the folder of a Hugging Face data set (``FOLDER?split=test``
    where it holds several), ``hub:owner/name`` or ``demo:fill?seed=0&n=60&split=train``.
    limit: a random sample of so many rows; the same seed takes the same rows, and fewer are some of the more.
    part: ``"i/n"``, every n-th row from the i-th on: n parts share no row and hold all.
    columns: ``{name the task knows: name in the file}``.
    answered: False reads the questions only, for prediction.
    Raises ``TaskError`` naming the file, the row and the columns that are there.
    """
    if limit is not None and limit < 1:
        raise TaskError(f"{source}: limit should be 1 or more, not {limit}")
    task = with_columns(task, columns)
    rows = read_rows(source, split)
    if not rows:
        raise TaskError(f"{source}: no rows")
    numbered = [(number, row) for number, row in enumerate(rows, 1) if task.accepts(row)]
    if not numbered:
        raise TaskError(f"{source}: none of its {len(rows)} rows belongs to {called(task.name)}")
    if part is not None:
        number, count = map(int, part.split("/"))
        numbered = numbered[number - 1 :: count]
        if not numbered:
            raise TaskError(f"{source}: part {part} of {len(rows)} rows is empty")
    chosen = sample(numbered, limit, seed)
    examples = [_read(source, number, row, task, answered) for number, row in chosen]
    if not answered:
        return examples
    examples = _finish(source, examples, task)
    if task.labels and len({example.gold for example in examples}) < 2:
        # A small sample may by chance hold one class; the data may not.
        _require_classes(source, (_read(source, number, row, task, True) for number, row in numbered), task)
    return examples


@dataclass(frozen=True)
class Questions:
    """The rows of a source that belong to a task, each with its question; going through them reads each row anew.

    others: how many rows belong to other tasks.

    Raises:
        TaskError: while one goes through them, naming the row that cannot be read.
    """

    source: str
    rows: Sequence[tuple[int, Row]]
    task: Task
    others: int = 0

    def __iter__(self) -> Iterator[tuple[Row, Example]]:
        for number, row in self.rows:
            yield row, _read(self.source, number, row, self.task, answered=False)


def read_questions(source: str, task: Task, columns: Mapping[str, str] | None = None) -> Questions:
    """The rows of a source that belong to a task, for prediction.

    Raises:
        TaskError: as `load_examples`, of the source as a whole.
    """
    task = with_columns(task, columns)
    rows = read_rows(source)
    belong = [(number, row) for number, row in enumerate(rows, 1) if task.accepts(row)]
    if not belong:
        raise TaskError(
            f"{source}: " + (f"none of its {len(rows)} rows belongs to {called(task.name)}" if rows else "no rows")
        )
    return Questions(source, belong, task, len(rows) - len(belong))


def _require_classes(source: str, examples: Iterable[Example], task: Task) -> None:
    found = {example.gold for example in examples}
    if len(found) < 2:
        what = "answer" if task.kind == "choice" else "label"
        raise TaskError(f"{source}: every row has the {what} {found.pop()!r}; {called(task.name)} needs two or more")


def sample(rows: list[T], limit: int | None, seed: int) -> list[T]:
    """So many of the rows, the same ones for a seed, in their order."""
    if limit is None or limit >= len(rows):
        return rows
    order = list(range(len(rows)))
    random.Random(f"sample/{seed}").shuffle(order)
    return [rows[index] for index in sorted(order[:limit])]


def _read(source: str, number: int, row: Row, task: Task, answered: bool) -> Example:
    place = f"{source}: row {number}"
    try:
        example = task.read(row) if answered else task.ask(row)
        whole_text(example.prompt + example.answer, "the prompt")
    except RowError as error:
        named = [str(name) for name in row]
        there = ", ".join(named[:12]) + (f" and {len(named) - 12} more" if len(named) > 12 else "")
        raise TaskError(f"{place}: {error}; columns there: {there}{other_separator(named)}") from None
    return replace(example, place=place)


def _finish(source: str, examples: list[Example], task: Task) -> list[Example]:
    if task.finish is None:
        return examples
    finished = task.finish(examples)
    done = [example for example in finished if example is not None]
    if len(done) == len(examples):
        return done
    first = next(example for example, end in zip(examples, finished, strict=True) if end is None)
    why = f"{first.place.removeprefix(f'{source}: ')}: {why_no_value(first)}"
    if not done:
        raise TaskError(f"{source}: none of the {len(examples)} reference programs runs in the sandbox; {why}")
    left = len(examples) - len(done)
    warnings.warn(f"{source}: {left} of {len(examples)} rows left out: their programs do not run; {why}", stacklevel=3)
    return done


def _key(example: Example) -> str:
    return fold(example.prompt)


def split_validation(
    examples: Sequence[Example],
    seed: int,
    fraction: float = 0.1,
    minimum: int = 20,
    *,
    test: Iterable[Example] = (),
) -> tuple[list[Example], list[Example]]:
    """Training and validation examples: a seeded tenth, at least ``minimum``, at most half of the prompts.

    A prompt is on one side only: validation holds it once, and training no copy of it. Prompts of ``test`` never
    get into validation.
    """
    taken = {_key(example) for example in test}
    prompts = list(dict.fromkeys(_key(example) for example in examples))
    if len(prompts) < 2:
        raise TaskError(
            "all its rows ask the same, which is too few different ones to hold some out for validation; give"
            " `validation:`, or at least 2 different rows"
        )
    free = [prompt for prompt in prompts if prompt not in taken]
    random.Random(f"validation/{seed}").shuffle(free)
    size = min(max(minimum, round(fraction * len(examples))), len(prompts) // 2)
    held = set(free[:size])
    if not held:
        raise TaskError(
            "every training example is also in the test data; nothing is left for validation; use other test"
            " rows, or give `validation:`"
        )
    train = [example for example in examples if _key(example) not in held]
    first = {_key(example): example for example in reversed(examples)}
    return train, [first[prompt] for prompt in prompts if prompt in held]


def overlap(train: Iterable[Example], test: Iterable[Example]) -> int:
    """How many test examples have a prompt that is also in train, whatever its case and spacing."""
    known = {_key(example) for example in train}
    return sum(_key(example) in known for example in test)
