"""Processes of this machine that work for this one, with h2tune's libraries loaded once for all of them."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from types import ModuleType

LIBRARIES = ["h2tune.federation"]  # what a process needs; importing it takes longer than all else at its start


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def process_context() -> BaseContext:
    """How processes are started: from a server that has loaded the libraries, where the system has such servers."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    return context


def load_ahead() -> None:
    """Let the libraries of later processes load from now on, beside what this process does."""
    if process_context().get_start_method() == "forkserver":
        from multiprocessing import forkserver

        forkserver.ensure_running()


@contextmanager
def starting() -> Iterator[None]:
    """Around the start of processes: they do not run the user's script again, which need not ask who runs it."""
    script, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def leave_with_parent() -> None:
    """In a process that was started: end when the one that started it is gone, killed or not.

    Otherwise it would go on writing where a resumed run writes.
    """
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
