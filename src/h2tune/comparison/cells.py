"""The cells of a comparison: what each one runs, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from h2tune.config import Experiment, MethodChanges, load_config
from h2tune.errors import H2TuneError
from h2tune.methods.registry import check_other_methods, resolve_method, spec_beside

TUNING_SEED = 10_000  # rates are chosen on data and randomness that no reported seed has
RATES = {"learning_rate", "core_learning_rate"}
UNREAD_TEST = 4  # test rows of a trial: a run needs some, nobody looks at them


class CompareError(H2TuneError, RuntimeError):
    """A comparison cannot go on; the text says why and what to do."""


@dataclass(frozen=True)
class Cell:
    """One run of the grid. ``rate`` multiplies the file's learning rates."""

    method: str
    seed: int
    n_train: int | None = None
    rate: float = 1.0
    tuning: bool = False

    @property
    def folder(self) -> str:
        size = "" if self.n_train is None else f"-n{self.n_train}"
        # A final run, too: more trials may choose another rate, and runs with the one before are then no longer those.
        rate = f"rate-{self.rate:g}/" if self.tuning or self.rate != 1 else ""
        return f"{'tune' if self.tuning else 'runs'}/{self.method}{size}/{rate}seed-{self.seed}"


@dataclass(frozen=True)
class Outcome:
    """What became of a cell: its metrics, or why there are none."""

    cell: Cell
    metrics: dict[str, Any] | None = None
    reason: str = ""
    skipped: bool = False  # the method does not suit the federation; nothing went wrong


def as_written(file: str | Path, seed: int = 0) -> Experiment:
    """The file's own experiment, which cells are made from."""
    if str(file) != "demo":
        return load_config(file, seed=seed)
    from h2tune.demo import demo_experiment

    return demo_experiment(seed)


def method_in(file: str | Path) -> str:
    """The name of the method that a federation's file asks for."""
    method = as_written(file).method
    return method if isinstance(method, str) else str(method.get("name", "h2tune"))


def experiment_of(file: str | Path, cell: Cell) -> Experiment:
    """The experiment of one cell."""
    base = as_written(file, cell.seed)
    check_other_methods(base)
    spec = spec_beside(base, cell.method)
    resolve_method(spec)
    changes = base.methods.get(cell.method, MethodChanges())
    training = base.training.model_copy(update=changes.model_dump(include=RATES, exclude_none=True))
    data: dict[str, Any] = {} if cell.n_train is None else {"n_train": cell.n_train}
    if cell.tuning:
        data["n_test"] = UNREAD_TEST  # rates are chosen by validation: there is nothing to see in test data
    clients = [c.model_copy(update=data | {"learning_rate": cell.rate * training.rate_of(c)}) for c in base.clients]
    return base.model_copy(
        update={
            "method": spec,
            "rank": changes.rank or base.rank,
            "depth": changes.depth or base.depth,
            "methods": {},
            "baseline": "none",
            "select": "federated",
            "tracking": [],
            "clients": clients,
            "training": training.model_copy(update={"core_learning_rate": cell.rate * training.core_learning_rate}),
        }
    )
