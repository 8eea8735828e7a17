"""What a party brings: ids, features as numbers, labels where it has any. All of it stays with the party."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from h2tune.vertical.align import as_keys, check_ids, digests
from h2tune.vertical.config import PartyConfig, VerticalConfig
from h2tune.vertical.spelling import alike, normalise
from h2tune.vertical.table import NO_LABEL, Columns, TableError, names_of, read_table, text_of
from h2tune.vertical.text import embed_texts


@dataclass(frozen=True)
class Rows:
    """Rows of one party, in the order of their hashed ids.

    Attributes:
        keys: hashed ids (n x 16).
        x: features (n x m).
        labels: class names, None where there is none (n).
        ids: the ids as they are, for looser comparisons and for intersection protocols.
    """

    keys: np.ndarray
    x: Tensor
    labels: list[str | None]
    ids: list[str]

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class PartyData:
    """A party's training rows, its rows of the test people, and how its columns became numbers."""

    name: str
    config: PartyConfig
    columns: Columns
    train: Rows
    test: Rows | None

    @property
    def width(self) -> int:
        """Numbers of a row."""
        return self.train.x.shape[1]


def load_party(
    config: VerticalConfig,
    party: PartyConfig,
    salt: str,
    frames: tuple[pd.DataFrame, pd.DataFrame | None] | None = None,
) -> PartyData:
    """Read a party's files and fit its columns.

    Args:
        frames: training and test table, where they are in memory already.

    Raises:
        TableError, AlignmentError: naming the party, and the column or row.
    """
    if frames is None:
        frames = _tables(config, party)
    train, test = frames
    if len(train) == 0:
        raise TableError(f"{party.name}: the table has no rows.")
    label = config.label.column if party.name == config.label.party else party.labels
    names = _feature_names(config, party, train, label)
    columns = Columns.fit(train, names)
    if columns.width == 0 and party.encoder.kind == "table":
        raise TableError(f"{party.name}: no column is left to learn from; it has only ids and labels.")
    rows = read_rows_of(config, party, columns, train, salt, label)
    twins = alike(sorted({name for name in rows.labels if name is not None}))
    if twins and (party.name != config.label.party or config.others_name_classes):
        raise TableError(
            f"{party.name}: labels in {label!r} differ by case, spaces or forms of a character only:"
            f" {twins[0]!r} and {twins[1]!r}. Parties compare names without these, so both would be one class; rename one, or"
            " write them alike."
        )
    if test is None:
        return PartyData(party.name, party, columns, rows, None)
    # A passive party's labels are for its own training rows only.
    scored = config.label.column if party.name == config.label.party else None
    if scored:
        check_test_labels(party.name, test, scored, config.label.classes, rows.labels)
    return PartyData(
        party.name, party, columns, rows, read_rows_of(config, party, columns, test, salt, scored, " (test table)")
    )


def _tables(config: VerticalConfig, party: PartyConfig) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Training and test table of a party.

    Raises:
        TableError: with a line for each that cannot be read.
    """
    found: list[pd.DataFrame] = []
    problems = []
    as_text = columns_as_text(config, party)
    for path in filter(None, (party.train, party.test)):
        try:
            found.append(read_table(path, as_text))
        except TableError as error:
            problems.append(str(error))
            continue
        # Where training rows hold categories, those of test rows count as they are written: 007 is not 7.
        as_text |= {name for name, kind in found[0].dtypes.items() if not pd.api.types.is_numeric_dtype(kind)}
    if problems:
        raise TableError("\n".join(problems))
    return found[0], found[1] if party.test else None


def columns_as_text(config: VerticalConfig, party: PartyConfig) -> set[str]:
    """Columns of a party's files that are no numbers whatever they hold: ids, labels and text."""
    names = {party.id or config.align.by, party.labels, config.label.column, party.encoder.column}
    return {name for name in names if name is not None}


def check_test_labels(
    who: str, test: pd.DataFrame, column: str, classes: list[str] | None, trained: list[str | None]
) -> None:
    """Hold the labels of test people against the classes; a row may have none, and is predicted but not scored.

    Args:
        classes: those that the config names; without them, classes are the labels in ``trained``.

    Raises:
        TableError: if there is no such column, or a label is no class: such rows would be left out of the score.
    """
    if column not in test:
        raise TableError(
            f"{who} (test table): there is no label column {column!r}; there are: {names_of(test)}. Add it"
            " (cells may be empty), or leave `test` out."
        )
    known = classes or sorted({label for label in trained if label is not None})
    strange = [
        (row, v) for row, v in enumerate(text_of(test[column], NO_LABEL), 1) if v is not None and v not in known
    ]
    if not strange:
        return
    row, value = strange[0]
    near = [name for name in known if normalise(name) == normalise(value)]
    hint = f"; the class {near[0]!r} differs by case or spaces only" if near else ""
    named = ", ".join(map(repr, known[:8])) + (", ..." if len(known) > 8 else "")
    raise TableError(
        f"{who} (test table): {len(strange):,} of {len(test):,} rows have a label in {column!r} that is no class, the first"
        f" is {value!r} in row {row}{hint}. Classes are {named}. Correct the labels, empty the cells, or name all classes"
        " in label.classes."
    )


def read_rows_of(
    config: VerticalConfig,
    party: PartyConfig,
    columns: Columns,
    frame: pd.DataFrame,
    salt: str,
    label: str | None = None,
    which: str = "",
) -> Rows:
    """The rows of a table as a party uses them; see `load_party`."""
    who, by = party.name + which, party.id or config.align.by
    if by not in frame:
        raise TableError(f"{who}: there is no id column {by!r}; there are: {names_of(frame)}.")
    if len(frame) == 0:
        raise TableError(f"{who}: the table has no rows.")
    ids = check_ids(text_of(frame[by]), who)
    keys = digests(ids, salt)
    order = np.argsort(as_keys(keys), kind="stable")
    x = columns.apply(frame, who, order)
    if party.encoder.kind == "text":
        texts = embed_texts(_texts(party, frame), str(party.encoder.model), party.encoder.max_length)
        x = torch.cat([texts[torch.from_numpy(order)], x], 1)
    labels: list[str | None] = text_of(frame[label], NO_LABEL) if label else [None] * len(ids)
    chosen = order.tolist()
    return Rows(keys[order], x, [labels[i] for i in chosen], [ids[i] for i in chosen])


def _feature_names(config: VerticalConfig, party: PartyConfig, frame: pd.DataFrame, label: str | None) -> list[str]:
    text = party.encoder.column
    for name in [*(party.columns or []), *([label] if label else []), *([text] if text else [])]:
        if name not in frame:
            raise TableError(f"{party.name}: there is no column {name!r}; there are: {names_of(frame)}.")
    other = {party.id or config.align.by, label, text}
    names = party.columns if party.columns is not None else [n for n in frame.columns if n not in other]
    if label in names and party.columns is not None:
        raise TableError(
            f"{party.name}: {label!r} is its label column and cannot be a feature; take it out of `columns`."
        )
    if config.label.column in names and party.name != config.label.party:
        raise TableError(
            f"{party.name}: the table has a column {config.label.column!r}, the name of the label. If it holds labels,"
            f" declare it (`labels: {config.label.column}`); otherwise leave it out (`columns: [...]`) or rename it."
        )
    return [name for name in names if name not in other]


def _texts(party: PartyConfig, frame: pd.DataFrame) -> list[str]:
    column = str(party.encoder.column)
    if column not in frame:
        raise TableError(f"{party.name}: there is no text column {column!r}.")
    return [value or "" for value in text_of(frame[column])]
