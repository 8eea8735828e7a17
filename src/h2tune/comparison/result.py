"""The figures of a comparison as they stand in compare.json."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

Metrics = dict[str, Any]
"""A run's metrics.json."""

Interval = list[float]
"""Mean, lower and upper end; the ends equal the mean where there is but one value."""

Quantity = Literal["metric", "nats"]
"""`metric` is a share between 0 and 1 (more is better), `nats` is the loss per answer token (less is better)."""


class MethodRow(TypedDict):
    """One method's figures over the seeds that all methods have. Differences are paired by seed and positive where it is better."""

    method: str
    seeds: dict[str, float]  # seed -> mean over the clients, in the table's quantity
    mean: Interval
    metric: Interval
    nats: Interval
    clients: dict[str, Interval]
    bytes_up: float  # of one client in one round
    bytes_down: float
    setup_up: float  # of one client, once
    setup_down: float
    seconds: float
    curve: list[list[float]]  # [round, mean validation loss in nats]
    rate: float  # multiple of the file's learning rates
    over_local: NotRequired[Interval | None]
    best_other: NotRequired[str]
    over_best_other: NotRequired[Interval | None]


class Table(TypedDict):
    """All methods with one amount of training data (None: the file's own)."""

    n_train: int | None
    quantity: Quantity
    methods: list[MethodRow]
    averaging: Interval | None
    missing: dict[str, list[str]]  # seed -> clients without a result with some method, left out of that seed's figures
    left_out: NotRequired[dict[str, list[str]]]  # seed -> methods without a result for it; no figure has this seed
    apart: NotRequired[list[str]]  # methods without a result for any seed of the figures


class Comparison(TypedDict):
    """The whole of compare.json."""

    schema: int
    version: str
    name: str
    clients: list[str]
    config: dict[str, Any]
    tables: list[Table]
    failed: dict[str, str]  # run -> reason
    skipped: dict[str, str]  # method -> why it does not suit this federation
    seconds: float  # of all runs, however often the comparison was continued


def finals(metrics: Metrics) -> dict[str, dict[str, float]]:
    """The final scores of the clients that have one."""
    return {name: client["final"] for name, client in metrics["clients"].items() if client["final"]}
