"""A comparison of methods in words: figures with their intervals, and who is ahead."""

from __future__ import annotations

from h2tune.comparison.result import Comparison, Interval, MethodRow, Quantity, Table
from h2tune.comparison.statistics import best_of

UNITS: dict[Quantity, str] = {"metric": "points", "nats": "nats"}


def text_of(value: Interval | None, quantity: Quantity, signed: bool = False) -> str:
    """``54.1 (51.0 to 57.2)`` in per cent (or points), or nats with three digits."""
    if value is None:
        return "-"
    factor, digits = (100, 1) if quantity == "metric" else (1, 3)
    sign = "+" if signed else ""
    # Rounded first and 0 added: no minus before a zero.
    mean, low, high = (f"{round(factor * v, digits) + 0.0:{sign}.{digits}f}" for v in value)
    return mean if low == high else f"{mean} ({low} to {high})"


def mean_of(value: Interval | None, quantity: Quantity, signed: bool = False) -> str:
    """The same without the interval."""
    return text_of(None if value is None else [value[0]] * 3, quantity, signed)


def span_of(value: Interval | None, quantity: Quantity, signed: bool = False) -> str:
    """The interval alone, ``(51.0 to 57.2)``; empty where its ends are the same once rounded."""
    return text_of(value, quantity, signed).partition(" ")[2]


def client_of(row: MethodRow, name: str, quantity: Quantity) -> str:
    """One client's mean over the seeds."""
    return mean_of(row["clients"].get(name), quantity)


def quantity_of(table: Table) -> str:
    """What the table's figures are, in which direction they are better, and how its differences are signed."""
    if table["quantity"] == "metric":
        return (
            "Per cent right on test data, mean over seeds with its 95 % interval. Differences are in points, paired by"
            " seed, and positive where the method is better."
        )
    return (
        "Nats per answer token on test data (the mean loss of the right answer, in natural logarithms), less is better:"
        " with local training at least one client answers under 5 % exactly right, which is too coarse to compare."
        " Differences are paired by seed and positive where the method is better."
    )


def verdict(result: Comparison) -> str:
    """One plain sentence on the first table."""
    if not result["tables"] or not result["tables"][0]["methods"]:
        return "No run finished."
    return table_verdict(result["tables"][0])


def table_verdict(table: Table) -> str:
    """Which method is best, by how much, and how sure that is."""
    best = best_of(table["methods"], table["quantity"])
    over = best.get("over_best_other")
    if over is None:
        if table.get("apart"):
            return f"{best['method']} shares no seed with another method, so nothing can be compared."
        return f"{best['method']} alone was run."
    lead = f"{best['method']} is best, {text_of(over, table['quantity'], signed=True)} {UNITS[table['quantity']]} over"
    lead += f" {best.get('best_other', '')}"
    if len(best["seeds"]) == 1:
        return f"{lead}; one seed says little."
    if over[1] > 0:
        return f"{lead}; the interval excludes 0."
    return f"{lead}; the interval does not exclude 0, so this is no clear lead."


def averaging_of(table: Table) -> str:
    """What averaging alone is worth, in a sentence; empty where it cannot be said."""
    found = table["averaging"]
    if found is None:
        return ""
    told = text_of(found, table["quantity"], signed=True)
    doubt = "" if found[1] > 0 or found[2] < 0 or found[1] == found[2] else ", which may be chance"
    return f"Averaging alone (h2tune over the same frames, not averaged): {told} {UNITS[table['quantity']]}{doubt}."


def missing_of(table: Table) -> str:
    """Which seeds, methods and clients the figures leave out, in a sentence each; empty where none."""
    told = []
    if seeds := table.get("left_out"):
        by_seed = "; ".join(f"seed {seed}: none with {', '.join(names)}" for seed, names in seeds.items())
        told.append(f"Figures leave out seeds that not all methods have a result for ({by_seed}).")
    if apart := table.get("apart"):
        told.append(f"Left out, with a result for none of the seeds that are compared: {', '.join(apart)}.")
    if table["missing"]:
        by_seed = "; ".join(f"seed {seed}: {', '.join(names)}" for seed, names in table["missing"].items())
        told.append(f"Figures leave out clients that have no result with at least one method ({by_seed}).")
    return " ".join(told)
