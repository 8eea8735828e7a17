"""What is checked before a comparison runs anything: its numbers, and the data of every seed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from h2tune.comparison.cells import TUNING_SEED, Cell, CompareError, experiment_of
from h2tune.config import Experiment
from h2tune.config.reading import SOURCES
from h2tune.frames import registry as frames
from h2tune.methods.registry import resolve_method
from h2tune.participant.devices import check_device
from h2tune.participant.prepare import check_known, read_part
from h2tune.tasks import build_task
from h2tune.tasks.sources import source_path

TOLD = 8  # lines
NAMES = ("builtin", "demo")  # anchors and codes that are no files


def check_numbers(methods: Sequence[str], n_train: Sequence[int], tune: Sequence[float]) -> None:
    """Raise CompareError where nothing is to be compared, or a number can be none of its kind."""
    if not methods:
        raise CompareError("--methods: name one or more, with commas between, or `all`; `h2tune methods` lists them.")
    if wrong := [size for size in n_train if size < 1]:
        raise CompareError(f"--n-train {wrong[0]}: an amount of data is 1 row or more.")
    if strange := [rate for rate in tune if not 0 < rate < math.inf]:
        raise CompareError(f"--tune {strange[0]:g}: a multiple of a learning rate is a number above 0.")


def check_data(file: str | Path, cells: Sequence[Cell]) -> None:
    """Look for the device, and for the data of every seed, that the cells need; files may have the seed in their names.

    Args:
        cells: those that will be run. What is finished needs neither device nor data.

    Raises:
        ConfigError: a model or data are not known.
        ModelError: this machine lacks the device.
        CompareError: a file is not there, or a client has fewer rows than an amount of data that is asked for, with some
            seed: its table would show another amount.
    """
    if not cells:
        return
    # Rates and amounts of data ask for no other files.
    wanted = dict.fromkeys((cell.method, cell.seed) for cell in cells)
    experiments = [(seed, experiment_of(file, Cell(method, seed))) for method, seed in wanted]
    check_known(experiments[0][1])
    check_device(experiments[0][1].device)
    if missing := list(_missing(experiments)):
        more = [f"and {len(missing) - TOLD} more"] if len(missing) > TOLD else []
        raise CompareError("\n".join(missing[:TOLD] + more))
    _check_rows(dict(experiments), max(cell.n_train or 0 for cell in cells))


def _check_rows(experiments: Mapping[int, Experiment], most: int) -> None:
    """Raise CompareError if a client has fewer training rows than ``most`` with some seed."""
    counted: set[tuple[str, str]] = set()
    for seed, experiment in experiments.items():
        for client in experiment.clients if most else ():
            if (client.name, client.train) in counted:  # the same file with another seed
                continue
            counted.add((client.name, client.train))
            whole = client.model_copy(update={"n_train": None})
            rows = len(read_part(whole, build_task(client.task), "train", seed=seed))
            if most > rows:
                raise CompareError(f"--n-train {most}: {client.name} has {rows} training rows with {_called(seed)}")


def _missing(experiments: Iterable[tuple[int, Experiment]]) -> Iterator[str]:
    """A line for each file that is not there, with the first seed that asks for it."""
    asked: set[str] = set()
    for seed, experiment in experiments:
        for key, source in _sources(experiment).items():
            if source in asked or source in NAMES or source.startswith(("demo:", "hub:")):
                continue
            asked.add(source)
            if not source_path(source)[0].exists():
                yield f"{key}: no file or folder {source}, which is asked for with {_called(seed)}"


def _sources(experiment: Experiment) -> dict[str, str]:
    """What a run of the experiment's method reads, by the key that names it."""
    _, settings = resolve_method(experiment.method)
    kind = getattr(settings.inner, "frames", "anchor")
    found = {"anchors": experiment.anchors, "anchor_words": experiment.anchor_words}
    if experiment.public and settings.asks_public:
        found["public.source"] = experiment.public.source
    if kind == "words":
        found["codes"] = getattr(settings.inner, "codes", None)
    practises = kind not in frames.OWN
    parts = [part for part in SOURCES if practises or part != "practice"]
    found |= {f"{client.name}: {part}": getattr(client, part) for client in experiment.clients for part in parts}
    return {key: source for key, source in found.items() if source}


def _called(seed: int) -> str:
    return f"seed {seed}" + (", with which --tune chooses rates" if seed == TUNING_SEED else "")
