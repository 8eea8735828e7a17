"""A local socket between our process and the engine's: frames of a small JSON header and a body of bytes.

Only bytes travel, nothing is pickled. The socket lies in a folder that only this user may enter.
"""

from __future__ import annotations

import json
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection  # frames of any length, by file descriptor
from pathlib import Path
from typing import Any

PLACE = "H2TUNE_LINK"  # in the environment of the engine's process
HEAD_LIMIT, FRAME_LIMIT = 1 << 16, 1 << 31  # bytes
LONGEST_FOLDER = 70  # characters
POLL = 0.2  # seconds between looks at whether the engine's process still runs
Frame = tuple[dict[str, Any], bytes]


class LinkClosed(ConnectionError):
    """The other end is gone."""


class Link:
    """One end of the socket; threads may send at the same time, one of them receives."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(True)
        self._connection, self._lock = Connection(end.detach()), threading.Lock()

    def send(self, header: dict[str, Any], body: bytes = b"") -> None:
        """Raises LinkClosed."""
        try:
            with self._lock:
                self._connection.send_bytes(json.dumps(header).encode())
                self._connection.send_bytes(body)
        except OSError as error:
            raise LinkClosed(str(error)) from None

    def receive(self) -> Frame:
        """Wait for a frame; raises LinkClosed."""
        try:
            header = self._connection.recv_bytes(HEAD_LIMIT)
            return json.loads(header), self._connection.recv_bytes(FRAME_LIMIT)
        except (OSError, EOFError, TypeError) as error:  # the last if it is closed here while we wait
            raise LinkClosed(str(error)) from None

    def close(self) -> None:
        self._connection.close()


class Listener:
    """Where our process waits for the engine's."""

    def __init__(self) -> None:
        # mode 0700; a long TMPDIR does not fit a socket's address
        short = len(tempfile.gettempdir()) < LONGEST_FOLDER
        self._folder = Path(tempfile.mkdtemp(prefix="h2tune-", dir=None if short else "/tmp"))  # noqa: S108
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(self._folder / "link"))
        self._socket.listen()
        self._socket.settimeout(POLL)

    @property
    def environment(self) -> dict[str, str]:
        """What the engine's process needs to know."""
        return {PLACE: str(self._folder / "link")}

    def accept(self, wanted: Callable[[], bool] = lambda: True) -> Link:
        """Wait for the engine's process for as long as it is ``wanted``; raises LinkClosed."""
        while wanted():
            try:
                return Link(self._socket.accept()[0])
            except TimeoutError:
                continue
            except OSError as error:
                raise LinkClosed(str(error)) from None
        raise LinkClosed("the engine has ended")

    def close(self) -> None:
        self._socket.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def connect(environment: dict[str, str]) -> Link:
    """The engine's end."""
    end = socket.socket(socket.AF_UNIX)
    end.connect(environment[PLACE])
    return Link(end)
