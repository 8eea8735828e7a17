"""Vertical methods side by side over seeds: the same data, other first weights and batches; goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from h2tune.store import differences
from h2tune.utils.files import StoreError, sound, write_atomic
from h2tune.vertical.config import VerticalConfig
from h2tune.vertical.federation import load_parties
from h2tune.vertical.fingerprint import data_fingerprint
from h2tune.vertical.methods import method_named
from h2tune.vertical.parties import PartyData
from h2tune.vertical.table import TableError
from h2tune.vertical.trial import evaluate

MADE = "made_with"  # key of a cell's file: config and data that it was made with
ELSEWHERE = ("name", "seed", "network", "baseline")  # keys that change no figure, or are in the cell's name


def interval(values: Sequence[float], low: float | None = None, high: float | None = None) -> list[float]:
    """Mean and its 95 % interval (Student's t), cut off at the least and largest value that is possible; the ends equal the
    mean where there is but one value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return [mean, mean, mean]
    from scipy import stats

    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    lower, upper = mean - half, mean + half
    return [mean, lower if low is None else max(low, lower), upper if high is None else min(high, upper)]


def compare_methods(
    config: VerticalConfig, names: list[str], seeds: int, out: Path, quantity: str = "balanced"
) -> dict[str, Any]:
    """Run every method with every seed and say which is better, and how sure that is.

    Args:
        quantity: what is compared, a key of `h2tune.vertical.metrics.score`.

    Raises:
        StoreError: if a finished run in ``out`` was made with another config or other data.
        TableError: if no test people have labels.
    """
    methods = [method_named(name) for name in names]
    values: dict[str, list[float]] = {name: [] for name in names}
    made = made_with(config)
    cells = {(m.name, s): out / f"{m.name}-seed{s}.json" for s in range(seeds) for m in methods}
    for cell in cells.values():  # before anything is run
        _check(cell, made)
    for seed in range(seeds):
        seeded = config.model_copy(update={"seed": seed})
        data = None
        for method in methods:
            cell = cells[method.name, seed]
            if not cell.is_file():
                data = data or _scorable(config, load_parties(seeded))
                write_atomic(cell, json.dumps({MADE: made, "scores": evaluate(seeded, method, data)}).encode())
            with sound(cell):
                values[method.name].append(float(json.loads(cell.read_text(encoding="utf-8"))["scores"][quantity]))
    rows = [_row(name, values) for name in names]
    result = {"name": config.name, "quantity": quantity, "seeds": seeds, "methods": rows}
    write_atomic(out / "compare.json", json.dumps(result, indent=1, allow_nan=False).encode())
    return result


def made_with(config: VerticalConfig) -> dict[str, Any]:
    """What the figures of a cell follow from beside its method and seed: the config, and what is in the files (not where
    they lie). Of salts there is a hash only."""
    plain = {key: value for key, value in config.by_name().items() if key not in ELSEWHERE}
    salts = [plain["align"].pop("salt")]
    plain["method"].pop("name")
    plain["label"].pop("vectors")
    for party in plain["parties"].values():
        salts.append(party.pop("salt"))
        party.pop("train"), party.pop("test")
    plain["salts"] = hashlib.sha256(json.dumps(salts).encode()).hexdigest()[:32]
    return {"config": plain, "data": data_fingerprint(config)}


def _check(cell: Path, made: dict[str, Any]) -> None:
    if not cell.is_file():
        return
    with sound(cell):
        before = dict(json.loads(cell.read_text(encoding="utf-8"))).get(MADE)
    if before is None:
        what = "it does not say which config and data it was made with, as an earlier version wrote it"
    elif changed := differences(before["config"], made["config"]):
        what = f"The config differs from the run's in {', '.join(changed[:8])}"
    elif changed := differences(before["data"], made["data"]):
        what = f"The data of this run have changed since it began: {', '.join(changed[:8])}"
    else:
        return
    raise StoreError(f"{cell} holds a run of something else: {what}. Use another --out, or delete it.")


def _scorable(config: VerticalConfig, data: dict[str, PartyData]) -> dict[str, PartyData]:
    """The data, if there are labelled test people to score on."""
    test = data[config.label.party].test
    if test is None or all(label is None for label in test.labels):
        who = config.active.name
        what = "it has no test table" if test is None else f"no row of it has a label in {config.label.column!r}"
        raise TableError(
            f"{who} (test table): {what}. `compare` scores on people whose class is known: give {who} a `test` file"
            f" with the column {config.label.column!r}."
        )
    return data


def _row(name: str, values: dict[str, list[float]]) -> dict[str, Any]:
    others = {other: found for other, found in values.items() if other != name}
    over = best = None
    if others:
        best = max(others, key=lambda other: statistics.fmean(others[other]))
        over = interval([a - b for a, b in zip(values[name], others[best], strict=True)])
    return {
        "method": name,
        "interval": interval(values[name], 0, 1),
        "values": values[name],
        "best_other": best,
        "over": over,
    }
