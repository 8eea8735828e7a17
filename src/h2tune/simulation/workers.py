"""Simulated clients in worker processes: over the cores or GPUs of one machine, or over a cluster.

A federation in one process trains its clients one after the other. Here each worker holds some clients, those of one base
model together, and workers train at the same time; server, methods and messages are the same, and so is the result. The
run directory must be reachable from every worker (one machine, or a shared file system).
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from h2tune.config import ClientConfig, Experiment
from h2tune.participant.context import Watch
from h2tune.simulation.on_ray import OnRay, wants_ray
from h2tune.simulation.processes import Processes
from h2tune.simulation.worker import WorkerEnded, WorkersError
from h2tune.transport.base import Absent, Reply

PATIENCE = 300  # seconds for a worker to start and load its models, when one has ended


class Engine(Protocol):
    """Where workers live. What `start` and `call` give is handed back to it, and means nothing elsewhere.

    Attributes:
        threads: CPU threads of a worker.
        several_machines: whether workers may live on other machines than this one.
    """

    @property
    def threads(self) -> int: ...
    @property
    def several_machines(self) -> bool: ...
    def start(self, about: tuple[Any, ...], place: int, again: bool = False) -> Any:
        """Start a worker; `about` are the arguments of `Worker` before the threads, `again` where it takes another's place."""

    def call(self, worker: Any, action: str, *args: Any) -> Any:
        """Ask a worker to do something; its calls are done in their order."""

    def first(self, calls: Collection[Any]) -> Any:
        """Wait for one of the calls."""

    def result(self, call: Any, seconds: float | None = None) -> Any:
        """What a call gave, within so many seconds.

        Raises:
            WorkerEnded, TimeoutError: or the worker's own error.
        """

    def end(self, worker: Any) -> None:
        """End a worker, busy or not."""

    def close(self) -> None: ...


@dataclass
class Remote:
    """What this process knows of a client that lives in a worker."""

    config: ClientConfig
    remarks: list[str]
    met: dict[str, Any]

    def introduction(self) -> dict[str, Any]:
        return self.met


def spread(clients: list[ClientConfig], count: int) -> list[list[str]]:
    """Names for each worker: clients of one base model stay together as long as no worker gets more than its share."""
    share = -(-len(clients) // count)
    ordered = [c.name for c in sorted(clients, key=lambda c: (c.model, clients.index(c)))]
    return [ordered[i : i + share] for i in range(0, len(ordered), share)]


class Workers:
    """A transport (`h2tune.transport.base.Transport`) to clients in workers.

    Args:
        run: the run's directory. frames: where what was worked out for a base is kept.
        count: workers; each gets an equal part of the machine's or cluster's CPUs and GPUs.
        watch: told of the clients' updates, except of those on a cluster.

    Raises:
        WorkersError: if they cannot be had.
    """

    def __init__(
        self, experiment: Experiment, run: Path, frames: Path, count: int, watch: Watch | None = None
    ) -> None:
        shares = spread(experiment.clients, count)
        self.engine: Engine = OnRay(len(shares)) if wants_ray() else Processes(len(shares), watch)
        self.about = (experiment.model_dump(mode="json"), str(run.resolve()), str(frames.resolve()))
        self.shares, self.known = shares, set[str]()
        self.place = {name: i for i, names in enumerate(shares) for name in names}
        try:
            self.clients = self._started(experiment, run)
        except BaseException:
            self.close()
            raise

    def _started(self, experiment: Experiment, run: Path) -> dict[str, Remote]:
        """Start the workers; what is known of their clients."""
        self.workers = [self.engine.start((*self.about, names), i) for i, names in enumerate(self.shares)]
        if self.engine.several_machines:
            self._check_shared(run.resolve())
        met: dict[str, tuple[list[str], dict[str, Any]]] = {}
        for call in [self._call(place, "introduce") for place in range(len(self.shares))]:  # all load at the same time
            met |= self.engine.result(call)  # every mistake in models and data is raised here
        return {c.name: Remote(c, *met[c.name]) for c in experiment.clients}

    def exchange(self, requests: dict[str, bytes], fresh: bool = False) -> Iterator[Reply]:
        """Clients whose worker ends are absent, and `returned` in another one, as after a restart over a network."""
        here = {name: data for name, data in requests.items() if fresh or name in self.known}
        self.known |= here.keys()
        on_worker: dict[int, list[str]] = {}
        for name in here:
            on_worker.setdefault(self.place[name], []).append(name)
        asked = [(self._call(place, "groups", names), names) for place, names in on_worker.items()]
        waiting: dict[Any, list[str]] = {}
        ended: dict[str, str] = {}
        for call, names in asked:
            for group in self._given(call, names, ended) or []:
                data = {name: here[name] for name in group}
                waiting[self._call(self.place[group[0]], "handle", data)] = group
        answered: set[str] = set()
        while waiting:
            done = self.engine.first(waiting)
            answers = self._given(done, waiting.pop(done), ended) or {}
            answered |= answers.keys()
            yield from answers.items()
        for name in requests:
            if name not in answered:
                yield name, Absent(ended.get(name, "it lives in a worker that has just started"))

    def _call(self, place: int, action: str, *args: Any) -> Any:
        return self.engine.call(self.workers[place], action, *args)

    def _given(self, call: Any, names: list[str], ended: dict[str, str]) -> Any:
        """What a worker gave for some of its clients, or None if it has ended; then another one takes its place.

        Args:
            ended: is told by client why there is no answer.
        """
        try:
            return self.engine.result(call)
        except WorkerEnded as error:
            ended |= dict.fromkeys(names, f"its worker has ended: {error.reason}")
            if names[0] in self.known:  # the first of its answers that is missed
                self._replace(self.place[names[0]], error)
            return None

    def _replace(self, place: int, error: WorkerEnded) -> None:
        """Start a worker for the clients of one that has ended, wherever there is room; they go on from their saved state.

        Raises:
            WorkersError: there is no room.
        """
        names = self.shares[place]
        self.engine.end(
            self.workers[place]
        )  # if it was out of reach for a moment only, two would write the same state
        self.workers[place] = self.engine.start((*self.about, names), place, again=True)
        try:
            self.engine.result(self._call(place, "introduce"), PATIENCE)
        except (TimeoutError, WorkerEnded):
            raise WorkersError(f"{error} No other could be started.") from None
        self.known -= set(names)

    def returned(self) -> list[str]:
        """Clients that nobody has asked yet, and those that another worker has taken over."""
        return [name for name in self.place if name not in self.known]

    def wait(self, names: Collection[str], count: int, first: bool = False) -> bool:
        return first

    def revoked(self) -> Collection[str]:
        """Nobody: certificates belong to a network."""
        return ()

    def dismiss(self, name: str, reason: str) -> None:
        """A client in a worker is simply not asked again."""

    def close(self) -> None:
        self.engine.close()

    def _check_shared(self, run: Path) -> None:
        """Raise WorkersError if a worker on another machine does not see the run directory's place."""
        run.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=run.parent, prefix=".h2tune-") as probe:
            calls = [self.engine.call(worker, "sees", probe.name) for worker in self.workers]
            seen = [self.engine.result(call) for call in calls]
        if not all(seen):
            raise WorkersError(
                f"{seen.count(False)} of {len(seen)} workers do not see {run.parent}: with workers on several machines,"
                " --out must lie on a file system that all of them share."
            )
