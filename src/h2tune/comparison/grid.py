"""Running the cells of a comparison in processes of their own.

A finished cell is never run again; one that was stopped goes on from its last commit; one that fails is a gap in the table.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from h2tune.comparison.cells import Cell, CompareError, Outcome, experiment_of
from h2tune.comparison.result import finals
from h2tune.methods.registry import MethodError, resolve_method
from h2tune.store import RunStore
from h2tune.tasks.fingerprint import check_fingerprint, data_fingerprint
from h2tune.utils.files import StoreError, sound
from h2tune.utils.processes import cores, leave_with_parent, process_context, starting

TELL_EVERY = 60.0  # seconds


Report = Callable[[str], None]


def run_grid(file: str | Path, cells: Sequence[Cell], out: Path, jobs: int, say: Report) -> list[Outcome]:
    """Run what is not finished; outcomes in the order of ``cells``."""
    done = {cell: found for cell in cells if (found := _finished(file, cell, out)) is not None}
    open_cells = [cell for cell in cells if cell not in done]
    count = len(open_cells)
    if done:
        say(f"{len(done)} of {len(cells)} runs are finished already")
    if count:
        from h2tune.comparison.estimate import local_seconds

        jobs = min(jobs, count)
        seconds = local_seconds(experiment_of(file, open_cells[0]), _threads(jobs)) * count
        practised = any(_practises(file, cell) for cell in open_cells)
        say(f"{count} runs to go, {jobs} at a time: {_minutes(seconds / jobs)} or more"
            + (", and the practice of frames, once" if practised else ""))  # fmt: skip
    begin, context = time.perf_counter(), process_context("h2tune.federation")
    told = context.Queue()
    with (
        _passing_on(told, say),
        ProcessPoolExecutor(max(1, jobs), mp_context=context, initializer=_prepare, initargs=(jobs, told)) as pool,
    ):
        with starting() as processes:
            waiting = [pool.submit(_run, str(file), cell, out) for cell in open_cells]
        finished = 0
        try:
            for future in as_completed(waiting):
                outcome = future.result()
                done[outcome.cell] = outcome
                finished += 1
                left = (time.perf_counter() - begin) / finished * (count - finished)
                say(f"[{finished}/{count}] {_line(outcome)}  about {_minutes(left)} left")
        except BrokenProcessPool:
            raise CompareError(
                "The process of a run is gone; the system may have ended it for want of memory (--jobs 1 takes least)."
                " Finished runs are kept; the same command goes on."
            ) from None
        except BaseException:
            for process in processes:
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [done[cell] for cell in cells]


@contextmanager
def _passing_on(told: Any, say: Report) -> Iterator[None]:
    """Say what the workers tell."""

    def listen() -> None:
        while (text := told.get()) is not None:
            say(text)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield
    finally:
        told.put(None)
        listener.join(5)  # what was ended in the middle of a word may keep the queue


class _Far:
    """Tells now and then how far a run is, so that long ones (or their practice before round 1) do not look dead."""

    def __init__(self, where: str) -> None:
        self.where, self.last = where, time.monotonic()

    def step(self, client: str, round: int, phase: str, step: int, steps: int, loss: float) -> None:
        if time.monotonic() - self.last >= TELL_EVERY:
            self.last = time.monotonic()
            _TOLD[0].put(f"    {self.where}: {client}, {f'round {round}, ' if round else ''}{phase} {step} of {steps}")

    def start(self, clients: list[dict[str, Any]], rounds: int) -> None: ...
    def client_done(
        self,
        client: str,
        round: int,
        metrics: dict[str, Any],
        bytes_up: int,
        bytes_down: int,
        loss: float | None = None,
    ) -> None: ...
    def round_done(self, round: int, seconds: float) -> None: ...
    def message(self, text: str, level: str = "info") -> None: ...


def _practises(file: str | Path, cell: Cell) -> bool:
    _, settings = resolve_method(experiment_of(file, cell).method)
    return getattr(settings, "frames", "") in ("words", "glossary")


def unfinished(cells: Sequence[Cell], out: Path) -> list[Cell]:
    """Those of the cells that have yet to be run."""
    return [cell for cell in cells if not _result_of(cell, out).is_file()]


def _result_of(cell: Cell, out: Path) -> Path:
    return out / cell.folder / "metrics.json"


def _finished(file: str | Path, cell: Cell, out: Path) -> Outcome | None:
    """The outcome of a run that is there already.

    Raises:
        CompareError: if it was made with another config, or by another version of its method.
    """
    folder, path = out / cell.folder, _result_of(cell, out)
    store = RunStore(folder)
    if not store.exists:
        return None
    try:
        experiment = experiment_of(file, cell)
        store.open(experiment)
        # Figures that are there need no data: where these are gone, the table can still be made.
        check_fingerprint(folder, data_fingerprint(experiment, there=path.is_file()), cure="")
    except StoreError as error:
        what = str(error).split(". Put ")[0]
        raise CompareError(
            f"{folder} holds a run of something else: {what}. Use another --out, or delete it."
        ) from None
    if not path.is_file():
        return None
    with sound(path):
        metrics = dict(json.loads(path.read_text(encoding="utf-8")))
    kind, settings = resolve_method(experiment.method)
    for name, version in kind.versions(settings).items():
        if (made := metrics.get("method_versions", {}).get(name, 1)) != version:  # runs of before kept none
            raise CompareError(
                f"{folder} holds a run of {name} version {made}; this h2tune has version {version}, whose figures may differ."
                " Use another --out, or delete it."
            )
    return Outcome(cell, metrics)


_RESIDENTS: dict[str, Any] = {}
_TOLD: list[Any] = []  # the queue to the comparison


def _prepare(jobs: int, told: Any) -> None:
    """Of each worker process: as many threads as its share of the cores, quiet libraries."""
    import torch

    from h2tune.utils.logging import quiet_libraries

    _TOLD[:] = [told]
    leave_with_parent()
    torch.set_num_threads(_threads(jobs))
    quiet_libraries()


def _threads(jobs: int) -> int:
    """Threads of one run where several run at once: its share of the cores."""
    import torch

    return torch.get_num_threads() if jobs == 1 else max(1, cores() // jobs)


def _run(file: str, cell: Cell, out: Path) -> Outcome:
    """One run, from its last commit if there is one; what goes wrong is an outcome, too."""
    from h2tune.federation import run
    from h2tune.participant.base_models import ModelPool

    folder, experiment = out / cell.folder, experiment_of(file, cell)
    store = RunStore(folder)
    try:
        if folder.exists() and not store.exists:
            shutil.rmtree(folder)  # a run that was stopped before it had an identity
        if experiment.device not in _RESIDENTS:
            _RESIDENTS[experiment.device] = ModelPool.of(experiment, out / "frames")
        models = _RESIDENTS[experiment.device]
        models.release()
        far = _Far(cell.folder.removeprefix("runs/"))
        return Outcome(cell, run(experiment, folder, resume=store.exists, models=models, watcher=far))
    except MethodError as error:
        name = f"{resolve_method(cell.method)[0].name}: "  # it stands beside the reason already
        return Outcome(cell, reason=str(error).removeprefix(name), skipped=True)
    except Exception as error:  # a table with a gap is worth more than no table
        first = (str(error).splitlines() or [""])[0]
        return Outcome(cell, reason=f"{type(error).__name__}: {first}")


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _line(outcome: Outcome) -> str:
    where = outcome.cell.folder.removeprefix("runs/")
    if outcome.metrics is None:
        return f"{where}  {'skipped' if outcome.skipped else 'FAILED'}: {outcome.reason}"
    if outcome.cell.tuning:  # a trial has next to no test rows
        held = [client["final"]["validation"] for client in outcome.metrics["clients"].values() if client["final"]]
        told = f"validation {100 * sum(held) / max(1, len(held)):.1f} %"
    else:  # both units: which one the table takes is only known when all runs are there
        scores = list(finals(outcome.metrics).values())
        right, nats = (sum(s[key] for s in scores) / max(1, len(scores)) for key in ("metric", "nats"))
        told = f"{100 * right:.1f} % right, {nats:.3f} nats" if scores else "no client has a result"
    return f"{where}  {told}  {outcome.metrics['seconds']:.0f} s"
