"""Functions that take turns: each can stop in the middle, wait for what others do, and go on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

_here = threading.local()


class TurnClosed(BaseException):
    """The function is not wanted any more; it unwinds. No `Exception`: nothing in between should take it for its own."""


class Turn:
    """A function on a thread of its own that never runs beside its caller: one of the two always waits for the other.

    So code that was written to run from its beginning to its end can hand something over in the middle.

    Attributes:
        handed: what the function handed over when it stopped (`hand_over`). answer: what it returned.
        ended: whether it has come to its end.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        self.handed: Any = None
        self.answer: Any = None
        self.ended = False
        self._function, self._closed = function, False
        self._error: BaseException | None = None
        self._mine, self._callers = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def go_on(self) -> None:
        """Run the function until it hands something over or ends; raises what it raises."""
        self.handed = None
        self._mine.release()
        self._callers.acquire()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def close(self) -> None:
        """End the function where it stands."""
        if not self.ended:
            self._closed = True
            self._mine.release()
            self._thread.join()

    def _run(self) -> None:
        self._mine.acquire()
        _here.turn = self
        try:
            if not self._closed:
                self.answer = self._function()
        except TurnClosed:
            pass
        except BaseException as error:  # it is raised where the caller waits
            self._error = error
        finally:
            self.ended = True
            self._callers.release()

    def _stop(self, value: Any) -> None:
        self.handed = value
        self._callers.release()
        self._mine.acquire()
        if self._closed:
            raise TurnClosed


def takes_turns() -> bool:
    """Whether this code runs inside a `Turn`."""
    return getattr(_here, "turn", None) is not None


def hand_over(value: Any) -> None:
    """Inside a `Turn`: hand something over and wait until the caller lets the function go on."""
    turn: Turn = _here.turn
    turn._stop(value)
