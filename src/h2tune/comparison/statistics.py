"""What a comparison of methods says: means, intervals and paired differences; as a table, JSON, CSV and one HTML page.

Every difference is paired by seed: the runs of two methods with one seed have the same data. Intervals are
Student's t over seeds, 95 %; with one seed there is none. Where local training answers under 5 % of a client's test
right, exact match is too coarse, and the quantity is nats per answer token (less is better) for the whole federation.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from h2tune.methods.registry import resolve_method
from h2tune.utils.files import write_atomic
from h2tune.version import __version__

if TYPE_CHECKING:
    from h2tune.comparison.grid import Outcome
    from h2tune.config import Experiment

SCHEMA = 1
TOO_FEW_RIGHT = 0.05  # where a client has less right than this, nats say more than the metric
Interval = list[float]
"""Mean, lower and upper end; the ends equal the mean where there is but one value."""


def interval(values: Sequence[float]) -> Interval:
    """Mean and its 95 % interval (Student's t)."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return [mean, mean, mean]
    from scipy import stats

    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return [mean, mean - half, mean + half]


def summarise(experiment: Experiment, outcomes: Sequence[Outcome], rates: dict[str, float]) -> dict[str, Any]:
    """All figures of a grid as plain values, one table for each amount of training data."""
    sizes = list(dict.fromkeys(o.cell.n_train for o in outcomes))
    tables = [_table([o for o in outcomes if o.cell.n_train == size], size, rates) for size in sizes]
    return {
        "schema": SCHEMA,
        "version": __version__,
        "name": experiment.name,
        "clients": [c.name for c in experiment.clients],
        "config": experiment.model_dump(mode="json", exclude={"method", "methods", "seed"}),
        "tables": tables,
        "failed": {o.cell.folder: o.reason for o in outcomes if o.metrics is None and not o.skipped},
        "skipped": {o.cell.method: o.reason for o in outcomes if o.skipped},
    }


def _table(outcomes: Sequence[Outcome], size: int | None, rates: dict[str, float]) -> dict[str, Any]:
    runs: dict[str, dict[int, dict[str, Any]]] = {}
    for outcome in outcomes:
        if outcome.metrics is not None:
            runs.setdefault(outcome.cell.method, {})[outcome.cell.seed] = outcome.metrics
    nats = _exact_match_is_too_rare(runs)
    rows = [_row(method, found, nats) for method, found in runs.items()]
    for row in rows:
        row["rate"] = rates.get(row["method"] if size is None else f"{row['method']}-n{size}", 1.0)
        if row["method"] != "local" and "local" in runs:
            row["over_local"] = _difference(row, next(r for r in rows if r["method"] == "local"), nats)
        rivals = [r for r in rows if r is not row]
        if rivals:
            best = (min if nats else max)(rivals, key=lambda r: r["mean"][0])
            row["best_other"], row["over_best_other"] = best["method"], _difference(row, best, nats)
    named = {row["method"]: row for row in rows}
    pairs = [(named[whole], row) for name, row in named.items() if (whole := resolve_method(name)[0].variant_of) in named]
    averaging = _difference(*pairs[0], nats) if pairs else None
    return {"n_train": size, "quantity": "nats" if nats else "metric", "methods": rows, "averaging": averaging}


def _exact_match_is_too_rare(runs: dict[str, dict[int, dict[str, Any]]]) -> bool:
    reference = runs.get("local") or next(iter(runs.values()), {})
    scores: dict[str, list[float]] = {}
    for metrics in reference.values():
        for name, client in metrics["clients"].items():
            if client["final"]:
                scores.setdefault(name, []).append(client["final"]["metric"])
    return any(statistics.fmean(values) < TOO_FEW_RIGHT for values in scores.values())


def _row(method: str, found: dict[int, dict[str, Any]], nats: bool) -> dict[str, Any]:
    """One method's figures over its seeds."""
    key = "nats" if nats else "metric"
    clients: dict[str, list[float]] = {}
    per_seed: dict[str, float] = {}
    both: dict[str, list[float]] = {"metric": [], "nats": []}
    for seed, metrics in found.items():
        finals = {name: c["final"] for name, c in metrics["clients"].items() if c["final"]}
        for name, final in finals.items():
            clients.setdefault(name, []).append(final[key])
        per_seed[str(seed)] = statistics.fmean(final[key] for final in finals.values())
        for other, values in both.items():
            values.append(statistics.fmean(final[other] for final in finals.values()))
    rounds = [r for m in found.values() for c in m["clients"].values() for r in c["rounds"]]
    setup = [c["setup_bytes"] for m in found.values() for c in m["clients"].values()]
    return {
        "method": method,
        "seeds": per_seed,
        "mean": interval(list(per_seed.values())),
        "metric": interval(both["metric"]),
        "nats": interval(both["nats"]),
        "clients": {name: interval(values) for name, values in clients.items()},
        "bytes_up": statistics.fmean(r["bytes_up"] for r in rounds),
        "bytes_down": statistics.fmean(r["bytes_down"] for r in rounds),
        "setup_up": statistics.fmean(s["up"] for s in setup),
        "setup_down": statistics.fmean(s["down"] for s in setup),
        "seconds": statistics.fmean(m["seconds"] for m in found.values()),
        "curve": _curve(found),
    }


def _curve(found: dict[int, dict[str, Any]]) -> list[list[float]]:
    """Mean validation loss (nats) by round over clients and seeds."""
    values: dict[int, list[float]] = {}
    for metrics in found.values():
        for client in metrics["clients"].values():
            for record in client["rounds"]:
                if record.get("validation"):
                    values.setdefault(record["round"], []).append(record["validation"]["nats"])
    return [[number, statistics.fmean(v)] for number, v in sorted(values.items())]


def _difference(row: dict[str, Any], other: dict[str, Any], nats: bool) -> Interval | None:
    """Paired difference over the seeds that both have; positive is better for ``row``."""
    common = row["seeds"].keys() & other["seeds"].keys()
    sign = -1 if nats else 1
    return interval([sign * (row["seeds"][s] - other["seeds"][s]) for s in sorted(common)]) if common else None


def averaging_of(table: dict[str, Any]) -> str:
    """What averaging alone is worth, in a sentence; empty where it cannot be said."""
    found = table.get("averaging")
    if found is None:
        return ""
    unit = "points" if table["quantity"] == "metric" else "nats"
    told = text_of(found, table["quantity"], signed=True)
    doubt = "" if found[1] > 0 or found[2] < 0 else ", which may be chance"
    return f"Averaging alone (h2tune over the same frames, not averaged): {told} {unit}{doubt if found[1] < found[2] else ''}."


def write_comparison(result: dict[str, Any], out: Path) -> None:
    """Write compare.json, compare.csv and compare.html."""
    from h2tune.report.comparison_page import render

    write_atomic(out / "compare.json", (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
    write_atomic(out / "compare.csv", to_csv(result).encode())
    write_atomic(out / "compare.html", render(result).encode("utf-8", errors="replace"))


def to_csv(result: dict[str, Any]) -> str:
    """One line for each method and amount of data."""
    names = result["clients"]
    heads = ["n_train", "quantity", "method", "seeds", "mean", "low", "high"]
    heads += [f"{name}" for name in names]
    heads += ["over_local", "over_local_low", "over_local_high", "best_other", "over_best_other",
              "over_best_other_low", "over_best_other_high", "bytes_up", "bytes_down", "setup_up", "setup_down",
              "seconds", "rate"]  # fmt: skip
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    for table in result["tables"]:
        for row in table["methods"]:
            clients = [row["clients"].get(name, [""])[0] for name in names]
            local, best = row.get("over_local") or [""] * 3, row.get("over_best_other") or [""] * 3
            writer.writerow(
                [table["n_train"] or "", table["quantity"], row["method"], len(row["seeds"]), *row["mean"], *clients,
                 *local, row.get("best_other", ""), *best, row["bytes_up"], row["bytes_down"], row["setup_up"],
                 row["setup_down"], row["seconds"], row["rate"]]
            )  # fmt: skip
    return text.getvalue()


def text_of(value: Interval | None, quantity: str, signed: bool = False) -> str:
    """``54.1 (51.0 to 57.2)`` in per cent (or points), or nats with three digits."""
    if value is None:
        return "-"
    factor, digits = (100, 1) if quantity == "metric" else (1, 3)
    sign = "+" if signed else ""
    # Rounded first and 0 added: no minus before a zero.
    mean, low, high = (f"{round(factor * v, digits) + 0.0:{sign}.{digits}f}" for v in value)
    return mean if low == high else f"{mean} ({low} to {high})"


def print_comparison(result: dict[str, Any]) -> None:
    """The tables on the screen."""
    from rich.console import Console
    from rich.table import Table

    from h2tune.report.format import size

    console = Console()
    for found in result["tables"]:
        quantity = found["quantity"]
        what = "nats per answer token, less is better" if quantity == "nats" else "per cent right"
        data = f", {found['n_train']} training rows" if found["n_train"] else ""
        table = Table(title=f"{result['name']}{data}: {what}", title_justify="left")
        heads = [
            "method",
            *result["clients"],
            "mean",
            "over local",
            "over best other",
            "up / round",
            "down / round",
            "time",
        ]
        for head in heads:
            table.add_column(head, justify="left" if head == "method" else "right")
        for row in found["methods"]:
            clients = [text_of((row["clients"].get(n) or [None])[:1] * 3 if n in row["clients"] else None, quantity)
                       for n in result["clients"]]  # fmt: skip
            best = text_of(row.get("over_best_other"), quantity, signed=True)
            table.add_row(row["method"], *clients, text_of(row["mean"], quantity),
                          text_of(row.get("over_local"), quantity, signed=True),
                          f"{best} {row.get('best_other', '')}".strip(),
                          size(row["bytes_up"]), size(row["bytes_down"]), f"{row['seconds']:.0f} s")  # fmt: skip
        Console(width=max(console.width, 100 + 9 * len(result["clients"]))).print(table)
        if told := averaging_of(found):
            console.print(told, highlight=False, soft_wrap=True)
    for kind in ("skipped", "failed"):
        for name, reason in result[kind].items():
            console.print(f"{kind} {name}: {reason}", highlight=False, markup=False)
