"""What has arrived and waits to be read: of each sender a bounded number of bytes, so that none fills the memory."""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

from h2tune.utils.files import StoreError

SPARE = 16 << 20  # bytes of a sender besides one largest envelope: signs of life of nine hours in which nobody reads
HULL = 200  # bytes in memory around an envelope, at least


class Inbox:
    """A queue of envelopes. What would exceed a sender's room is dropped: a client is asked again for an answer that is missing.

    Who sends is not told, and is not to be: its envelope did reach the server, which is what a client measures by whether
    the server is there.

    Args:
        largest: bytes of an envelope.
        notice: told once of each sender whose envelopes are dropped.
    """

    def __init__(self, largest: int, notice: Callable[[str], None] = lambda text: None) -> None:
        self.room, self.notice = largest + SPARE, notice
        self._queue: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self._waiting: Counter[str] = Counter()  # bytes by sender
        self._lock, self._told = threading.Lock(), set[str]()

    def put(self, name: str, data: bytes) -> bool:
        """Let an envelope wait; False if it was dropped."""
        with self._lock:
            fits = self._waiting[name] + len(data) + HULL <= self.room
            if fits:
                self._waiting[name] += len(data) + HULL
                self._queue.put((name, data))
        if not fits and name not in self._told:
            self._told.add(name)
            with suppress(StoreError):  # the disk is full: the work itself says so where it writes
                self.notice(
                    f"{name} sends more than is read: {self.room:,} bytes wait, what comes on top of them is dropped"
                )
        return fits

    def get(self, seconds: float) -> tuple[str, bytes]:
        """The next envelope and who wrote it.

        Raises:
            queue.Empty: none came.
        """
        name, data = self._queue.get(timeout=seconds) if seconds else self._queue.get_nowait()
        with self._lock:
            self._waiting[name] -= len(data) + HULL
        return name, data
