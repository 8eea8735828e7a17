"""What the C library does with memory that is given back."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # as glibc's malloc.h has them
KEPT = 512 * 2**20
LARGEST = 8 * 2**20
OWN_CHOICE = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let the process keep what it has freed, in pieces of up to 8 MB, for what it needs next.

    Training frees the tensors of a pass and needs as many a moment later. glibc gives them back to the system in between, which
    then has to clear every page anew: a fifth of the time of small models. Kept are up to 512 MB at the end of the heap, and
    whatever lies between pieces that are in use. Larger pieces go back at once: where each is a little larger than the last,
    none fits where one was, and with pieces of up to 64 MB a pass whose texts grew held 13 times the memory in 7 runs of 18.

    It is done for the whole process; `give_back_memory` returns what is free.

    Returns:
        Whether it was done: only with glibc, and not where an environment variable of malloc says what the user wants.
    """
    change = _of_malloc("mallopt")
    if change is None or any(name in os.environ for name in OWN_CHOICE):
        return False
    return bool(change(MMAP_THRESHOLD, LARGEST)) and bool(change(TRIM_THRESHOLD, KEPT))


def give_back_memory(above: int = 0) -> None:
    """Return all freed memory to the system, as after a run: a notebook that goes on should not hold what training needed.

    Args:
        above: bytes; less than this is kept. With a C library that does not say how much is free, all is kept.
    """
    trim = _of_malloc("malloc_trim")
    if trim and (not above or freed_memory() > above):
        trim(0)


class _Info(ctypes.Structure):
    """glibc's ``struct mallinfo2``."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


def freed_memory() -> int:
    """Bytes of the heap that are free, whether the system has them back or not; 0 where that is not known."""
    if (ask := _of_malloc("mallinfo2")) is None:  # glibc 2.33 and later
        return 0
    ask.restype = _Info
    return int(ask().fordblks)


def _of_malloc(name: str) -> Any:
    """A function of glibc, or None with another C library."""
    if sys.platform != "linux":
        return None
    try:
        return getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return None
