"""Vertical methods side by side over seeds: the same data, other first weights and batches; goes on where it stopped."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from h2tune.utils.files import write_atomic
from h2tune.vertical.config import VerticalConfig
from h2tune.vertical.federation import load_parties
from h2tune.vertical.methods import method_named
from h2tune.vertical.trial import evaluate


def interval(values: Sequence[float]) -> list[float]:
    """Mean and its 95 % interval (Student's t); the ends equal the mean where there is but one value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return [mean, mean, mean]
    from scipy import stats

    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return [mean, mean - half, mean + half]


def compare_methods(
    config: VerticalConfig, names: list[str], seeds: int, out: Path, quantity: str = "balanced"
) -> dict[str, Any]:
    """Run every method with every seed and say which is better, and how sure that is.

    Args:
        quantity: what is compared, a key of `h2tune.vertical.metrics.score`.
    """
    methods = [method_named(name) for name in names]
    values: dict[str, list[float]] = {name: [] for name in names}
    for seed in range(seeds):
        seeded = config.model_copy(update={"seed": seed})
        data = None
        for method in methods:
            cell = out / f"{method.name}-seed{seed}.json"
            if not cell.is_file():
                data = data or load_parties(seeded)
                write_atomic(cell, json.dumps(evaluate(seeded, method, data)).encode())
            values[method.name].append(float(json.loads(cell.read_text(encoding="utf-8"))[quantity]))
    rows = [_row(name, values) for name in names]
    result = {"name": config.name, "quantity": quantity, "seeds": seeds, "methods": rows}
    write_atomic(out / "compare.json", json.dumps(result, indent=1).encode())
    return result


def _row(name: str, values: dict[str, list[float]]) -> dict[str, Any]:
    others = {other: found for other, found in values.items() if other != name}
    over = best = None
    if others:
        best = max(others, key=lambda other: statistics.fmean(others[other]))
        over = interval([a - b for a, b in zip(values[name], others[best], strict=True)])
    return {
        "method": name,
        "interval": interval(values[name]),
        "values": values[name],
        "best_other": best,
        "over": over,
    }
