"""Workers as actors of Ray, on the machines of a cluster."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from typing import Any

from h2tune.simulation.worker import Worker, WorkerEnded, WorkersError


def wants_ray() -> bool:
    """Whether a cluster was named: by `ray.init` in the calling script, or by Ray's own environment variable."""
    ray = sys.modules.get("ray")
    return "RAY_ADDRESS" in os.environ or (ray is not None and bool(ray.is_initialized()))


class OnRay:
    """Starts workers as Ray's actors and calls them (`h2tune.simulation.workers.Engine`).

    Args:
        count: workers; each gets an equal part of the cluster's CPUs and GPUs.

    Raises:
        WorkersError: if Ray is not there.
    """

    def __init__(self, count: int) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
        try:
            import ray
        except ImportError:
            raise WorkersError("A cluster (RAY_ADDRESS) needs Ray: pip install 'h2tune[cluster]'") from None
        self.ray = ray
        if not ray.is_initialized():
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        whole = ray.cluster_resources()
        self.threads = max(1, int(whole["CPU"] // count))
        self.cpus, self.gpus = min(self.threads, whole["CPU"] / count), whole.get("GPU", 0) / count
        self.several_machines = sum(node["Alive"] for node in ray.nodes()) > 1

    def start(self, about: tuple[Any, ...], place: int, again: bool = False) -> Any:
        cpus = 0 if again else self.cpus  # a dead machine's cores are gone; who takes over shares those that are left
        return self.ray.remote(Worker).options(num_cpus=cpus, num_gpus=self.gpus).remote(*about, self.threads)

    def call(self, worker: Any, action: str, *args: Any) -> Any:
        return getattr(worker, action).remote(*args)

    def first(self, calls: Collection[Any]) -> Any:
        (done,), _ = self.ray.wait(list(calls), num_returns=1)
        return done

    def result(self, call: Any, seconds: float | None = None) -> Any:
        errors = self.ray.exceptions
        try:
            return self.ray.get(call, timeout=seconds)
        except errors.GetTimeoutError:
            raise TimeoutError from None
        except errors.RayTaskError as error:
            raise error.cause from None
        except errors.RayActorError as error:
            raise WorkerEnded(str(error.__cause__ or error).strip().partition("\n")[0]) from None

    def end(self, worker: Any) -> None:
        self.ray.kill(worker)

    def close(self) -> None:
        self.ray.shutdown()
