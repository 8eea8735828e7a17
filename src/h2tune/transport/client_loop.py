"""A client's end of the network: say hello all the time, answer what is asked, until the server says stop.

An answer is kept until it is delivered: the server may be away for a while, and a cut in the middle of an envelope is a
envelope sent again.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from h2tune.errors import H2TuneError, ProtocolError
from h2tune.transport.channel import REFUSED, SERVER, Channel
from h2tune.transport.envelope import Envelope, unpack
from h2tune.version import __version__

RETRY = 0.5  # seconds


class DismissedError(H2TuneError, RuntimeError):
    """The server does not want this client; the text says why."""


class ClientLoop:
    """Serves one run of the federation.

    Args:
        federation: identity of the kit.
        doing: called for every hello; plain values that the coordinator may see (round, phase, step).
        beat: seconds between hellos.
    """

    def __init__(self, channel: Channel, federation: str, doing: Callable[[], dict[str, Any]] = dict, beat: float = 1.0
                 ) -> None:  # fmt: skip
        self.channel, self.federation, self.doing, self.beat = channel, federation, doing, beat
        self.process = secrets.token_hex(8)
        self.busy, self.heard = False, 0.0  # when the server's engine last took an envelope of ours
        self._refused = ""  # why the server's engine takes none
        self._over = threading.Event()

    def run(self, answer: Callable[[bytes], bytes]) -> str:
        """Answer requests until the run is over; returns the server's last words.

        Raises:
            DismissedError: the server does not want this client.
            ChannelError: the engine has failed for good.
        """
        beats = threading.Thread(target=self._say_hello, daemon=True, name="h2tune-hello")
        beats.start()
        last: Envelope | None = None
        try:
            while True:
                envelope = self._newest()
                if envelope.kind == "stop":
                    if envelope.fields["finished"]:
                        return str(envelope.fields["reason"])
                    raise DismissedError(envelope.fields["reason"])
                self.busy = True
                self._hello()
                if last is None or last.fields["number"] != envelope.fields["number"]:
                    last = Envelope("answer", {"number": envelope.fields["number"]}, answer(envelope.body))
                self._deliver(last)  # a request that comes twice is answered twice, and done once
                self.busy = False
                self._hello()
        finally:
            self._over.set()
            beats.join()

    def _newest(self) -> Envelope:
        """Wait for an envelope; of several requests only the last is of interest to anyone."""
        found: Envelope | None = None
        while True:
            received = self.channel.receive(0.0 if found else 0.5)
            if self._refused:
                raise DismissedError(self._refused)
            if received is None:
                if found:
                    return found
                continue
            try:
                envelope = unpack(received[1])
            except ProtocolError:
                continue  # from the server's engine, but not of our kind: nothing to act on
            if envelope.kind == "request":
                found = envelope
            elif envelope.kind == "stop" and envelope.fields["process"] in ("", self.process):
                return envelope

    def _deliver(self, envelope: Envelope) -> None:
        data = envelope.pack()
        while not self._refused:
            fate: SimpleQueue[str] = SimpleQueue()
            self.channel.send(SERVER, data, fate.put)
            error = fate.get()
            self._noted(error)
            if not error:
                return
            time.sleep(RETRY)

    def _say_hello(self) -> None:
        while not self._over.wait(self.beat):
            self._hello()

    def _hello(self) -> None:
        fields = {"federation": self.federation, "process": self.process, "version": __version__,
                  "busy": self.busy, "doing": self.doing()}  # fmt: skip
        self.channel.send(SERVER, Envelope("hello", fields).pack(), self._noted)

    def _noted(self, error: str) -> None:
        if not error:
            self.heard = time.time()
        elif REFUSED in error:
            self._refused = error.partition(REFUSED)[2]
