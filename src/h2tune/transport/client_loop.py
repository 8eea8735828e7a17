"""A client's end of the network: say hello all the time, answer what is asked, until the server says stop.

An answer is kept until it is delivered: the server may be away for a while, and a cut in the middle of an envelope is an
envelope sent again. What the server says is read all the time, so that a stop ends also a client that is training.
"""

from __future__ import annotations

import _thread
import secrets
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

from h2tune.errors import H2TuneError, ProtocolError
from h2tune.transport.channel import REFUSED, SERVER, Channel, ChannelError
from h2tune.transport.envelope import PROTOCOL, Envelope, unpack
from h2tune.version import __version__

RETRY = 0.5  # seconds
AWAY = (
    "The server could not be reached for {:g} s. Ask the coordinator: if the federation goes on, start again when the"
    " server is there; if it has finished, `h2tune server` started again says so to this client."
)
PAUSED = "The server has ended: {}. It may be started again; this client waits for it for up to {:g} s."


class DismissedError(H2TuneError, RuntimeError):
    """The server does not want this client; the text says why."""


class Conversation:
    """What one process of a client says to the server, and what of the server's words is meant for it.

    Two processes may have the same kit, and the engine delivers to a name, so that either may get what is for the other.

    Args:
        federation: identity of the kit. process: of this process, new whenever it starts.
    """

    def __init__(self, federation: str, process: str) -> None:
        self.federation, self.process, self.busy = federation, process, False

    def hello(self, doing: dict[str, Any]) -> Envelope:
        """I am here, and this is what I do."""
        said = {"federation": self.federation, "process": self.process, "version": __version__, "protocol": PROTOCOL}
        return Envelope("hello", said | {"busy": self.busy, "doing": doing})

    def heard(self, data: bytes) -> Envelope | None:
        """A request, a stop or a pause that is meant for this process; None for anything else."""
        try:
            envelope = unpack(data)
        except ProtocolError:
            return None  # from the server's engine, but not of our kind: nothing to act on
        mine = envelope.kind in ("request", "stop", "pause") and envelope.fields["process"] == self.process
        return envelope if mine else None


class ClientLoop:
    """Serves one run of the federation.

    Args:
        federation: identity of the kit.
        doing: called for every hello; plain values that the coordinator may see (round, phase, step).
        beat: seconds between hellos.
        patience: seconds without contact after which a client no longer waits for the server.
        first: the same for a server that was never reached; by default also ``patience``.
        say: told why the server has ended, if it may be started again.
    """

    def __init__(
        self,
        channel: Channel,
        federation: str,
        doing: Callable[[], dict[str, Any]] = dict,
        beat: float = 1.0,
        patience: float = 86_400.0,
        first: float | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.channel, self.doing, self.beat, self.patience, self.say = channel, doing, beat, patience, say
        self.first = patience if first is None else first
        self.talk = Conversation(federation, secrets.token_hex(8))
        self.heard = 0.0  # when the server's engine last took an envelope of ours, as people's clocks have it
        self._contact = time.monotonic()  # the same, as the machine counts
        self._request: Envelope | None = None
        self._end: Envelope | Exception | None = None  # why nothing more is to be done
        self._news, self._over = threading.Condition(), threading.Event()
        self._main = False  # whether a signal reaches the thread that works

    @property
    def process(self) -> str:
        return self.talk.process

    @property
    def busy(self) -> bool:
        return self.talk.busy

    def run(self, answer: Callable[[bytes], bytes]) -> str:
        """Answer requests until the run is over; returns the server's last words.

        Raises:
            DismissedError: the server does not want this client.
            ChannelError: the engine has failed for good, or the server was away too long.
        """
        self._main = threading.current_thread() is threading.main_thread()
        threads = [threading.Thread(target=work, daemon=True) for work in (self._listen, self._say_hello)]
        for thread in threads:
            thread.start()
        last: Envelope | None = None
        try:
            while (request := self._next()) is not None:
                self.talk.busy = True
                self._hello()
                if last is None or last.fields["number"] != request.fields["number"]:
                    last = Envelope("answer", {"number": request.fields["number"]}, answer(request.body))
                self._deliver(last)  # a request that comes twice is answered twice, and done once
                self.talk.busy = False
                self._hello()
        except KeyboardInterrupt:
            if self._end is None:  # it was a person
                raise
        finally:
            self._over.set()
            for thread in threads:
                self._join(thread)
        if isinstance(self._end, Exception):
            raise self._end
        assert self._end is not None
        if self._end.fields["finished"]:
            return str(self._end.fields["reason"])
        raise DismissedError(self._end.fields["reason"])

    def _join(self, thread: threading.Thread) -> None:
        """Wait for a thread to end; the signal of one that has just heard the last word may come late."""
        while thread.is_alive():
            try:
                thread.join()
            except KeyboardInterrupt:
                if self._end is None:  # it was a person
                    raise

    def check(self) -> None:
        """For those who work long: raise KeyboardInterrupt if nothing more is to be done."""
        if self._end is not None:
            raise KeyboardInterrupt

    def _next(self) -> Envelope | None:
        """Wait for a request, of several for the last one; None if nothing more is to be done."""
        with self._news:
            self._news.wait_for(lambda: self._request or self._end)
            found, self._request = self._request, None
            return None if self._end is not None else found

    def _listen(self) -> None:
        """Read what the server says, also while an answer is worked out. An error here ends the loop: nobody else listens."""
        try:
            self._hear()
        except Exception as error:
            self._finish(error)

    def _hear(self) -> None:
        while not self._over.is_set():
            received = self.channel.receive(0.2)
            patience = self.patience if self.heard else self.first
            if time.monotonic() - self._contact > patience:
                return self._finish(ChannelError(AWAY.format(patience)))
            envelope = self.talk.heard(received[1]) if received else None
            if envelope is not None and envelope.kind == "stop":
                return self._finish(envelope)
            if envelope is not None and envelope.kind == "pause":
                with suppress(OSError, ValueError):  # nobody reads what we say: the work goes on
                    self.say(PAUSED.format(envelope.fields["reason"], self.patience))
            elif envelope is not None:
                with self._news:
                    self._request = envelope
                    self._news.notify_all()

    def _finish(self, end: Envelope | Exception) -> None:
        """Nothing more is to be done: what is under way is of no use to anyone."""
        with self._news:
            self._end = self._end or end
            self._news.notify_all()
        if self._main and self.busy and callable(signal.getsignal(signal.SIGTERM)):
            _thread.interrupt_main(signal.SIGTERM)

    def _deliver(self, envelope: Envelope) -> None:
        data = envelope.pack()
        while self._end is None:
            fate: SimpleQueue[str] = SimpleQueue()
            self.channel.send(SERVER, data, fate.put)
            error = fate.get()
            self._noted(error)
            if not error:
                return
            time.sleep(RETRY)

    def _say_hello(self) -> None:
        """Say hello all the time. An error here ends the loop: without hellos the server takes this client for away."""
        try:
            while not self._over.wait(self.beat):
                self._hello()
        except Exception as error:
            self._finish(error)

    def _hello(self) -> None:
        self.channel.send(SERVER, self.talk.hello(self.doing()).pack(), self._noted)

    def _noted(self, error: str) -> None:
        if not error:
            self.heard, self._contact = time.time(), time.monotonic()
        elif REFUSED in error and self._end is None:
            self._finish(DismissedError(error.partition(REFUSED)[2]))
