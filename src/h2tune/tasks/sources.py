"""Rows from wherever they are: files, Hugging Face data sets, the generated demo data."""

from __future__ import annotations

import csv
import json
import re
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from h2tune.tasks.demo_problems import demo_rows
from h2tune.tasks.example import Row, TaskError
from h2tune.utils.files import nearest
from h2tune.utils.tables import one_value, other_separator

Rows = list[Row]


def read_rows(source: str, split: str | None = None) -> Rows:
    """All rows of a source (see ``load_examples``), as they are there; ``TaskError`` when they cannot be read."""
    source = str(source)
    if source.startswith("demo:"):
        return _demo(source, split)
    if source.startswith("hub:"):
        return _hub(source, split)
    path, query = source_path(source)
    if path.is_dir():
        return _folder(path, split or query)
    reader = _READERS.get(path.suffix.lower())
    if not path.exists():
        raise TaskError(f"no file or folder {source}{nearest(path)}")
    if reader is None:
        raise TaskError(
            f"{source}: cannot read {path.suffix or 'a file without ending'}; known: {', '.join(_READERS)}"
        )
    if split := split or query:
        raise TaskError(f"{source}: a single file has no splits, but split {split!r} is asked for")
    try:
        return reader(path)
    except UnicodeDecodeError as error:
        raise TaskError(f"{source}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise TaskError(f"{source}: {error.strerror or error}") from None
    except TaskError:
        raise
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or lists in lists in lists
        raise TaskError(f"{source}: {str(error).splitlines()[0]}") from None


def source_path(source: str) -> tuple[Path, str | None]:
    """Path of a file or folder, and the split that ``FOLDER?split=test`` asks for."""
    name, mark, query = source.partition("?split=")
    if mark and not Path(source).expanduser().exists():
        return Path(name).expanduser(), query
    return Path(source).expanduser(), None


def _json(path: Path) -> Rows:
    text = path.read_text("utf-8-sig")
    try:
        data = json.loads(text, object_pairs_hook=partial(_unique, path))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            # Many files called .json hold one object a line.
            return _json_lines(path)
        raise TaskError(f"{path}: line {error.lineno}: not JSON: {error.msg}") from None
    if isinstance(data, dict):
        lists = [value for value in data.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
        data = lists[0] if len(lists) == 1 else [data]
    if not isinstance(data, list):
        raise TaskError(f"{path}: should hold a list of objects")
    return [_object(row, path, index) for index, row in enumerate(data, 1)]


def _json_lines(path: Path) -> Rows:
    rows: Rows = []
    text = path.read_text("utf-8-sig")
    if text.lstrip().startswith("[") and (whole := one_value(text)):
        raise TaskError(f"{path}: {whole}")
    # Not splitlines(): text may hold other line separators of Unicode.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append(
                _object(
                    json.loads(line, object_pairs_hook=partial(_unique, path, where=f"line {number}: ")), path, number
                )
            )
        except json.JSONDecodeError as error:
            raise TaskError(f"{path}: {one_value(text) or f'line {number}: not JSON: {error.msg}'}") from None
    return rows


def _unique(path: Path, pairs: list[tuple[str, Any]], where: str = "") -> dict[str, Any]:
    """An object whose names all differ: of two cells of one name, one would be lost."""
    _differ(path, [name for name, _ in pairs], where)
    return dict(pairs)


def _differ(path: Path, names: Sequence[str], where: str = "") -> None:
    if len(set(names)) < len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise TaskError(f"{path}: {where}two columns are called {twice!r}; rename one")


def _object(row: Any, path: Path, number: int) -> Row:
    if not isinstance(row, dict):
        raise TaskError(f"{path}: row {number}: should be an object with named columns, not {str(row)[:40]!r}")
    return row


def _tsv(path: Path) -> Rows:
    """Tabs and line ends, nothing quoted and nothing taken for missing (``quoting=3``, ``keep_default_na=False``)."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        text = file.read()
    # Some programs end lines with CR alone; where there is a line feed, such a CR is a character of its cell.
    lines = [line.rstrip("\r") for line in text.split("\n" if "\n" in text else "\r")]
    return _table(path, _without_blank(path, [line.split("\t") if line else [] for line in lines]))


def _csv(path: Path) -> Rows:
    csv.field_size_limit(1 << 30)  # the library's own limit of 128 KiB is shorter than some texts
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, strict=True)
        try:
            return _table(path, _without_blank(path, list(rows)))
        except csv.Error as error:
            hint = "; cells should be separated by commas, not by semicolons" if ";" in _first_line(path) else ""
            raise TaskError(f"{path}: line {rows.line_num} is not CSV: {error}{hint}") from None


def _first_line(path: Path) -> str:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return file.readline()


def _without_blank(path: Path, lines: list[list[str]]) -> list[list[str]]:
    """The lines that are rows. In a table of one column a blank line is an empty cell, unless it ends the file."""
    while lines and not lines[-1]:
        lines.pop()
    if not (rows := [cells for cells in lines if cells]):
        return []
    if len(rows[0]) == 1:
        return [cells or [""] for cells in lines[lines.index(rows[0]) :]]
    if blank := len(lines) - len(rows):
        warnings.warn(f"{path}: {blank} blank lines are no rows; rows are counted without them", stacklevel=2)
    return rows


def _table(path: Path, lines: list[list[str]]) -> Rows:
    if not lines:
        return []
    header = [name.strip() for name in lines[0]]
    if (nameless := header.count("")) > 1:
        count = "two" if nameless == 2 else nameless
        raise TaskError(f"{path}: {count} columns have no name; are there commas at the end of the lines?")
    _differ(path, header)
    for number, cells in enumerate(lines[1:], 1):
        if len(cells) != len(header):
            raise TaskError(
                f"{path}: row {number}: {len(cells)} cells where the header names {len(header)} columns"
                f"{other_separator(header)}"
            )
    return [dict(zip(header, cells, strict=True)) for cells in lines[1:]]


def _parquet(path: Path) -> Rows:
    try:
        from pyarrow import parquet
    except ImportError:
        raise TaskError(f"{path}: reading Parquet needs pyarrow (pip install pyarrow)") from None
    try:
        table = parquet.read_table(path)
    except Exception as error:  # noqa: BLE001 - of many kinds, all of them the user's to read
        with path.open("rb") as file:
            known = file.read(4) in (b"PAR1", b"PARE")
        raise TaskError(f"{path}: {'cannot be read' if known else 'not a Parquet file'}: {_said(error)}") from None
    _differ(path, table.column_names)
    columns = {name: _cells(path, name, table.column(name)) for name in table.column_names}
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def _cells(path: Path, name: str, column: Any) -> list[Any]:
    """The cells of a Parquet column as Python's values."""
    try:
        if (wider := _widened(column.type)) != column.type:
            column = column.cast(_widened(column.type, as_text=True)).cast(wider)
        return list(column.to_pylist())
    except Exception as error:  # noqa: BLE001 - dates beyond Python's, zones that nobody knows, text that is not UTF-8
        raise TaskError(
            f"{path}: column {name!r} ({column.type}) cannot be read: {_said(error)}; leave it out, or save it as text"
        ) from None


def _widened(kind: Any, as_text: bool = False) -> Any:
    """A type with double precision for single, by way of text: 0.1 stays 0.1 and is not 0.10000000149011612."""
    import pyarrow

    if pyarrow.types.is_float32(kind):
        return pyarrow.string() if as_text else pyarrow.float64()
    if pyarrow.types.is_list(kind):
        return pyarrow.list_(_widened(kind.value_type, as_text))
    if pyarrow.types.is_large_list(kind):
        return pyarrow.large_list(_widened(kind.value_type, as_text))
    if pyarrow.types.is_struct(kind):
        return pyarrow.struct([field.with_type(_widened(field.type, as_text)) for field in kind])
    return kind


def _said(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


_READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": _json_lines, ".json": _json, ".csv": _csv, ".tsv": _tsv, ".parquet": _parquet,
}  # fmt: skip


def _datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise TaskError("reading a Hugging Face data set needs the package datasets (pip install datasets)") from None
    return datasets


def _folder(path: Path, split: str | None) -> Rows:
    datasets = _datasets()
    saved = any((path / name).exists() for name in ("dataset_dict.json", "dataset_info.json", "state.json"))
    try:
        data = datasets.load_from_disk(str(path)) if saved else datasets.load_dataset(str(path))
    except Exception as error:  # noqa: BLE001 - of many kinds, all of them the user's to read
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise TaskError(
            f"{path} is a folder, and not a data set that can be read ({why}); if you meant a file in it, name that"
        ) from None
    return _one_split(data, split, str(path))


def _hub(source: str, split: str | None) -> Rows:
    name, _, query = source.removeprefix("hub:").partition("?")
    options = dict(parse_qsl(query))
    if not name or set(options) - {"config", "revision", "split"}:
        raise TaskError(f"{source}: write hub:owner/name or hub:owner/name?config=...&revision=...&split=...")
    try:
        data = _datasets().load_dataset(name, options.get("config"), revision=options.get("revision"))
    except TaskError:
        raise
    except Exception as error:  # noqa: BLE001 - of many kinds, all of them the user's to read
        raise TaskError(
            f"{source}: cannot be loaded: {(str(error) or type(error).__name__).splitlines()[0]}"
        ) from None
    return _one_split(data, split or options.get("split"), source)


def _one_split(data: Any, split: str | None, source: str) -> Rows:
    if not hasattr(data, "keys"):
        if split is not None:
            raise TaskError(f"{source}: holds one split only, but split {split!r} is asked for")
        return list(data)
    names = list(data.keys())
    if split is None and len(names) > 1:
        raise TaskError(f"{source}: holds the splits {', '.join(names)}; say which, as {_asked(source, names[0])}")
    wanted = split or names[0]
    if wanted not in names:
        raise TaskError(f"{source}: no split {wanted!r}; there are: {', '.join(names)}")
    return list(data[wanted])


def _asked(source: str, split: str) -> str:
    return f"{source}{'&' if '?' in source else '?'}split={split}"


def _demo(source: str, split: str | None) -> Rows:
    form, _, query = source.removeprefix("demo:").partition("?")
    options = {"seed": "0", "n": "60", "split": split or "train", **dict(parse_qsl(query))}
    unknown = set(options) - {"seed", "n", "split"}
    if unknown or not re.fullmatch("-?[0-9]+", options["seed"]) or not re.fullmatch("[0-9]+", options["n"]):
        raise TaskError(f"{source}: write demo:fill?seed=0&n=60&split=train")
    return list(demo_rows(options["split"], form, int(options["n"]), int(options["seed"])))
