"""What tests of the real engine share: ports, patience, a relay before the server, a federation as people run it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from federations import small

from h2tune.config import Experiment
from h2tune.deployment.provision import provision

if TYPE_CHECKING:
    from h2tune.transport.nvflare.flare import Flare

SECONDS = 300  # in which things must have happened; they take a few, on a busy machine many


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(true: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if found := true():
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what}: not within {SECONDS} s")


def receive(channel: Flare) -> tuple[str, bytes]:
    return until(lambda: channel.receive(0.1), "an envelope")


def send(channel: Flare, to: str, data: bytes) -> None:
    """As senders do: again until it is delivered."""

    def once() -> bool:
        fate: list[str] = []
        channel.send(to, data, fate.append)
        until(lambda: fate, "an envelope's fate")
        return not fate[0]

    until(once, "an envelope is delivered")


def engines(folder: Path) -> list[psutil.Process]:
    """Processes that work on a kit under this folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(str(folder) in part for part in process.info["cmdline"] or []):
            found.append(process)
    return found


class Tap:
    """A relay before the server that remembers all bytes, and can cut every connection.

    Attributes:
        idle: seconds without a byte after which a connection is closed; None never closes one.
        away: whether nobody gets through; set by `shut`.
    """

    def __init__(self, port: int) -> None:
        self.port, self.seen, self.cuts, self.swallowed = port, bytearray(), 0, 0
        self.cut_after: int | None = None
        self.idle: float | None = None
        self.away, self._ends, self._silent = False, list[socket.socket](), set[socket.socket]()
        self._door = socket.create_server(("127.0.0.1", 0))
        self.door = self._door.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._door.accept()
            except OSError:
                return
            try:
                far = None if self.away else socket.create_connection(("127.0.0.1", self.port))
            except OSError:  # the server is away
                far = None
            if far is None:
                near.close()
                continue
            self._ends += [near, far]
            near.settimeout(self.idle)
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                if source in self._silent:
                    self.swallowed += len(data)
                    continue
                self.seen += data
                if self.cut_after is not None and len(self.seen) > self.cut_after:
                    self.cut_after, self.cuts = None, self.cuts + 1
                    break
                target.sendall(data)
        except TimeoutError:
            self.cuts += 1
        except OSError:
            pass
        for end in (source,) if source in self._silent else (source, target):
            end.close()

    def shut(self, away: bool) -> None:
        """Cut every connection and refuse new ones, or let them through again."""
        self.away = away
        while away and self._ends:
            end = self._ends.pop()
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def silence(self) -> None:
        """Let nothing more through on the connections of now, and let neither side know."""
        self._silent, self.swallowed = self._silent | set(self._ends), 0

    def hang_up(self) -> None:
        """Close the client's ends of silent connections; the server's end is not told."""
        for end in self._ends[::2]:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._door.close()


def through(folder: Path, port: int) -> None:
    """Let the client of a kit connect to another port than the server's."""
    path = folder / "engine" / "startup" / "fed_client.json"
    settings = json.loads(path.read_text())
    settings["servers"][0]["service"]["target"] = f"localhost:{port}"
    path.write_text(json.dumps(settings))


class Session:
    """A federation as people run it: four processes of the command line."""

    def __init__(self, experiment: Experiment, folder: Path) -> None:
        self.experiment, self.folder = experiment, folder
        self.processes: dict[str, subprocess.Popen] = {}
        self.environment: dict[str, str] = {}
        self.tap: Tap | None = None

    def start(self, name: str) -> None:
        first = not (self.folder / name / "own.yaml").is_file()
        role = "server" if name == "server" else "client"
        options = []
        if role == "client" and first:  # later starts remember them
            client = next(c for c in self.experiment.clients if c.name == name)
            options = ["--model", client.model, "--train", client.train, "--test", client.test, "--validation",
                       client.validation, "--device", "cpu"]  # fmt: skip
        path = {"PYTHONPATH": os.pathsep.join(sys.path), "H2TUNE_TEST_NAME": name}
        environment = os.environ | path | self.environment
        log = open(self.folder / f"{name}.log", "ab")  # noqa: SIM115 - the child keeps it
        self.processes[name] = subprocess.Popen([sys.executable, "-m", "h2tune", role, str(self.folder / name), *options],
                                                env=environment, stdout=log, stderr=log)  # fmt: skip

    def committed(self, round: int) -> bool:
        path = self.folder / "server" / "run" / "events.jsonl"
        return path.is_file() and f'"round_committed", "round": {round}' in path.read_text()

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The server's events of one kind."""
        lines = (self.folder / "server" / "run" / "events.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    def engine_of(self, name: str) -> psutil.Process:
        return psutil.Process(self.processes[name].pid).children()[0]

    def finish(self) -> None:
        assert {name: process.wait(300) for name, process in self.processes.items()} == dict.fromkeys(
            self.processes, 0
        )

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()


@contextmanager
def begun(
    folder: Path, silence: float = 30, tap: bool = False, environment: dict[str, str] | None = None, **changes: Any
) -> Iterator[Session]:
    """A federation of two clients under ``folder``/kits, after its first round; in the end no process of it is left.

    Args:
        tap: whether c1 connects through a `Tap` (`Session.tap`).
    """
    network = {"port": free_port(), "gather": SECONDS, "silence": silence}
    experiment = small(clients=2, network=network, training={"steps": 10, "batch_size": 4}, **changes)
    provision(experiment, folder / "kits")
    session = Session(experiment, folder / "kits")
    session.environment, session.tap = environment or {}, Tap(network["port"]) if tap else None
    if session.tap:
        through(folder / "kits" / "c1", session.tap.door)
    try:
        for name in ("server", "c0", "c1"):
            session.start(name)
        until(lambda: session.committed(1), "a round")
        yield session
    finally:
        session.close()
        if session.tap:
            session.tap.close()
    until(lambda: not engines(folder), "no process is left")
