"""Public vectors of the classes, from which a class without a row gets its place (`unseen: described`)."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch

from h2tune.vertical.config import VerticalConfig
from h2tune.vertical.table import LARGEST, NO_LABEL, TableError, read_table, text_of


def class_vectors(config: VerticalConfig, classes: Collection[str]) -> torch.Tensor | None:
    """Vectors of the classes in their order (C x q), from a file whose first column names the class; None without one.

    Raises:
        TableError: if there is no such file, a class has no vector in it or has two, or a cell is no finite number; with
            file, class and column.
    """
    if config.label.vectors is None:
        return None
    try:
        table = read_table(config.label.vectors)
    except TableError as error:
        raise TableError(f"label.vectors: {error}") from None
    where, (first, *columns) = f"label.vectors: {config.label.vectors}", [*table.columns] or [""]
    if not columns:
        raise TableError(
            f"{where}: there is no column of numbers; the first column names the class, the others hold them."
        )
    names = text_of(table[first], NO_LABEL)
    for name in classes:
        if names.count(name) != 1:
            found = "is no vector" if name not in names else f"are {names.count(name)} vectors"
            raise TableError(
                f"{where}: there {found} of the class {name!r}; it needs one row, with its name under {first!r}."
            )
    cells = {column: text_of(table[column]) for column in columns}
    rows = {name: names.index(name) for name in classes}
    return torch.tensor(
        [[_number(cells[column][row], f"{where}: class {name!r}, column {column!r}") for column in columns]
         for name, row in rows.items()]
    )  # fmt: skip


def _number(cell: str | None, where: str) -> float:
    try:
        number = math.nan if cell is None else float(cell)
    except ValueError:
        raise TableError(f"{where}: {cell!r} is no number; write it bare and with a point.") from None
    if not abs(number) <= LARGEST:  # NaN is not, either
        what = "the cell has no value" if cell is None else f"{cell!r} is no finite number"
        raise TableError(f"{where}: {what}; every class needs a number in every column.")
    return number
