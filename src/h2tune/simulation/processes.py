"""Workers as processes of this machine, with the standard library."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Collection
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any

from h2tune.simulation.worker import Worker, WorkerEnded, WorkersError
from h2tune.utils.processes import cores, leave_with_parent, portable, process_context, starting


@dataclass(frozen=True)
class Process:
    """A pool of one process, in which a worker lives."""

    pool: ProcessPoolExecutor
    process: BaseProcess


class Processes:
    """Starts workers in processes and calls them (`h2tune.simulation.workers.Engine`).

    Args:
        count: workers; each gets an equal part of the cores, and one of the GPUs if there are any.

    Raises:
        WorkersError: this process may start none.
    """

    several_machines = False

    def __init__(self, count: int) -> None:
        if multiprocessing.current_process().daemon:
            raise WorkersError(
                "A daemonic process may start no others: start it with daemon=False, or take workers=0."
            )
        self.threads = max(1, cores() // count)
        gpus = _gpus()
        self.gpus = [gpus[i * len(gpus) // count] for i in range(count)] if gpus else []
        self.workers: list[Process] = []

    def start(self, about: tuple[Any, ...], place: int, again: bool = False) -> Process:
        environment = dict(os.environ) | ({"CUDA_VISIBLE_DEVICES": self.gpus[place]} if self.gpus else {})
        arguments = (environment, *about, self.threads)
        pool = ProcessPoolExecutor(
            1, process_context("h2tune.simulation.clients"), initializer=_begin, initargs=arguments
        )
        with starting() as started:
            pool.submit(os.getpid)  # a pool starts its process with its first task
        worker = Process(pool, started[0])
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
        worker.process.terminate()
        worker.pool.shutdown(cancel_futures=True)

    def close(self) -> None:
        for worker in list(self.workers):
            self.end(worker)


_HERE: list[Worker] = []  # in a worker's process: the worker


def _begin(environment: dict[str, str], plain: dict[str, Any], run: str, names: list[str], threads: int) -> None:
    """At the start of a worker's process: it is started by a server, whose environment may be an older one."""
    leave_with_parent()
    os.environ.clear()
    os.environ.update(environment)
    _HERE[:] = [Worker(plain, run, names, threads)]


def _act(action: str, *args: Any) -> Any:
    try:
        return getattr(_HERE[0], action)(*args)
    except Exception as error:
        if (told := portable(error)) is error:
            raise
        raise told from None


def _gpus() -> list[str]:
    """How CUDA calls the GPUs that this process may use."""
    import torch

    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return told.split(",")[:count] if told else [str(i) for i in range(count)]
