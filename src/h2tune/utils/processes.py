"""Processes of this machine that work for this one, with their libraries loaded once for all of them."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from types import ModuleType

_START = threading.Lock()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def process_context(library: str) -> BaseContext:
    """How processes are started: by a server that has loaded a library, where the system has such servers.

    The server starts now, if none is there, and loads beside what this process does. Ctrl-C is for this process alone: it
    ends the others.

    Args:
        library: the module that the processes need; importing it takes longer than all else at their start.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver, resource_tracker

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([library])
    resource_tracker.ensure_running()  # its start unblocks what is blocked
    # What is blocked here stays so in the server, and in all that it starts.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


@contextmanager
def starting() -> Iterator[list[BaseProcess]]:
    """Around the start of processes: they do not run the user's script again, which need not ask who runs it.

    Yields:
        The processes, once they are started.
    """
    started: list[BaseProcess] = []
    with _START:
        before = set(multiprocessing.active_children())
        script, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
        try:
            yield started
        finally:
            sys.modules["__main__"] = script
            started += [child for child in multiprocessing.active_children() if child not in before]


def leave_with_parent() -> None:
    """In a process that was started: end when the one that started it is gone, killed or not.

    Otherwise it would go on writing where a resumed run writes.
    """
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def portable(error: Exception) -> Exception:
    """An error that can go to another process as it is, or else one that tells all of it in words.

    Some errors cannot be built again from what Python keeps of them: the process that waits for them would break.
    """
    try:
        again = pickle.loads(pickle.dumps(error))  # noqa: S301 - this process has just written it
    except Exception:
        again = None
    same = type(again) is type(error) and str(again) == str(error)
    return error if same else RuntimeError("".join(traceback.format_exception(error)).rstrip())
