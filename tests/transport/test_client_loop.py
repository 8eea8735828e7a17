"""A client's end: what is for another process is left alone, a stop ends also a client that works, nobody waits for ever."""

from __future__ import annotations

import queue
import signal
import threading
import time
from typing import Any

import pytest

from h2tune.transport.channel import REFUSED, ChannelError, Done
from h2tune.transport.client_loop import ClientLoop, DismissedError
from h2tune.transport.envelope import Envelope, unpack


class Wire:
    """A channel of queues: what the client says, and what it hears."""

    ports = ()

    def __init__(self, error: str = "") -> None:
        self.error, self.sent, self.inbox = error, [], queue.Queue()

    def send(self, to: str, data: bytes, done: Done = lambda error: None) -> None:
        self.sent.append(unpack(data))
        done(self.error)

    def receive(self, seconds: float) -> tuple[str, bytes] | None:
        try:
            return "server", self.inbox.get(timeout=min(seconds, 0.01)).pack()
        except queue.Empty:
            return None

    def answers(self) -> list[str]:
        return [e.fields["number"] for e in self.sent if e.kind == "answer"]


def request(loop: ClientLoop, number: str, process: str | None = None) -> Envelope:
    return Envelope("request", {"number": number, "process": loop.process if process is None else process}, b"q")


def stop(loop: ClientLoop, reason: str, finished: bool = False, process: str = "") -> Envelope:
    return Envelope("stop", {"reason": reason, "finished": finished, "process": process or loop.process})


def test_requests_and_stops_for_another_process_are_left_alone() -> None:
    wire = Wire()
    loop = ClientLoop(wire, "f", beat=0.01)
    for envelope in (request(loop, "1", "other"), stop(loop, "no", process="other"), request(loop, "2")):
        wire.inbox.put(envelope)
    threading.Timer(0.3, lambda: wire.inbox.put(stop(loop, "over", finished=True))).start()
    assert loop.run(lambda data: b"a") == "over" and wire.answers() == ["2"]


def test_a_request_that_comes_twice_is_answered_twice_and_done_once() -> None:
    wire, done = Wire(), []
    loop = ClientLoop(wire, "f", beat=0.01)
    for delay, envelope in (
        (0.0, request(loop, "1")),
        (0.2, request(loop, "1")),
        (0.4, stop(loop, "over", finished=True)),
    ):
        threading.Timer(delay, wire.inbox.put, [envelope]).start()
    loop.run(lambda data: done.append(data) or b"a")
    assert wire.answers() == ["1", "1"] and len(done) == 1


@pytest.mark.parametrize("how", ["by a signal", "by asking"])
def test_a_stop_ends_a_client_that_works(how: str) -> None:
    wire, seen = Wire(), []
    loop = ClientLoop(wire, "f", beat=0.01)

    def work(data: bytes) -> bytes:
        wire.inbox.put(stop(loop, "the coordinator has revoked this participant"))
        end = time.monotonic() + 20
        while time.monotonic() < end:
            time.sleep(0.01)
            if how == "by asking":
                loop.check()
        seen.append("done")
        return b"a"

    def stopped(*args: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stopped if how == "by a signal" else signal.SIG_DFL)
    try:
        wire.inbox.put(request(loop, "1"))
        with pytest.raises(DismissedError, match="has revoked this participant"):
            loop.run(work)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not seen and not wire.answers()


def test_a_person_who_stops_a_client_is_not_taken_for_the_server() -> None:
    wire = Wire()
    loop = ClientLoop(wire, "f", beat=0.01)
    wire.inbox.put(request(loop, "1"))

    def interrupted(data: bytes) -> bytes:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.run(interrupted)


def test_a_client_that_the_engine_refuses_ends_with_the_reason() -> None:
    loop = ClientLoop(Wire(f"unauthenticated {REFUSED}its kit is old"), "f", beat=0.01)
    with pytest.raises(DismissedError, match=r"^its kit is old$"):
        loop.run(lambda data: b"a")


def test_a_client_does_not_wait_for_ever() -> None:
    """For a server that it never reached less long than for one that was there; the reason says what to do."""
    never = ClientLoop(Wire("unreachable"), "f", beat=0.01, patience=60.0, first=0.2)
    with pytest.raises(ChannelError, match=r"could not be reached for 0\.2 s. Ask the coordinator: .* start again"):
        never.run(lambda data: b"a")
    wire = Wire()
    once = ClientLoop(wire, "f", beat=0.01, patience=0.3, first=60.0)
    threading.Timer(0.1, lambda: setattr(wire, "error", "unreachable")).start()
    with pytest.raises(ChannelError, match=r"could not be reached for 0\.3 s"):
        once.run(lambda data: b"a")


def test_a_stop_is_believed_from_whoever_knows_the_process_and_from_nobody_else() -> None:
    wire = Wire()
    loop = ClientLoop(wire, "f")
    stop = {"reason": "over", "finished": True}
    for process in ("", "another"):
        assert loop.talk.heard(Envelope("stop", stop | {"process": process}).pack()) is None
    assert loop.talk.heard(Envelope("stop", stop | {"process": loop.process}).pack()) is not None


def test_a_server_that_may_come_back_is_waited_for_and_the_reason_is_said_once_for_this_process() -> None:
    wire, told = Wire(), []
    loop = ClientLoop(wire, "f", beat=0.01, patience=60.0, say=told.append)
    for process in ("another", loop.process):
        wire.inbox.put(Envelope("pause", {"reason": "too few clients take part", "process": process}))
    threading.Timer(0.2, lambda: wire.inbox.put(stop(loop, "over", finished=True))).start()
    assert loop.run(lambda data: b"a") == "over"
    assert told == [
        "The server has ended: too few clients take part. It may be started again; this client waits for it for up to 60 s."
    ]


def test_a_client_that_can_say_nothing_goes_on_and_ends_when_it_is_told_to() -> None:
    def closed(text: str) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    wire = Wire()
    loop = ClientLoop(wire, "f", beat=0.01, say=closed)
    wire.inbox.put(Envelope("pause", {"reason": "too few clients take part", "process": loop.process}))
    wire.inbox.put(stop(loop, "over", finished=True))
    assert ended(loop) == "over"


def test_an_error_of_who_listens_ends_the_client_with_that_error() -> None:
    wire = Wire()
    wire.receive = lambda seconds: {}["no such thing"]
    assert isinstance(ended(ClientLoop(wire, "f", beat=0.01)), KeyError)


def ended(loop: ClientLoop) -> str | Exception | None:
    """How a client ends, which it might not."""
    found: list[str | Exception] = []

    def run() -> None:
        try:
            found.append(loop.run(lambda data: b"a"))
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(10)
    return found[0] if found else None


def test_the_signal_of_the_last_word_may_come_late() -> None:
    class Late(threading.Thread):
        """A thread during whose end the signal arrives."""

        left = 2

        def is_alive(self) -> bool:
            return self.left > 0

        def join(self, timeout: float | None = None) -> None:
            self.left -= 1
            raise KeyboardInterrupt

    loop = ClientLoop(Wire(), "f")
    with pytest.raises(KeyboardInterrupt):  # a person
        loop._join(Late())
    loop._end = Envelope("stop", {"reason": "over", "finished": True, "process": loop.process})
    loop._join(Late())


@pytest.mark.parametrize("working", [False, True])
def test_an_error_while_saying_hello_ends_the_loop(working: bool) -> None:
    """Without hellos the server would take the client for away, and nobody would know why."""
    wire = Wire()
    begun = threading.Event()

    def doing() -> dict[str, Any]:
        if threading.current_thread() is not threading.main_thread() and (begun.is_set() or not working):
            raise RuntimeError("nothing is known of what it does")
        return {}

    def work(data: bytes) -> bytes:
        begun.set()
        end = time.monotonic() + 20
        while time.monotonic() < end:
            time.sleep(0.01)
            loop.check()
        return b"late"

    loop = ClientLoop(wire, "f", doing=doing, beat=0.01, patience=20)
    if working:
        wire.inbox.put(request(loop, "1"))
    begin = time.monotonic()
    with pytest.raises(RuntimeError, match="nothing is known of what it does"):
        loop.run(work)
    assert time.monotonic() - begin < 10
