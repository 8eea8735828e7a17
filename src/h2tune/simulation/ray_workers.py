"""Simulated clients in worker processes: over the cores or GPUs of one machine, or over a cluster, with Ray.

A federation in one process trains its clients one after the other. Here each worker holds some clients, those of one base
model together, and workers train at the same time; server, methods and messages are the same, and so is the result. The
run directory must be reachable from every worker (one machine, or a shared file system).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from h2tune.config import ClientConfig, Experiment, parse_config
from h2tune.errors import H2TuneError
from h2tune.transport.base import Absent, Reply

PATIENCE = 300  # seconds for a worker to start and load its models, when one has ended


class WorkersError(H2TuneError, RuntimeError):
    """Workers cannot be had; the text says what to do."""


class WorkerEnded(WorkersError):
    """A worker's process, or its machine, is no more.

    Args:
        reason: what Ray says of it, in a line.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"A worker has ended: {reason.rstrip('.')}. The last committed round is safe: --resume.")
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason,)


@dataclass
class Remote:
    """What this process knows of a client that lives in a worker."""

    config: ClientConfig
    leaked: int
    met: dict[str, Any]

    def introduction(self) -> dict[str, Any]:
        return self.met


def spread(clients: list[ClientConfig], count: int) -> list[list[str]]:
    """Names for each worker: clients of one base model stay together as long as no worker gets more than its share."""
    share = -(-len(clients) // count)
    ordered = [c.name for c in sorted(clients, key=lambda c: (c.model, clients.index(c)))]
    return [ordered[i : i + share] for i in range(0, len(ordered), share)]


class Worker:
    """Lives in a worker's process: some of a run's clients."""

    def __init__(self, plain: dict[str, Any], run: str, names: list[str], threads: int) -> None:
        self.plain, self.run, self.names, self.threads = plain, run, names, threads

    @cached_property
    def party(self) -> Any:
        """The clients, loaded when they are asked for first."""
        import torch

        from h2tune.participant.base_models import ModelPool
        from h2tune.simulation.clients import in_process
        from h2tune.store import RunStore
        from h2tune.utils.logging import quiet_libraries

        torch.set_num_threads(self.threads)
        quiet_libraries()
        experiment, store = parse_config(self.plain), RunStore(self.run)
        models = ModelPool.of(experiment, Path(self.run) / "frames")
        return in_process(experiment, store, models, names=self.names)

    def sees(self, path: str) -> bool:
        """Whether a file of the process that runs the federation is here, too."""
        return Path(path).is_file()

    def introduce(self) -> dict[str, tuple[int, dict[str, Any]]]:
        return {name: (client.leaked, client.introduction()) for name, client in self.party.clients.items()}

    def groups(self, names: list[str]) -> list[list[str]]:
        """Clients that act together (``parallel``)."""
        found: list[list[str]] = self.party.groups(names)
        return found

    def handle(self, requests: dict[str, bytes]) -> dict[str, bytes]:
        return dict(self.party.exchange(requests))


class Workers:
    """A transport (`h2tune.transport.base.Transport`) to clients in Ray's workers.

    Args:
        count: workers; each gets an equal part of the machine's or cluster's CPUs and GPUs.

    Raises:
        WorkersError: if Ray is not there.
    """

    def __init__(self, experiment: Experiment, run: Path, count: int) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
        try:
            import ray
        except ImportError:
            raise WorkersError("--workers needs Ray: pip install 'h2tune[workers]'") from None
        self.ray = ray
        if not ray.is_initialized():  # a script that wants a cluster has said ray.init(address=...) before
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        whole, shares = ray.cluster_resources(), spread(experiment.clients, count)
        self.cpus = max(1, int(whole["CPU"] // len(shares)))
        self.gpus = whole.get("GPU", 0) / len(shares)
        self.about = (experiment.model_dump(mode="json"), str(run.resolve()))
        self.actors = [self._start(names, min(self.cpus, whole["CPU"] / len(shares))) for names in shares]
        if sum(node["Alive"] for node in ray.nodes()) > 1:
            self._check_shared(run.resolve())
        met: dict[str, tuple[int, dict[str, Any]]] = {}
        for promise in [actor.introduce.remote() for actor in self.actors]:  # all load at the same time
            met |= self._result(promise)  # every mistake in models and data is raised here
        self.clients = {c.name: Remote(c, *met[c.name]) for c in experiment.clients}
        self.place = {name: actor for names, actor in zip(shares, self.actors, strict=True) for name in names}
        self.known: set[str] = set()

    def exchange(self, requests: dict[str, bytes], fresh: bool = False) -> Iterator[Reply]:
        """Clients whose worker ends are absent, and `returned` in another one, as after a restart over a network."""
        here = {name: data for name, data in requests.items() if fresh or name in self.known}
        self.known |= here.keys()
        on_actor: dict[Any, list[str]] = {}
        for name in here:
            on_actor.setdefault(self.place[name], []).append(name)
        asked = [(actor.groups.remote(names), names) for actor, names in on_actor.items()]
        waiting: dict[Any, list[str]] = {}
        ended: dict[str, str] = {}
        for promise, names in asked:
            for group in self._given(promise, names, ended) or []:
                waiting[self.place[group[0]].handle.remote({name: here[name] for name in group})] = group
        answered: set[str] = set()
        while waiting:
            (done,), _ = self.ray.wait(list(waiting), num_returns=1)
            answers = self._given(done, waiting.pop(done), ended) or {}
            answered |= answers.keys()
            yield from answers.items()
        for name in requests:
            if name not in answered:
                yield name, Absent(ended.get(name, "it lives in a worker that has just started"))

    def _given(self, promise: Any, names: list[str], ended: dict[str, str]) -> Any:
        """What a worker gave for some of its clients, or None if it has ended; then another one takes its place.

        Args:
            ended: is told by client why there is no answer.
        """
        try:
            return self._result(promise)
        except WorkerEnded as error:
            ended |= dict.fromkeys(names, f"its worker has ended: {error.reason}")
            if names[0] in self.known:  # the first of its answers that is missed
                self._replace(self.place[names[0]], error)
            return None

    def _replace(self, actor: Any, error: WorkerEnded) -> None:
        """Start a worker for the clients of one that has ended, wherever there is room; they go on from their saved state.

        Raises:
            WorkersError: there is no room.
        """
        names = [name for name, place in self.place.items() if place is actor]
        self.ray.kill(actor)  # if it was out of reach for a moment only, two would write the same state
        other = self._start(names, 0)  # a dead machine's cores are gone; it shares those that are left
        try:
            self._result(other.introduce.remote(), PATIENCE)
        except (self.ray.exceptions.GetTimeoutError, WorkerEnded):
            raise WorkersError(f"{error} No other could be started.") from None
        self.actors[self.actors.index(actor)] = other
        self.place |= dict.fromkeys(names, other)
        self.known -= set(names)

    def _start(self, names: list[str], cpus: float) -> Any:
        made = self.ray.remote(Worker).options(num_cpus=cpus, num_gpus=self.gpus)
        return made.remote(*self.about, names, self.cpus)

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
        self.ray.shutdown()

    def _check_shared(self, run: Path) -> None:
        """Raise WorkersError if a worker on another machine does not see the run directory's place."""
        run.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=run.parent, prefix=".h2tune-") as probe:
            seen = [self._result(actor.sees.remote(probe.name)) for actor in self.actors]
        if not all(seen):
            raise WorkersError(
                f"{seen.count(False)} of {len(seen)} workers do not see {run.parent}: with workers on several machines,"
                " --out must lie on a file system that all of them share."
            )

    def _result(self, promise: Any, seconds: float | None = None) -> Any:
        """What a worker gave within so many seconds, or its own error in place of Ray's."""
        try:
            return self.ray.get(promise, timeout=seconds)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self.ray.exceptions.RayActorError as error:
            raise WorkerEnded(str(error.__cause__ or error).strip().partition("\n")[0]) from None
