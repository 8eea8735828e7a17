"""Workers as processes of this machine, with the standard library."""

from __future__ import annotations

import os
import signal
from collections.abc import Collection
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from h2tune.simulation.worker import Worker, WorkerEnded
from h2tune.utils.processes import cores, leave_with_parent, process_context, starting


@dataclass(frozen=True)
class Process:
    """A pool of one process, in which a worker lives."""

    pool: ProcessPoolExecutor
    number: Future[int]


class Processes:
    """Starts workers in processes and calls them (`h2tune.simulation.workers.Engine`).

    Args:
        count: workers; each gets an equal part of the cores, and one of the GPUs if there are any.
    """

    several_machines = False

    def __init__(self, count: int) -> None:
        self.threads = max(1, cores() // count)
        gpus = _gpus()
        self.gpus = [gpus[i * len(gpus) // count] for i in range(count)] if gpus else []
        self.workers: list[Process] = []

    def start(self, about: tuple[Any, ...], place: int, again: bool = False) -> Process:
        gpu = self.gpus[place] if self.gpus else None
        pool = ProcessPoolExecutor(1, process_context(), initializer=_begin, initargs=(*about, self.threads, gpu))
        with starting():
            worker = Process(pool, pool.submit(os.getpid))
        self.workers.append(worker)
        return worker

    def call(self, worker: Process, action: str, *args: Any) -> Future[Any]:
        try:
            return worker.pool.submit(_act, action, *args)
        except BrokenProcessPool as error:
            ended: Future[Any] = Future()
            ended.set_exception(error)
            return ended

    def first(self, calls: Collection[Future[Any]]) -> Future[Any]:
        done = wait(calls, return_when=FIRST_COMPLETED).done
        return next(call for call in calls if call in done)

    def result(self, call: Future[Any], seconds: float | None = None) -> Any:
        try:
            return call.result(seconds)
        except BrokenProcessPool:
            raise WorkerEnded("its process is gone; the system may have ended it for want of memory") from None

    def end(self, worker: Process) -> None:
        self.workers.remove(worker)
        if worker.number.done() and not worker.number.exception():
            with suppress(ProcessLookupError):
                os.kill(worker.number.result(), signal.SIGTERM)
        worker.pool.shutdown(cancel_futures=True)

    def close(self) -> None:
        for worker in list(self.workers):
            self.end(worker)


_HERE: list[Worker] = []  # in a worker's process: the worker


def _begin(plain: dict[str, Any], run: str, names: list[str], threads: int, gpu: str | None) -> None:
    """At the start of a worker's process."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C is for the process that runs the federation; it ends this one
    leave_with_parent()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    _HERE[:] = [Worker(plain, run, names, threads)]


def _act(action: str, *args: Any) -> Any:
    return getattr(_HERE[0], action)(*args)


def _gpus() -> list[str]:
    """How CUDA calls the GPUs that this process may use."""
    import torch

    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return told.split(",")[:count] if told else [str(i) for i in range(count)]
