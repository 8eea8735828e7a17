"""NVFlare as the channel: its server or site process, started from a kit, watched, and started again if it ends.

Only NVFlare's own parent processes run (registration, certificates, connections, large messages). Our process stays
outside of them and talks to the relay inside through a local socket.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from h2tune.transport.channel import ChannelError, Done
from h2tune.transport.nvflare.engine_log import Found, Sentences, follow, last_line
from h2tune.transport.nvflare.inbox import Inbox
from h2tune.transport.nvflare.listener import Link, LinkClosed, Listener
from h2tune.utils.files import StoreError, write_atomic

SECONDS = 120.0  # without progress after which an envelope is given up; the receiver's side confirms it at once
PAUSE = 2.0  # seconds before an engine that ended is started again
LOG = 20 << 20  # bytes of the engine's log from which on a start begins a new one; the one before is kept
DAMAGED = "{} cannot be read: ask the coordinator for the kit again."
TRIES = 3  # starts without success before we give up
# No run-time installs, no usage reports; BLAS threads are of no use to a channel.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PIP_NO_INPUT": "1"}


class Flare:
    """A `Channel`. Envelopes are taken and given by any thread.

    Args:
        workspace: NVFlare's folder in a kit.
        role: ``server`` or ``client``.
        name: the participant.
        notice: told, each at most once a minute, what the engine's log says that a person should know.

    Attributes:
        ports: addresses on which the engine listens, once it is ready.
    """

    def __init__(
        self, workspace: Path, role: str, name: str, notice: Callable[[str], None] = lambda text: None
    ) -> None:
        self.workspace, self.role, self.name, self.notice = workspace.resolve(), role, name, notice
        self._inbox = Inbox(self._largest(), notice)
        self._waiting: dict[int, Done] = {}
        self._numbers = itertools.count()
        self._link: Link | None = None
        self._addresses: dict[str, str] = {}
        self.ports: list[str] = []
        self._sentences = Sentences(role)
        self.ready, self.failures = False, 0
        self._failure, self._over = "", threading.Event()
        self._listener = Listener()
        self._process = self._start()
        threading.Thread(target=self._serve, daemon=True, name="h2tune-engine").start()

    @property
    def pid(self) -> int:
        """The engine's process."""
        return self._process.pid

    def send(self, to: str, data: bytes, done: Done = lambda error: None) -> None:
        number, link = next(self._numbers), self._link
        if link is None:
            done("the engine is not running")
            return
        self._waiting[number] = done
        try:
            link.send({"to": to, "number": number, "seconds": SECONDS}, data)
        except LinkClosed:
            self._settle(number, "the engine has stopped")

    def receive(self, seconds: float) -> tuple[str, bytes] | None:
        try:
            return self._inbox.get(seconds)
        except queue.Empty:
            if self._failure:
                raise ChannelError(self._failure) from None
            return None

    def address(self, name: str) -> str:
        return self._addresses.get(name, "")

    def close(self) -> None:
        self._over.set()
        if self._link:
            self._link.close()  # the engine ends by itself
        self._listener.close()
        try:
            self._process.wait(3)
        except subprocess.TimeoutExpired:
            self._kill()

    def _start(self) -> subprocess.Popen[bytes]:
        if self.role == "server":
            self._keep_inside()
        self.log = self.workspace / "engine.log"
        if self.log.is_file() and self.log.stat().st_size > LOG:
            os.replace(self.log, self.log.with_name("engine.log.1"))
        with open(self.log, "ab") as log:
            place = log.tell()
            process = subprocess.Popen(
                [sys.executable, "-m", "h2tune.transport.nvflare.engine", self.role, str(self.workspace), self.name],
                env=os.environ | ENVIRONMENT | self._listener.environment, stdout=log, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, start_new_session=True, cwd=self.workspace,
            )  # fmt: skip
        threading.Thread(target=follow, args=(self.log, place, process, self._read), daemon=True).start()
        return process

    def _largest(self) -> int:
        """Most bytes of an envelope, as the kit tells the engine."""
        path = self.workspace / "local" / "comm_config.json"
        try:
            return int(json.loads(path.read_text(encoding="utf-8"))["max_message_size"])
        except (OSError, ValueError, LookupError, TypeError):
            raise ChannelError(DAMAGED.format(path)) from None

    def _keep_inside(self) -> None:
        """The engine's stores must have absolute paths, and a kit may be moved."""
        path, store = self.workspace / "local" / "resources.json", str(self.workspace / "jobs")
        try:
            before = path.read_text(encoding="utf-8")
            settings = json.loads(before)
            settings["snapshot_persistor"]["args"]["storage"]["args"]["root_dir"] = store
            (jobs,) = (c for c in settings["components"] if c["id"] == "job_manager")
            jobs["args"]["uri_root"] = store
        except (OSError, ValueError, LookupError, TypeError):
            raise ChannelError(DAMAGED.format(path)) from None
        if (after := json.dumps(settings, indent=1)) != before:
            write_atomic(path, after.encode())

    def _read(self, found: Found) -> None:
        """What the engine's log says."""
        told, ends = self._sentences.take(*found)
        if told:
            with suppress(StoreError):  # the disk is full: the work itself says so where it writes
                self.notice(found.text)
        if ends:
            self._failure = found.text
            self._over.set()

    def _serve(self) -> None:
        """Receive from the engine and start it again when it ends, until that cannot be done."""
        try:
            self._receive_and_restart()
        except Exception as error:  # a full disk, say: whoever waits for envelopes is told
            self._failure = f"The engine cannot be kept running: {error}"
            for number in list(self._waiting):
                self._settle(number, self._failure)

    def _receive_and_restart(self) -> None:
        while not self._over.is_set():
            try:
                self._link = self._accept()
                while True:
                    self._take(*self._link.receive())
            except LinkClosed:
                self._link = None
            self._count_failure()
            for number in list(self._waiting):
                self._settle(number, "the engine has stopped")
            if self._over.wait(PAUSE):
                return
            self._kill()
            self._process = self._start()

    def _count_failure(self) -> None:
        """An engine that never gets ready will not by being started again and again."""
        self.failures = 0 if self.ready else self.failures + 1
        self.ready = False
        if self.failures >= TRIES:
            self._failure = f"The engine cannot be started; {self.log} says: {last_line(self.log)[:300]}"
            self._over.set()

    def _accept(self) -> Link:
        return self._listener.accept(lambda: self._process.poll() is None and not self._over.is_set())

    def _take(self, header: dict[str, Any], body: bytes) -> None:
        if "ready" in header:
            self.ready, self.ports = True, header["ports"]
        elif "from" in header:
            self._addresses[header["from"]] = header["address"]
            self._inbox.put(header["from"], body)
        elif "sent" in header:
            if not header["error"]:
                self._sentences.contact()
            self._settle(header["sent"], header["error"])

    def _settle(self, number: int, error: str) -> None:
        if (done := self._waiting.pop(number, None)) is not None:
            done(error)

    def _kill(self) -> None:
        """End the engine and whatever it has started."""
        for kind in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, kind)
            except ProcessLookupError:
                return
            end = time.monotonic() + 3
            while self._process.poll() is None and time.monotonic() < end:
                time.sleep(0.05)


__all__ = ["Flare"]
