"""Workers as processes of this machine, with the standard library."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Collection
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from h2tune.participant.context import Watch
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
        watch: told of the clients' updates now and then, from a thread of its own.

    Raises:
        WorkersError: this process may start none.
    """

    several_machines = False

    def __init__(self, count: int, watch: Watch | None = None) -> None:
        if multiprocessing.current_process().daemon:
            raise WorkersError(
                "A daemonic process may start no others: start it with daemon=False, or take workers=0."
            )
        self.threads = max(1, cores() // count)
        gpus = _gpus()
        self.gpus = [gpus[i * len(gpus) // count] for i in range(count)] if gpus else []
        self.workers: list[Process] = []
        self.watch = watch

    def start(self, about: tuple[Any, ...], place: int, again: bool = False) -> Process:
        environment = dict(os.environ) | ({"CUDA_VISIBLE_DEVICES": self.gpus[place]} if self.gpus else {})
        context = process_context("h2tune.simulation.clients")
        heard, told = context.Pipe(duplex=False)
        arguments = (environment, told, (*about, self.threads))
        pool = ProcessPoolExecutor(1, context, initializer=_begin, initargs=arguments)
        with starting() as started:
            pool.submit(os.getpid)  # a pool starts its process with its first task
        told.close()  # the worker has the only one now: when it ends, so does the thread that listens
        threading.Thread(target=listen, args=(heard, self.watch), daemon=True).start()
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


TELL_EVERY = 0.1  # seconds


def _begin(environment: dict[str, str], told: Connection, about: tuple[Any, ...]) -> None:
    """At the start of a worker's process: it is started by a server, whose environment may be an older one."""
    leave_with_parent()
    os.environ.clear()
    os.environ.update(environment)
    worker = Worker(*about)
    worker.watch = Teller(told)
    _HERE[:] = [worker]


class Teller:
    """In a worker's process: tells the one that runs the federation of updates, not of every one."""

    def __init__(self, told: Connection) -> None:
        self.told, self.last = told, 0.0

    def __call__(self, client: str, round: int, phase: str, step: int, steps: int, loss: float) -> None:
        if (now := time.monotonic()) - self.last < TELL_EVERY:
            return
        self.last = now
        try:
            self.told.send((client, round, phase, step, steps, loss))
        except OSError:
            self.last = float("inf")  # nobody listens any more


def listen(heard: Connection, watch: Watch | None) -> None:
    """Pass on what a worker tells, until it ends."""
    with heard:
        try:
            while True:
                update = heard.recv()
                if watch:
                    watch(*update)
        except (EOFError, OSError):
            return


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
