"""What the C library does with memory that is given back."""

from __future__ import annotations

import ctypes
import os
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # as glibc's malloc.h has them
KEPT = 512 * 2**20
LARGEST = 256 * 2**20
OWN_CHOICE = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let the process keep up to 512 MB that it has freed, in pieces of up to 256 MB, for what it needs next.

    Training frees the tensors of a pass and needs as many a moment later. glibc gives them back to the system in between, which
    then has to clear every page anew: a fifth of the time of small models. More memory is not taken than before at the highest
    point. It is done for the whole process.

    Returns:
        Whether it was done: only with glibc, and not where an environment variable of malloc says what the user wants.
    """
    if sys.platform != "linux" or any(name in os.environ for name in OWN_CHOICE):
        return False
    try:
        change = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(change(MMAP_THRESHOLD, LARGEST)) and bool(change(TRIM_THRESHOLD, KEPT))
