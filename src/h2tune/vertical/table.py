"""Tables as people have them: files, ids, missing values; and their columns as numbers."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from h2tune.errors import H2TuneError
from h2tune.utils.files import nearest
from h2tune.utils.tables import one_value, other_separator
from h2tune.vertical.truths import TRUTHS, is_truth, truths_of

MISSING = ["", "?", "NA", "N/A", "n/a", "n.a.", "#N/A", "NaN", "nan", "null", "NULL", "None", "-"]
NO_LABEL = [text for text in MISSING if text not in ("None", "-")]  # a class may be called so
MOSTLY = 0.9  # share of a column's cells that are numbers, from which on the others look like mistakes
LARGEST = float(np.finfo(np.float32).max)  # a larger number counts as missing
FARTHEST = 1e9  # standard deviations from the mean; networks have infinite outputs for numbers that are farther
SNIFFED = 1000  # rows of a file by which columns of numbers are looked for
CELLS = 1_000_000  # cells of a file that are read as numbers at a time
BLOCK = 2**22  # bytes of a file that are looked through at a time
NESTED = (np.ndarray, list, tuple, dict)  # cells of several values, which count by their text
CATEGORIES = 50  # most values of a column that are told apart; rarer ones count as other


class TableError(H2TuneError, ValueError):
    """A table cannot be used; the text names the party or file and the column."""


def read_table(path: str | Path, as_text: Collection[str] | None = None) -> pd.DataFrame:
    """The rows of a CSV, TSV, Parquet or JSONL file.

    Args:
        as_text: columns of a CSV or TSV file that stay as they are written. The others become numbers where all their cells
            are numbers or missing, in a fraction of the memory. None keeps all as they are written.

    Raises:
        TableError: if there is no such file or it cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise TableError(f"There is no file {path}{nearest(path) or '.'}")
    try:
        match path.suffix.lower():
            case ".csv" | ".tsv":
                separator = "," if path.suffix.lower() == ".csv" else "\t"
                _require_even(path, separator)
                frame = _separated(path, separator, as_text)
            case ".parquet":
                frame = pd.read_parquet(path)
            case ".jsonl" | ".json":
                frame = _json(path)
            case other:
                raise TableError(
                    f"{path}: a table is a CSV, TSV, Parquet or JSONL file, not {other or 'one without ending'}."
                )
    except TableError:
        raise
    except (ValueError, OSError, csv.Error) as error:
        raise TableError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    frame.columns = [str(name).strip() for name in frame.columns]
    return frame


def names_of(frame: pd.DataFrame) -> str:
    """The first columns of a table, for messages."""
    return ", ".join(frame.columns[:20]) + other_separator(list(frame.columns))


def _separated(path: Path, separator: str, as_text: Collection[str] | None) -> pd.DataFrame:
    """The rows of a CSV or TSV file; see `read_table`."""
    options: dict[str, Any] = {"sep": separator, "keep_default_na": False, "encoding": "utf-8-sig"}
    if as_text is None:
        return pd.read_csv(path, dtype=str, **options)
    head = pd.read_csv(path, dtype=str, nrows=SNIFFED, **options)
    likely = [
        place
        for place, name in enumerate(head.columns)
        if str(name).strip() not in as_text and numbers_of(head.iloc[:, place]) is not None
    ]
    numbers = _number_columns(path, likely, len(head.columns), options)
    rest = [place for place in range(len(head.columns)) if place not in numbers]
    text = pd.read_csv(path, dtype=str, usecols=rest, **options) if rest else pd.DataFrame()
    found = numbers | {place: text.iloc[:, index] for index, place in enumerate(rest)}
    # Without a copy: pandas would lay all numbers out once more.
    return pd.DataFrame({name: found[place] for place, name in enumerate(head.columns)}, copy=False)


def _number_columns(path: Path, places: list[int], width: int, options: dict[str, Any]) -> dict[int, np.ndarray]:
    """Those of a file's columns whose cells are numbers or missing, as `numbers_of` has them; some cell is a number."""
    parts: dict[int, list[np.ndarray]] = {place: [] for place in places}
    if not places:
        return {}
    # Some rows at a time, so that only the numbers of the others are in memory.
    rows = max(1, CELLS // width)
    chunks = pd.read_csv(path, usecols=places, na_values=MISSING, chunksize=rows, low_memory=False, **options)
    for chunk in chunks:
        for index, place in enumerate(places):
            if place not in parts:
                continue
            if chunk.dtypes.iloc[index].kind in "iuf":
                parts[place].append(_finite(chunk.iloc[:, index].to_numpy(np.float64)))
            else:  # text, or True and False, which pandas takes for numbers
                del parts[place]
    found = {}
    for place in list(parts):
        numbers = np.concatenate(parts.pop(place) or [np.zeros(0)])
        if not np.isnan(numbers).all():  # a column without a number is one of categories, by what is written there
            found[place] = numbers
    return found


def _require_even(path: Path, separator: str) -> None:
    """Raise TableError where columns share a name, or a row has more or fewer cells than there are columns: pandas would
    rename, shift or fill up without a word."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, delimiter=separator)
        names = [name.strip() for name in next(rows, [])]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise TableError(f"{path}: two columns are called {twice[0]!r}.")
        if _plainly_even(path, separator, len(names)):
            return
        for row in rows:
            if row and len(row) != len(names):
                raise TableError(
                    f"{path}: line {rows.line_num} has {len(row)} cells, and there are {len(names)} columns"
                    f"{other_separator(names) or '.'}"
                )


def _plainly_even(path: Path, separator: str, width: int) -> bool:
    """Whether all lines have so many cells, by counts of separators alone. False where one has not, and where a reader of
    CSV has to tell: with quotes, other line ends, very long cells or bytes that are no UTF-8."""
    rest = b""
    with open(path, "rb") as file:
        while True:
            block = file.read(BLOCK)
            data = rest + block if block else rest + b"\n"
            end = data.rfind(b"\n") + 1
            data, rest = data[:end], data[end:]
            if len(rest) > csv.field_size_limit() or not _even_lines(data, ord(separator), width - 1):
                return False
            if not block:
                return True


def _even_lines(data: bytes, separator: int, wanted: int) -> bool:
    """Whether each line has so many separators or is empty; see `_plainly_even`."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    if b'"' in data or data.count(b"\r") != data.count(b"\r\n"):
        return False
    cells = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(cells == ord("\n"))
    lengths = np.diff(ends, prepend=-1) - 1
    found = np.diff(np.searchsorted(np.flatnonzero(cells == separator), ends), prepend=0)
    empty = (lengths == 0) | ((lengths == 1) & (cells[ends - 1] == ord("\r")))
    return bool((lengths <= csv.field_size_limit()).all() and (empty | (found == wanted)).all())


def _json(path: Path) -> pd.DataFrame:
    """One object a line, or a list of objects.

    Raises:
        TableError: naming the line that is neither.
    """
    text = path.read_text("utf-8-sig")
    if path.suffix.lower() == ".json" and text.lstrip().startswith("["):
        return pd.DataFrame(json.loads(text))
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            wrong = one_value(text) or f"line {number} is no JSON: {error.msg} at character {error.pos + 1}"
            raise TableError(f"{path}: {wrong}.") from None
        if isinstance(rows[-1], list) and (whole := one_value(text)):
            raise TableError(f"{path}: {whole}.")
        if not isinstance(rows[-1], dict):
            raise TableError(f'{path}: line {number} is no object; write a row as {{"id": ..., "column": ...}}.')
    return pd.DataFrame(rows)


def text_of(values: pd.Series, missing: Collection[str] = MISSING) -> list[str | None]:
    """Cells as text; None for missing ones. 12.0 is the text 12."""
    found: list[str | None] = []
    for value in values.tolist():
        if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and np.isnan(value)):
            found.append(None)
            continue
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        text = str(_plain(value) if isinstance(value, NESTED) else value).strip()
        found.append(None if text in missing else text)
    return found


def _plain(value: Any) -> Any:
    """A cell of several values with lists in place of arrays, so that its text is the same from Parquet and JSON."""
    match value:
        case np.ndarray() | list() | tuple():
            return [_plain(part) for part in value]
        case dict():
            return {key: _plain(part) for key, part in value.items()}
        case np.generic():
            return value.item()
    return value


def codes_of(values: pd.Series) -> tuple[np.ndarray, list[str]]:
    """For each cell the number of its text (n), and the texts in the order of their first cells; "" for missing ones."""
    if isinstance(values.dtype, pd.StringDtype):  # other cells may be equal and yet have different texts: 1 and True
        codes, found = pd.factorize(values, use_na_sentinel=False)
    else:
        codes, found = np.arange(len(values)), values
    numbers: dict[str, int] = {}
    texts = [numbers.setdefault(text or "", len(numbers)) for text in text_of(pd.Series(found))]
    return np.array(texts, dtype=np.int64)[codes], list(numbers)


def odd_cell(counts: dict[str, int]) -> str | None:
    """The first cell that is no number in a column that mostly holds numbers; such a column is one of categories.

    Args:
        counts: how often each text occurs, in the order of their first cells, without missing ones.
    """
    texts = pd.Series(list(counts), dtype=object)
    strange = [str(text) for text in texts[pd.to_numeric(texts, errors="coerce").isna()]]
    share = (1 - MOSTLY) * sum(counts.values())
    return strange[0] if 0 < sum(counts[text] for text in strange) <= share else None


def numbers_with_more(counts: dict[str, int]) -> str | None:
    """A cell of a column of categories whose values are many, and nearly all hold digits: numbers with a unit or a decimal
    comma, dates or codes; None for other columns.

    Args:
        counts: see `odd_cell`.
    """
    cells = sum(counts.values())
    if len(counts) <= min(CATEGORIES, cells / 2):
        return None
    found = [text for text in counts if any(c.isdigit() for c in text)]
    return found[0] if sum(counts[text] for text in found) >= MOSTLY * cells else None


def _frequent(counts: dict[str, int]) -> list[str]:
    """The values that are told apart, sorted: all, or as many of the most frequent as leave room for the others as one.
    Ties go to the later value, as in scikit-learn's `OneHotEncoder`."""
    values = sorted(counts)
    if len(values) < CATEGORIES:
        return values
    order = np.argsort([counts[value] for value in values], kind="stable")
    return [values[i] for i in sorted(order[-(CATEGORIES - 1) :])]


def numbers_of(values: pd.Series) -> np.ndarray | None:
    """A column as float64 with NaN for missing cells and for infinite or too large ones; None where a cell is something else.

    Points in time and durations count in days.
    """
    if pd.api.types.is_datetime64_any_dtype(values):
        values = values.dt.tz_localize(None) - pd.Timestamp(0)
    if pd.api.types.is_timedelta64_dtype(values):
        values = values / pd.Timedelta(days=1)
    if pd.api.types.is_bool_dtype(values) or pd.api.types.is_numeric_dtype(values):
        return _finite(values.to_numpy(dtype=np.float64, na_value=np.nan))
    if values.dtype == object and any(isinstance(v, NESTED) for v in values):
        return None
    cells = values.map(lambda v: v.strip() if isinstance(v, str) else v).replace(MISSING, None)
    numbers = pd.to_numeric(cells, errors="coerce")
    if bool((numbers.isna() & cells.notna()).any()):
        return None
    return _finite(numbers.to_numpy(dtype=np.float64, na_value=np.nan))


def _finite(numbers: np.ndarray) -> np.ndarray:
    # Squares of larger ones are infinite in the arithmetic that columns are scaled with.
    return np.where(np.abs(numbers) > LARGEST, np.nan, numbers)


@dataclass
class Columns:
    """How a party's columns become numbers; fitted on its own training rows, kept as plain values.

    Numeric columns: the median in place of missing cells, an extra column that says where they were, mean 0 and
    variance 1. Other columns: one column for each value, none for a value that was not seen. True and False are numbers where
    a file has them as such, and categories where they are text; each is read where the other was fitted.

    Attributes:
        odd: of columns of categories that mostly hold numbers, a cell that is none; told to the owner, not kept.
        coded: of columns of categories that are many, and hold numbers with something else, a cell; told, not kept.
    """

    numeric: dict[str, dict[str, float]] = field(default_factory=dict)
    categorical: dict[str, list[str]] = field(default_factory=dict)
    odd: dict[str, str] = field(default_factory=dict)
    coded: dict[str, str] = field(default_factory=dict)

    @classmethod
    def fit(cls, frame: pd.DataFrame, names: list[str]) -> Columns:
        """Fit to the named columns what scikit-learn's transformers would fit."""
        from sklearn.impute import SimpleImputer
        from sklearn.preprocessing import StandardScaler

        found = cls()
        for name in names:
            numbers = numbers_of(frame[name])
            if numbers is not None and not np.isnan(numbers).all():
                column = numbers[:, None]
                imputer = SimpleImputer(strategy="median").fit(column)
                scaler = StandardScaler().fit(imputer.transform(column))
                found.numeric[name] = {
                    "median": float(imputer.statistics_[0]),
                    "mean": float(scaler.mean_[0]),
                    "scale": float(scaler.scale_[0]),
                    "gaps": float(np.isnan(numbers).any()),
                }
                if is_truth(frame[name]):
                    found.numeric[name]["truth"] = 1.0
                continue
            codes, texts = codes_of(frame[name])
            counts = dict(zip(texts, np.bincount(codes).tolist(), strict=True))
            found.categorical[name] = _frequent(counts)
            counts.pop("", None)
            if cell := odd_cell(counts):
                found.odd[name] = cell
            elif cell := numbers_with_more(counts):
                found.coded[name] = cell
        return found

    @property
    def width(self) -> int:
        """Numbers of a row."""
        return sum(1 + int(c["gaps"]) for c in self.numeric.values()) + sum(map(len, self.categorical.values()))

    def apply(self, frame: pd.DataFrame, who: str, order: np.ndarray | None = None) -> Tensor:
        """Rows as numbers (n x width), float32.

        Args:
            order: the rows' order in the result; by default the table's.

        Raises:
            TableError: if a column is missing or holds text where it held numbers.
        """
        if missing := [name for name in [*self.numeric, *self.categorical] if name not in frame.columns]:
            raise TableError(f"{who}: there is no column {missing[0]!r}; there are: {names_of(frame)}.")
        order = np.arange(len(frame)) if order is None else order
        found, place = np.zeros((len(order), self.width), np.float32), 0
        # Column by column into the result: a copy of all of them in float64 would be twice its size.
        for name, fitted in self.numeric.items():
            numbers = numbers_of(frame[name])
            if numbers is None and fitted.get("truth"):  # CSV has no other way to write them
                numbers = truths_of(text_of(frame[name]))
            if numbers is None:
                raise TableError(f"{who}: column {name!r} holds text, but held numbers when the model was trained.")
            numbers = numbers[order]
            far = np.abs((numbers - fitted["mean"]) / fitted["scale"]) > FARTHEST
            gaps = np.isnan(numbers) | far
            found[:, place] = (np.where(gaps, fitted["median"], numbers) - fitted["mean"]) / fitted["scale"]
            if fitted["gaps"]:
                found[:, place + 1] = gaps
            place += 1 + int(fitted["gaps"])
        for name, values in self.categorical.items():
            codes, texts = codes_of(frame[name])
            column = {value: place + index for index, value in enumerate(values)}
            truths = {value.casefold(): at for value, at in column.items() if value.casefold() in TRUTHS}
            places = [column.get(text, truths.get(text.casefold(), -1)) for text in texts]
            columns = np.array(places, dtype=np.int64)[codes[order]]
            (rows,) = np.nonzero(columns >= 0)
            found[rows, columns[rows]] = 1
            place += len(values)
        return torch.from_numpy(found)

    def plain(self) -> dict[str, Any]:
        """Plain values that `from_plain` reads."""
        return {"numeric": self.numeric, "categorical": self.categorical}

    @classmethod
    def from_plain(cls, value: dict[str, Any]) -> Columns:
        """What `plain` has written."""
        return cls(value["numeric"], value["categorical"])
