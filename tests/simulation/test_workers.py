"""Clients in workers, processes of this machine or of a cluster, give what clients in one process give."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from federations import outcome, small

from h2tune import federation
from h2tune.config import ConfigError, Experiment
from h2tune.errors import ClientError, QuorumError
from h2tune.simulation.processes import Processes
from h2tune.simulation.worker import Worker, WorkerEnded, WorkersError
from h2tune.simulation.workers import Workers, spread
from h2tune.utils.processes import portable, starting


def test_clients_of_one_base_stay_together() -> None:
    clients = small(clients=6).clients  # llama, gpt2, qwen, llama, gpt2, qwen
    assert spread(clients, 3) == [["c1", "c4"], ["c0", "c3"], ["c2", "c5"]]
    assert sorted(name for names in spread(clients, 4) for name in names) == [c.name for c in clients]
    assert spread(clients, 1) == [["c1", "c4", "c0", "c3", "c2", "c5"]]


class Far:
    """An engine whose workers see this machine's files, or do not."""

    def __init__(self, *shared: bool) -> None:
        self.shared = shared

    def call(self, worker: int, action: str, path: str) -> bool:
        assert action == "sees"
        return self.shared[worker] and Worker.sees(None, path)  # type: ignore[arg-type]

    def result(self, call: bool) -> bool:
        return call


def test_workers_that_do_not_see_the_run_directory_are_told_before_anything_is_loaded(tmp_path: Path) -> None:
    workers, run = Workers.__new__(Workers), tmp_path / "new" / "run"
    workers.workers, workers.engine = [0, 1], Far(True, True)  # type: ignore[assignment]
    workers._check_shared(run)
    assert not list(run.parent.iterdir())
    workers.engine = Far(True, False)  # type: ignore[assignment]
    with pytest.raises(WorkersError, match="1 of 2 workers do not see"):
        workers._check_shared(run)


class Promise:
    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make


class Actor:
    """A worker of `InProcessRay`; `ends_after` answers of its clients it is no more."""

    def __init__(self, ray: InProcessRay, *args: Any) -> None:
        self._ray, self._worker, self._alive, self._left = ray, Worker(*args), True, ray.lives.pop(0)

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *args: Promise(lambda: self._call(name, *args)))

    def _call(self, name: str, *args: Any) -> Any:
        if name == "handle":
            self._left -= 1
        if not self._alive or self._left < 0:
            self._alive = False
            raise self._ray.exceptions.RayActorError("killed")
        return getattr(self._worker, name)(*args)


class InProcessRay:
    """Ray, as far as `OnRay` uses it, with all actors in this process.

    Args:
        lives: for each worker in the order of their starts, after how many answers it ends.
    """

    class exceptions:
        class RayTaskError(Exception):
            cause = None

        class RayActorError(Exception): ...

        class GetTimeoutError(Exception): ...

    def __init__(self, *lives: float) -> None:
        self.lives, self.shares, self.actors = list(lives), [], []

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def nodes(self) -> list[dict[str, bool]]:
        return [{"Alive": True}]

    def remote(self, kind: type) -> Any:
        def options(num_cpus: float, num_gpus: float) -> Any:
            self.shares.append(num_cpus)
            return SimpleNamespace(remote=start)

        def start(*args: Any) -> Actor:
            # A cluster would let it wait for cores that others have, for ever.
            assert sum(actor._alive for actor in self.actors) < 2
            self.actors.append(Actor(self, *args))
            return self.actors[-1]

        return SimpleNamespace(options=options)

    def get(self, promise: Promise, timeout: float | None = None) -> Any:
        return promise.make()

    def wait(self, promises: list[Promise], num_returns: int) -> tuple[list[Promise], list[Promise]]:
        return promises[:1], promises[1:]

    def kill(self, actor: Actor) -> None:
        actor._alive = False

    def shutdown(self) -> None:
        for actor in self.actors:
            actor._alive = False


FOREVER = float("inf")


def run_with(ray: InProcessRay, experiment: Experiment, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "ray", ray)
        federation.run(experiment, folder, workers=2)
    return outcome(folder)


# The second worker has two clients: each answers twice in the set-up, then once in a round. So it ends in the set-up, at its
# first or second answer of round 2, or after it has answered there.
FAST = [("fedit", 7), ("h2tune", 8)]


@pytest.mark.parametrize(
    ("method", "answers"),
    [
        pytest.param(m, a, marks=[] if (m, a) in FAST else pytest.mark.slow)
        for m in ("fedit", "h2tune", "fedmkt")
        for a in (1, 2, 3, 4, 6, 7, 8)
    ],
)
def test_a_worker_that_ends_is_replaced_and_its_round_held_again(
    method: str, answers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = {"name": method, "sentences": 4} if method == "fedmkt" else method
    experiment = small(clients=4, rounds=3, same_model=True, method=spec, training={"steps": 2, "batch_size": 2})
    whole = run_with(InProcessRay(FOREVER, FOREVER), experiment, tmp_path / "whole", monkeypatch)
    ray = InProcessRay(FOREVER, answers, FOREVER)
    found = run_with(ray, experiment, tmp_path / "replaced", monkeypatch)
    assert ray.shares == [1, 1, 0] and not ray.lives
    assert found.keys() == whole.keys() and all(torch.equal(found[k], whole[k]) for k in whole)
    assert ": its worker has ended: killed" in (tmp_path / "replaced" / "events.jsonl").read_text()


def test_a_baseline_has_the_cluster_to_itself_and_nothing_is_left_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = small(rounds=1, baseline="local", training={"steps": 1, "batch_size": 2})
    ray = InProcessRay(*[FOREVER] * 6)
    run_with(ray, experiment, tmp_path / "run", monkeypatch)
    # What is worked out for a base, such as practised frames, holds for the baseline, too.
    assert {actor._worker.frames for actor in ray.actors} == {str(tmp_path / "run" / "frames")}
    assert {
        actor._worker.party.clients["c0"].context.models.folder for actor in ray.actors if "c0" in actor._worker.names
    } == {tmp_path / "run" / "frames"}
    assert len(ray.actors) == 6 and not any(actor._alive for actor in ray.actors)

    ray = InProcessRay(*[FOREVER] * 4)
    monkeypatch.setattr(federation, "_baseline", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_with(ray, experiment, tmp_path / "failed", monkeypatch)
    assert len(ray.actors) == 2 and not any(actor._alive for actor in ray.actors)


def test_what_stops_the_worker_that_takes_over_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the model's folder is gone by then: the message is the one of a run without workers."""
    experiment = small(clients=4, rounds=3, same_model=True, method="fedit", training={"steps": 2, "batch_size": 2})
    ray = InProcessRay(FOREVER, 7, FOREVER)
    gone, introduce = ray.exceptions.RayTaskError(), Worker.introduce
    gone.cause = ClientError("there is no model in lost/")

    def introduced(self: Worker) -> Any:
        if not ray.lives:
            raise gone
        return introduce(self)

    monkeypatch.setattr(Worker, "introduce", introduced)
    with pytest.raises(ClientError, match="there is no model in lost/"):
        run_with(ray, experiment, tmp_path, monkeypatch)


@pytest.mark.parametrize("reason", ["killed", "The actor died."])
def test_the_end_of_a_worker_is_two_sentences(reason: str) -> None:
    error = pickle.loads(pickle.dumps(WorkerEnded(reason)))  # noqa: S301 - as Ray hands errors on
    assert str(error) == f"A worker has ended: {reason.rstrip('.')}. The last committed round is safe: --resume."


def test_where_no_worker_lasts_the_run_ends_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = small(clients=4, rounds=3, quorum=4, same_model=True, method="fedit", training={"steps": 2})
    with pytest.raises(QuorumError, match="Only 2 of 4 clients"):
        run_with(InProcessRay(FOREVER, *[2.0] * 40), experiment, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["worker", "node"])
def test_a_killed_worker_or_node_is_replaced(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'h2tune[cluster]'")
    from ray.cluster_utils import Cluster

    experiment = small(clients=3, rounds=3)
    federation.run(experiment, tmp_path / "whole")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    node = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address)
    exchange, killed_at = Workers.exchange, []

    def deadly(self: Workers, requests: dict[str, bytes], fresh: bool = False) -> Any:
        if not killed_at and '"round_started", "round": 2' in (tmp_path / "killed" / "events.jsonl").read_text():
            killed_at.append(fresh)
            ray.kill(self.workers[0]) if what == "worker" else cluster.remove_node(node)
        return exchange(self, requests, fresh)

    monkeypatch.setattr(Workers, "exchange", deadly)
    try:
        federation.run(experiment, tmp_path / "killed", workers=2)
    finally:
        cluster.shutdown()
    assert killed_at == [False]
    whole, killed = outcome(tmp_path / "whole"), outcome(tmp_path / "killed")
    assert whole.keys() == killed.keys() and all(torch.equal(whole[k], killed[k]) for k in whole)


@pytest.mark.slow
def test_on_a_cluster_is_in_process_bit_for_bit(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'h2tune[cluster]'")
    ray.init(include_dashboard=False, log_to_driver=False)
    in_workers_as_here(tmp_path)


def in_workers_as_here(folder: Path) -> None:
    experiment = small(clients=3, rounds=2)
    federation.run(experiment, folder / "here")
    federation.run(experiment, folder / "there", workers=2)
    here, there = outcome(folder / "here"), outcome(folder / "there")
    assert here.keys() == there.keys() and all(torch.equal(here[k], there[k]) for k in here)


def test_in_processes_is_in_process_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them is killed in round 2: another goes on in its place."""
    exchange, killed = Workers.exchange, []

    def deadly(self: Workers, requests: dict[str, bytes], fresh: bool = False) -> Any:
        assert isinstance(self.engine, Processes) and len(self.engine.workers) == 2
        if not killed and '"round_started", "round": 2' in (tmp_path / "there" / "events.jsonl").read_text():
            killed.append(self.workers[0].process.pid)
            os.kill(killed[0], signal.SIGKILL)
        return exchange(self, requests, fresh)

    monkeypatch.setattr(Workers, "exchange", deadly)
    in_workers_as_here(tmp_path)
    assert "its process is gone" in (tmp_path / "there" / "events.jsonl").read_text()


class OddError(Exception):
    """Cannot be built again from what Python keeps of it."""

    def __init__(self, place: str, number: int) -> None:
        super().__init__(f"{place}: {number}")


def test_an_error_comes_from_a_worker_with_its_words() -> None:
    for error in (ClientError("no model"), ConfigError(["a: one", "b: two"]), WorkerEnded("killed")):
        assert portable(error) is error
    told = portable(OddError("here", 3))
    assert type(told) is RuntimeError and str(told).endswith("OddError: here: 3")
    locked = ValueError("with a lock")
    locked.lock = threading.Lock()  # type: ignore[attr-defined]
    assert "with a lock" in str(portable(locked))


def test_a_mistake_in_a_method_of_ones_own_ends_the_run(tmp_path: Path) -> None:
    """It must not look like a worker that is gone, whose clients may be left out."""
    (tmp_path / "own.py").write_text(OWN)
    with pytest.raises(RuntimeError, match="OddError: here: 3"):
        federation.run(
            small(clients=2, rounds=1, method=f"{tmp_path / 'own.py'}:OWN", training={"steps": 1}),
            tmp_path / "run", workers=2,
        )  # fmt: skip


OWN = """
from h2tune.methods.base import Method, Settings
from h2tune.methods.local import LocalClient, LocalServer

class OddError(Exception):
    def __init__(self, place, number):
        super().__init__(f"{place}: {number}")

class Client(LocalClient):
    def train(self, round, payload):
        raise OddError("here", 3)

OWN = Method("toy-odd", Settings, Client, LocalServer, "an own method")
"""


@pytest.mark.parametrize(("told", "count", "expected"), [("", 2, []), ("0", 2, ["0", "0"]), ("4,7,9", 2, ["4", "7"])])
def test_each_worker_gets_a_gpu(told: str, count: int, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", told)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(told.split(",")) if told else 0)
    assert Processes(count).gpus == expected


def test_ray_is_taken_where_a_cluster_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(WorkersError, match=r"h2tune\[cluster\]"):
        Workers(small(clients=2), Path("nowhere"), Path("frames"), 2)


def test_two_threads_that_start_processes_leave_the_script_in_its_place() -> None:
    script, inside = sys.modules["__main__"], threading.Barrier(2)

    def start() -> None:
        inside.wait()
        for _ in range(200):
            with starting():
                assert sys.modules["__main__"] is not script

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sys.modules["__main__"] is script
