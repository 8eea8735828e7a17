"""A client's end of the network: say hello all the time, answer what is asked, until the server says stop.

An answer is kept until it is delivered: the server may be away for a while, and a cut in the middle of a letter is a
letter sent again.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from h2tune.transport.courier import SERVER, Courier
from h2tune.transport.letters import Letter, unpack
from h2tune.version import __version__
from h2tune.wire import WireError

RETRY = 0.5  # seconds


class DismissedError(RuntimeError):
    """The server does not want this client; the text says why."""


class Attendance:
    """Serves one run of the federation.

    Args:
        federation: identity of the kit.
        doing: called for every hello; plain values that the coordinator may see (round, phase, step).
        beat: seconds between hellos.
    """

    def __init__(self, courier: Courier, federation: str, doing: Callable[[], dict[str, Any]] = dict, beat: float = 1.0
                 ) -> None:  # fmt: skip
        self.courier, self.federation, self.doing, self.beat = courier, federation, doing, beat
        self.incarnation = secrets.token_hex(8)
        self.busy, self.heard = False, 0.0  # when the server's engine last took a letter of ours
        self._over = threading.Event()

    def run(self, answer: Callable[[bytes], bytes]) -> str:
        """Answer requests until the run is over; returns the server's last words.

        Raises:
            DismissedError: the server does not want this client.
            CourierError: the engine has failed for good.
        """
        beats = threading.Thread(target=self._say_hello, daemon=True, name="h2tune-hello")
        beats.start()
        last: Letter | None = None
        try:
            while True:
                letter = self._newest()
                if letter.kind == "stop":
                    if letter.fields["finished"]:
                        return letter.fields["reason"]
                    raise DismissedError(letter.fields["reason"])
                self.busy = True
                self._hello()
                if last is None or last.fields["number"] != letter.fields["number"]:
                    last = Letter("answer", {"number": letter.fields["number"]}, answer(letter.body))
                self._deliver(last)  # a request that comes twice is answered twice, and done once
                self.busy = False
                self._hello()
        finally:
            self._over.set()
            beats.join()

    def _newest(self) -> Letter:
        """Wait for a letter; of several requests only the last is of interest to anyone."""
        found: Letter | None = None
        while True:
            received = self.courier.receive(0.0 if found else 0.5)
            if received is None:
                if found:
                    return found
                continue
            try:
                letter = unpack(received[1])
            except WireError:
                continue  # from the server's engine, but not of our kind: nothing to act on
            if letter.kind == "request":
                found = letter
            elif letter.kind == "stop" and letter.fields["incarnation"] in ("", self.incarnation):
                return letter

    def _deliver(self, letter: Letter) -> None:
        data = letter.pack()
        while True:
            fate: SimpleQueue[str] = SimpleQueue()
            self.courier.send(SERVER, data, fate.put)
            if not fate.get():
                self.heard = time.time()
                return
            time.sleep(RETRY)

    def _say_hello(self) -> None:
        while not self._over.wait(self.beat):
            self._hello()

    def _hello(self) -> None:
        fields = {"federation": self.federation, "incarnation": self.incarnation, "version": __version__,
                  "busy": self.busy, "doing": self.doing()}  # fmt: skip
        self.courier.send(SERVER, Letter("hello", fields).pack(), self._noted)

    def _noted(self, error: str) -> None:
        if not error:
            self.heard = time.time()
