"""What the reasoning suites share: one run of a method, kept as JSON, and paired differences over seeds."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import RESULTS, about, amend, read, refuse_others, settings_of

from h2tune.comparison.statistics import interval
from h2tune.methods.fedmkt import FedMktClient
from h2tune.tasks.public import load_questions

NOT_OF_A_RUN = ("measure", "tune", "checkpointing")
"""Options of `real_models` that choose what is done, or change no figure."""
SMALL: dict[str, dict[str, Any]] = {
    "lada": {},
    "random": {"filter": "random"},
    "teacher-loss": {"filter": "teacher-loss"},
    "student-loss": {"filter": "student-loss"},
    "all": {"filter": "all"},
    "public-gold": {"filter": "gold", "contrast": 0.0},
    "bandit": {"filter": "bandit"},
    "band": {"filter": "band", "samples": 4},
}
ABLATIONS: dict[str, dict[str, Any]] = {
    "sft": {"contrast": 0.0},
    "no-anchor": {"anchor": 0.0},
    "no-gate": {"gate": False},
    "no-acceptance": {"accept": False},
    "no-domain": {"domain": False},
    "no-c": {"reducible": False},
    "gamma-1": {"gamma": 1.0, "beta": 20.0},
    "no-bound": {"margin": None},
    "no-solved": {"solved": False},
}


def leave_unless_here(*paths: str | Path) -> None:
    """End the process, and say why, where a model or a data folder is not on this machine; models of the zoo always are."""
    missing = [str(path) for path in paths if not str(path).startswith("zoo:") and not Path(path).exists()]
    if missing:
        sys.exit(f"skipped: not on this machine: {', '.join(missing)}")


def kept(
    name: str, key: str, make: Callable[[], dict[str, Any]], args: argparse.Namespace | None = None
) -> dict[str, Any]:
    """The result under a key of ``results/NAME.json``, made now if it is not there yet: a stopped benchmark goes on.

    Args:
        args: the command's options. No cell of this method may have been made with other settings.
    """
    settings = None if args is None else settings_of(args, *NOT_OF_A_RUN)
    path, method = RESULTS / f"{name}.json", key.rpartition("/")[0]
    cells = read(path).get("cells", {})
    for other, cell in cells.items():
        if other.rpartition("/")[0] == method:
            refuse_others(cell, settings, f"{other} of {path.name}")
    if key not in cells:
        begin = time.perf_counter()
        found = make()
        cell = found | {"seconds": round(time.perf_counter() - begin, 1)} | about()
        cell |= {} if settings is None else {"settings": settings}

        def added(known: dict[str, Any]) -> dict[str, Any]:
            known.setdefault("cells", {}).setdefault(key, cell)  # another process may have added some, even this one
            return known | about()

        cells = amend(path, added)["cells"]
        print(f"{key}: {found}", flush=True)
    return dict(cells[key])


def paired(
    cells: dict[str, dict[str, Any]], a: str, b: str, seeds: Iterable[int], value: str = "accuracy"
) -> tuple[float, float, float] | None:
    """Mean of a - b over the seeds that both have, with its 95 % interval; None below two of them."""
    gaps = [
        cells[f"{a}/{seed}"][value] - cells[f"{b}/{seed}"][value]
        for seed in seeds
        if f"{a}/{seed}" in cells and f"{b}/{seed}" in cells
    ]
    return interval(gaps) if len(gaps) > 1 else None


@contextmanager
def answered(experiment: Any, count: int) -> Iterator[None]:
    """FedMKT's public text is LaDa's: ``count`` questions a round with their right answers, not stories without."""
    questions = load_questions(experiment.public)

    def texts(self: FedMktClient, round: int) -> list[str]:
        return [
            questions.examples[i].prompt + questions.examples[i].answer
            for i in questions.slice(round, count, experiment.seed)
        ]

    FedMktClient.public_texts = texts  # type: ignore[assignment]
    try:
        yield
    finally:
        FedMktClient.public_texts = None


def in_folder(make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """A result made in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        return make(Path(folder))


def table(name: str, rivals: dict[str, str], seeds: Iterable[int], values: Iterable[str]) -> None:
    """Print the paired differences of ``{label: "a - b"}`` and keep them with the cells."""
    path = RESULTS / f"{name}.json"
    cells, found = read(path)["cells"], {}
    for label, pair in rivals.items():
        a, b = pair.split(" - ")
        for value in values:
            if (gap := paired(cells, a, b, seeds, value)) is not None:
                found[f"{label}: {value}"] = gap
                print(f"{label:42s} {value:10s} {gap[0]:+.3f}  ({gap[1]:+.3f} to {gap[2]:+.3f})")
    amend(path, lambda known: known | {"differences": found})
