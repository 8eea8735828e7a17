"""The figures of a comparison: means, intervals and paired differences, as plain values and as CSV.

Every difference is paired by seed: the runs of two methods with one seed have the same data. All figures are over the seeds
that all methods have, so a method does not gain by failing with a hard one. A seed's are over the clients that have a result
with all of the methods, so it does not gain by losing its weakest client. The table says what is left out. Intervals are
Student's t over seeds, 95 %; with one seed there is none. Where local training answers under 5 % of a client's test right,
exact match is too coarse, and the quantity is nats per answer token (less is better) for the whole federation.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Collection, Sequence

from h2tune.comparison.cells import Outcome
from h2tune.comparison.result import Comparison, Interval, MethodRow, Metrics, Quantity, Table, finals
from h2tune.config import Experiment
from h2tune.methods.registry import resolve_method
from h2tune.version import __version__

SCHEMA = 1
TOO_FEW_RIGHT = 0.05  # where a client has less right than this, nats say more than the metric
Runs = dict[str, dict[int, Metrics]]  # method -> seed -> metrics


def interval(values: Sequence[float], low: float | None = None, high: float | None = None) -> Interval:
    """Mean and its 95 % interval (Student's t), cut off at the least and largest value that is possible."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return [mean, mean, mean]
    from scipy import stats

    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    lower, upper = mean - half, mean + half
    return [mean, lower if low is None else max(low, lower), upper if high is None else min(high, upper)]


def summarise(experiment: Experiment, outcomes: Sequence[Outcome], rates: dict[str, float]) -> Comparison:
    """All figures of a grid as plain values, one table for each amount of training data."""
    failed = {o.cell.folder: o.reason for o in outcomes if o.metrics is None and not o.skipped}
    failed |= {
        o.cell.folder: "no client has a result" for o in outcomes if o.metrics is not None and not finals(o.metrics)
    }
    sizes = list(dict.fromkeys(o.cell.n_train for o in outcomes))
    tables = [_table([o for o in outcomes if o.cell.n_train == size], size, rates) for size in sizes]
    return {
        "schema": SCHEMA,
        "version": __version__,
        "name": experiment.name,
        "clients": [c.name for c in experiment.clients],
        "config": experiment.model_dump(mode="json", exclude={"method", "methods", "seed"}),
        "tables": tables,
        "failed": failed,
        "skipped": {o.cell.method: o.reason for o in outcomes if o.skipped},
        # Of the runs, not of this call: a comparison that is continued did not take three seconds.
        "seconds": sum(o.metrics["seconds"] for o in outcomes if o.metrics),
    }


def _table(outcomes: Sequence[Outcome], size: int | None, rates: dict[str, float]) -> Table:
    runs: Runs = {}
    for outcome in outcomes:
        if outcome.metrics is not None and finals(outcome.metrics):
            runs.setdefault(outcome.cell.method, {})[outcome.cell.seed] = outcome.metrics
    runs, left_out, apart = _shared_seeds(runs)
    quantity: Quantity = "nats" if _exact_match_is_too_rare(runs) else "metric"
    common, missing = _common(runs)
    rows = [
        _row(method, found, common, quantity, rates.get(method if size is None else f"{method}-n{size}", 1.0))
        for method, found in runs.items()
        if any(common[seed] for seed in found)
    ]
    _set_side_by_side(rows, quantity)
    named = {row["method"]: row for row in rows}
    methods = {name: resolve_method(name)[0] for name in named}
    pairs = [
        (named[method.variant_of], named[name])
        for name, method in methods.items()
        if not method.averages and method.variant_of in named
    ]
    averaging = _difference(*pairs[0], quantity) if pairs else None
    return {"n_train": size, "quantity": quantity, "methods": rows, "averaging": averaging, "missing": missing,
            "left_out": left_out, "apart": apart}  # fmt: skip


def _shared_seeds(runs: Runs) -> tuple[Runs, dict[str, list[str]], list[str]]:
    """The runs of the seeds that all methods have, for each other seed the methods that lack it, and methods apart.

    Where no seed is common to all, the most methods that have one in common are kept: of sets of one size those with more
    common seeds, then those with the lowest one. The rest stands apart.
    """
    kept, shared = dict[str, dict[int, Metrics]](), set[int]()
    for seed in sorted({seed for found in runs.values() for seed in found}):
        having = {method: found for method, found in runs.items() if seed in found}
        common = set.intersection(*(set(found) for found in having.values()))
        if (len(having), len(common)) > (len(kept), len(shared)):
            kept, shared = having, common
    others = sorted({seed for found in kept.values() for seed in found} - shared)
    left_out = {str(seed): [method for method, found in kept.items() if seed not in found] for seed in others}
    apart = [method for method in runs if method not in kept]
    return {m: {s: found[s] for s in found if s in shared} for m, found in kept.items()}, left_out, apart


def _common(runs: Runs) -> tuple[dict[int, set[str]], dict[str, list[str]]]:
    """For each seed the clients that have a result with every method that was run, and those that do not."""
    common: dict[int, set[str]] = {}
    missing: dict[str, list[str]] = {}
    for seed in sorted({seed for found in runs.values() for seed in found}):
        present = [found[seed] for found in runs.values() if seed in found]
        everyone = {name for metrics in present for name in metrics["clients"]}
        common[seed] = everyone.intersection(*(finals(metrics) for metrics in present))
        if absent := sorted(everyone - common[seed]):
            missing[str(seed)] = absent
    return common, missing


def _exact_match_is_too_rare(runs: Runs) -> bool:
    reference = runs.get("local") or next(iter(runs.values()), {})
    scores: dict[str, list[float]] = {}
    for metrics in reference.values():
        for name, final in finals(metrics).items():
            scores.setdefault(name, []).append(final["metric"])
    return any(statistics.fmean(values) < TOO_FEW_RIGHT for values in scores.values())


def _row(
    method: str, found: dict[int, Metrics], common: dict[int, set[str]], quantity: Quantity, rate: float
) -> MethodRow:
    """One method's figures over its seeds, all of the same seeds and clients as any other method's."""
    found = {seed: metrics for seed, metrics in found.items() if common[seed]}
    clients: dict[str, list[float]] = {}
    for seed, metrics in found.items():
        for name in sorted(common[seed]):
            clients.setdefault(name, []).append(finals(metrics)[name][quantity])
    means = {
        key: {str(seed): _mean(metrics, common[seed], key) for seed, metrics in found.items()}
        for key in ("metric", "nats")
    }
    rounds = [r for m in found.values() for c in m["clients"].values() for r in c["rounds"]]
    setup = [c["setup_bytes"] for m in found.values() for c in m["clients"].values()]
    share, loss = interval(list(means["metric"].values()), 0, 1), interval(list(means["nats"].values()), 0)
    highest = 1 if quantity == "metric" else None
    return {
        "method": method,
        "seeds": means[quantity],
        "mean": share if quantity == "metric" else loss,
        "metric": share,
        "nats": loss,
        "clients": {name: interval(values, 0, highest) for name, values in clients.items()},
        "bytes_up": statistics.fmean(r["bytes_up"] for r in rounds),
        "bytes_down": statistics.fmean(r["bytes_down"] for r in rounds),
        "setup_up": statistics.fmean(s["up"] for s in setup),
        "setup_down": statistics.fmean(s["down"] for s in setup),
        "seconds": statistics.fmean(m["seconds"] for m in found.values()),
        "curve": _curve(found, common),
        "rate": rate,
    }


def _mean(metrics: Metrics, names: Collection[str], key: str) -> float:
    scores = finals(metrics)
    return statistics.fmean(scores[name][key] for name in sorted(names))


def _set_side_by_side(rows: list[MethodRow], quantity: Quantity) -> None:
    """Add each method's difference to local training and to the best of the other methods."""
    local = next((row for row in rows if row["method"] == "local"), None)
    for row in rows:
        if local is not None and row is not local:
            row["over_local"] = _difference(row, local, quantity)
        if rivals := [other for other in rows if other is not row]:
            best = best_of(rivals, quantity)
            row["best_other"], row["over_best_other"] = best["method"], _difference(row, best, quantity)


def best_of(rows: Sequence[MethodRow], quantity: Quantity) -> MethodRow:
    """The row with the best mean."""
    return (min if quantity == "nats" else max)(rows, key=lambda row: row["mean"][0])


def _curve(found: dict[int, Metrics], common: dict[int, set[str]]) -> list[list[float]]:
    """Mean validation loss (nats) by round over clients and seeds."""
    values: dict[int, list[float]] = {}
    for seed, metrics in found.items():
        for name in sorted(common[seed]):
            for record in metrics["clients"][name]["rounds"]:
                if record.get("validation"):
                    values.setdefault(record["round"], []).append(record["validation"]["nats"])
    return [[number, statistics.fmean(v)] for number, v in sorted(values.items())]


def _difference(row: MethodRow, other: MethodRow, quantity: Quantity) -> Interval | None:
    """Difference, paired by seed; positive is better for ``row``."""
    common = row["seeds"].keys() & other["seeds"].keys()
    sign = -1 if quantity == "nats" else 1
    return interval([sign * (row["seeds"][s] - other["seeds"][s]) for s in sorted(common)]) if common else None


def to_csv(result: Comparison) -> str:
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
            clients = [row["clients"][name][0] if name in row["clients"] else "" for name in names]
            local: list[float] | list[str] = row.get("over_local") or [""] * 3
            best: list[float] | list[str] = row.get("over_best_other") or [""] * 3
            writer.writerow(
                [table["n_train"] or "", table["quantity"], row["method"], len(row["seeds"]), *row["mean"], *clients,
                 *local, row.get("best_other", ""), *best, row["bytes_up"], row["bytes_down"], row["setup_up"],
                 row["setup_down"], row["seconds"], row["rate"]]
            )  # fmt: skip
    return text.getvalue()
