"""Methods side by side over seeds and amounts of data: a grid of runs, restartable, then one table.

OUT/runs/METHOD[-nN]/seed-S/     a run directory each; a finished one is never run again
OUT/frames/                      frames that were practised once and hold for every run
OUT/tuned.json                   the rates that `tune` chose, by validation of what the table shows
OUT/compare.json, .csv, .html    the result (see `h2tune.report.comparison`)

What is held fixed: data, seeds, updates, evaluation, and `rank`, `depth` and `keep` unless the file says otherwise. What differs
between methods is written in the file under `methods:` and stands in the result.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from h2tune.config import ConfigError, Experiment, load_config
from h2tune.files import write_atomic
from h2tune.methods import Method, MethodError, resolve_method
from h2tune.report.comparison import TOO_FEW_RIGHT, summarise, write_comparison
from h2tune.store import RunStore, StoreError

TUNING_SEED = 10_000  # rates are chosen on data and randomness that no reported seed has
UNREAD_TEST = 4  # test rows of a trial: a run needs some, nobody looks at them
FRAMED = ("h2tune", "h2tune-unshared")  # have the same settings, but for sharing


class CompareError(RuntimeError):
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
        part = f"tune/{self.method}{size}/rate-{self.rate:g}" if self.tuning else f"runs/{self.method}{size}"
        return f"{part}/seed-{self.seed}"


@dataclass(frozen=True)
class Outcome:
    """What became of a cell: its metrics, or why there are none."""

    cell: Cell
    metrics: dict[str, Any] | None = None
    reason: str = ""
    skipped: bool = False  # the method does not suit the federation; nothing went wrong


Report = Callable[[str], None]


def compare(
    file: str | Path,
    methods: Sequence[str],
    seeds: int,
    out: str | Path,
    *,
    n_train: Sequence[int] = (),
    tune: Sequence[float] = (),
    jobs: int = 0,
    say: Report = lambda text: None,
) -> dict[str, Any]:
    """Run the grid and return the result, as written to ``OUT/compare.json``.

    Args:
        file: a federation's YAML (``{seed}`` in a data source stands for the run's seed), or ``demo``.
        methods: names of methods; settings of their own stand in the file under ``methods:``.
        seeds: runs of each method, with seeds 0, 1, ...
        n_train: amounts of training data to sweep over; by default the file's own.
        tune: multiples of the file's learning rates; each method takes the best by validation, on a seed of its own.
        jobs: runs at a time; 0 means as many as there are cores.
        say: told what happens, a line each.

    Raises:
        ConfigError, MethodError, CompareError: before anything is trained.
    """
    out, sizes = Path(out), list(n_train) or [None]
    begin, jobs = time.perf_counter(), jobs or os.cpu_count() or 1
    for name in methods:
        experiment_of(file, Cell(name, 0))  # every mistake in names and settings, before anything runs
    rates: dict[str, float] = {}
    if tune:
        trials = [Cell(m, TUNING_SEED, n, r, tuning=True) for n in sizes for m in methods for r in tune]
        rates = best_rates(run_grid(file, trials, out, jobs, say))
        write_atomic(out / "tuned.json", (json.dumps(rates, indent=1) + "\n").encode())
        say("rates chosen by validation: " + ", ".join(f"{m} x{r:g}" for m, r in rates.items()))
    cells = [Cell(m, s, n, rates.get(rate_key(m, n), 1.0)) for n in sizes for m in methods for s in range(seeds)]
    outcomes = run_grid(file, cells, out, jobs, say)
    result = summarise(experiment_of(file, cells[0]), outcomes, rates)
    result["seconds"] = time.perf_counter() - begin
    write_comparison(result, out)
    return result


def compare_names(text: str) -> list[str]:
    """Names from ``a,b,c``, or all methods for ``all``."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    return list(Method.registry) if names == ["all"] else list(dict.fromkeys(names))


def experiment_of(file: str | Path, cell: Cell) -> Experiment:
    """The experiment of one cell."""
    if str(file) == "demo":
        from h2tune.demo import demo_experiment

        base = demo_experiment(cell.seed)
    else:
        base = load_config(file, seed=cell.seed)
    own = {"name": base.method} if isinstance(base.method, str) else {"name": "h2tune", **base.method}
    changes = dict(base.methods.get(cell.method, {}))
    training = base.training
    rank, depth = changes.pop("rank", base.rank), changes.pop("depth", base.depth)
    rates = {k: changes.pop(k) for k in ("learning_rate", "core_learning_rate") if k in changes}
    rates = {k: cell.rate * rates.get(k, getattr(training, k)) for k in ("learning_rate", "core_learning_rate")}
    same = cell.method == own["name"] or {cell.method, own["name"]} == set(FRAMED)
    settings = {k: v for k, v in own.items() if k != "share"} if same else {}
    spec = settings | changes | {"name": cell.method}
    if cell.method == "h2tune-unshared":
        spec["share"] = False
    resolve_method(spec)
    data: dict[str, Any] = {} if cell.n_train is None else {"n_train": cell.n_train}
    if cell.tuning:
        data["n_test"] = UNREAD_TEST  # rates are chosen by validation: there is nothing to see in test data
    clients = [c.model_copy(update=data) for c in base.clients]
    return base.model_copy(
        update={
            "method": spec,
            "rank": rank,
            "depth": depth,
            "methods": {},
            "baseline": "none",
            "select": "federated",
            "tracking": [],
            "clients": clients,
            "training": training.model_copy(update=rates),
        }
    )


def run_grid(file: str | Path, cells: Sequence[Cell], out: Path, jobs: int, say: Report) -> list[Outcome]:
    """Run what is not finished; outcomes in the order of ``cells``."""
    done = {cell: found for cell in cells if (found := _finished(file, cell, out)) is not None}
    open_cells = [cell for cell in cells if cell not in done]
    count = len(open_cells)
    if done:
        say(f"{len(done)} of {len(cells)} runs are finished already")
    if count:
        seconds = estimate(file, open_cells)
        jobs = min(jobs, count)
        say(f"{count} runs to go, {jobs} at a time: about {_minutes(seconds / jobs)}")
    begin = time.perf_counter()
    with ProcessPoolExecutor(
        max(1, jobs), mp_context=get_context("spawn"), initializer=_prepare, initargs=(jobs,)
    ) as pool:
        waiting = [pool.submit(_run, str(file), cell, out) for cell in open_cells]
        finished = 0
        try:
            for future in as_completed(waiting):
                outcome = future.result()
                done[outcome.cell] = outcome
                finished += 1
                left = (time.perf_counter() - begin) / finished * (count - finished)
                say(f"[{finished}/{count}] {_line(outcome)}  about {_minutes(left)} left")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [done[cell] for cell in cells]


def _finished(file: str | Path, cell: Cell, out: Path) -> Outcome | None:
    """The outcome of a run that is there already.

    Raises:
        CompareError: if it was made with another config.
    """
    folder = out / cell.folder
    store = RunStore(folder)
    if not store.exists:
        return None
    try:
        store.open(experiment_of(file, cell))
    except StoreError as error:
        what = str(error).split(". Put it back")[0]
        raise CompareError(
            f"{folder} holds a run of something else: {what}. Use another --out, or delete it."
        ) from None
    metrics = folder / "metrics.json"
    return Outcome(cell, json.loads(metrics.read_text())) if metrics.is_file() else None


_RESIDENTS: dict[str, Any] = {}


def _prepare(jobs: int) -> None:
    """Of each worker process: as many threads as its share of the cores, quiet libraries."""
    import torch

    from h2tune.quiet import quiet_libraries

    threading.Thread(target=_leave_with_parent, daemon=True).start()
    if jobs > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    quiet_libraries()


def _leave_with_parent() -> None:
    """A worker must not outlive a comparison that was killed: the next one would write into the same run."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(file: str, cell: Cell, out: Path) -> Outcome:
    """One run, from its last commit if there is one; what goes wrong is an outcome, too."""
    from h2tune.federation import run
    from h2tune.models import Residents

    folder, experiment = out / cell.folder, experiment_of(file, cell)
    store = RunStore(folder)
    try:
        if folder.exists() and not store.exists:
            shutil.rmtree(folder)  # a run that was stopped before it had an identity
        if experiment.device not in _RESIDENTS:
            _RESIDENTS[experiment.device] = Residents(experiment.device, out / "frames")
        residents = _RESIDENTS[experiment.device]
        residents.release()
        return Outcome(cell, run(experiment, folder, resume=store.exists, residents=residents))
    except MethodError as error:
        return Outcome(cell, reason=str(error), skipped=True)
    except Exception as error:  # a table with a gap is worth more than no table
        first = (str(error).splitlines() or [""])[0]
        return Outcome(cell, reason=f"{type(error).__name__}: {first}")


def rate_key(method: str, n_train: int | None) -> str:
    return method if n_train is None else f"{method}-n{n_train}"


def best_rates(outcomes: Iterable[Outcome]) -> dict[str, float]:
    """For each method (and amount of data) the multiple that is best on validation, in the quantity that the table will have.

    That is the metric; between equals, and where some client never gets more than next to nothing right, nats. Chosen by
    nats alone, rates came out too low where answers must be exactly right: nats punish a confident model, the metric does not.
    """
    ran = [outcome for outcome in outcomes if outcome.metrics and _finals(outcome)]
    found: dict[str, float] = {}
    for size in dict.fromkeys(outcome.cell.n_train for outcome in ran):
        trials = [outcome for outcome in ran if outcome.cell.n_train == size]
        best: dict[str, float] = {}
        for outcome in trials:
            for name, final in _finals(outcome).items():
                best[name] = max(best.get(name, 0.0), final["validation"])
        nats_only = min(best.values()) < TOO_FEW_RIGHT

        def worth(outcome: Outcome, nats_only: bool = nats_only) -> tuple[float, float]:
            finals = list(_finals(outcome).values())
            metric, nats = (statistics.fmean(f[key] for f in finals) for key in ("validation", "validation_nats"))
            return (0.0 if nats_only else metric, -nats)

        for method in dict.fromkeys(outcome.cell.method for outcome in trials):
            chosen = max((o for o in trials if o.cell.method == method), key=worth)
            found[rate_key(method, size)] = chosen.cell.rate
    return found


def _finals(outcome: Outcome) -> dict[str, dict[str, float]]:
    return (
        {name: c["final"] for name, c in outcome.metrics["clients"].items() if c["final"]} if outcome.metrics else {}
    )


def estimate(file: str | Path, cells: Sequence[Cell]) -> float:
    """Seconds that the runs will take one after the other, from a few measured steps of each client."""
    from h2tune.client import Client
    from h2tune.models import Residents
    from h2tune.quiet import quiet_libraries

    quiet_libraries()
    experiment = experiment_of(file, cells[0]).model_copy(update={"method": "local"})
    residents, seconds = Residents(experiment.device), 0.0
    for config in experiment.clients:
        client = Client(config, experiment, residents)
        begin = time.perf_counter()
        client._score(client.test[:64], client.test_data[:64], bare=True)
        scored = (time.perf_counter() - begin) * (len(client.test) * 3 + len(client.validation) * 2) / 64
        scored += scored / 5 * experiment.rounds / experiment.evaluation.every
        seconds += client._step_ms(client.rank) / 1000 * experiment.training.steps * experiment.rounds + scored
    return seconds * len(cells)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _line(outcome: Outcome) -> str:
    where = outcome.cell.folder.removeprefix("runs/")
    if outcome.metrics is None:
        return f"{where}  {'skipped' if outcome.skipped else 'FAILED'}: {outcome.reason}"
    return f"{where}  mean {outcome.metrics['mean']['final']:.3f}  {outcome.metrics['seconds']:.0f} s"


__all__ = ["Cell", "CompareError", "ConfigError", "Outcome", "compare"]
