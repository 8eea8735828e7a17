"""Health and progress of a running kit: a small file that its process writes, and what a person reads from it."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, Self

from h2tune.deployment.kits import Kit, KitError
from h2tune.errors import H2TuneError
from h2tune.utils.files import Claim, InUseError, StoreError, write_atomic

SECONDS = 1.0  # between two writings
PATIENCE = 1.0  # seconds; somebody who asks for the status holds the lock for a moment
FRESH = 10.0  # seconds; a process writes more often than that
Fields = Callable[[], dict[str, Any]]


class StatusFile:
    """KIT/status.json, written every second by the process that works on the kit.

    Entered as a context, it makes the kit this process's own until it is left, or until the process ends in any way.

    Args:
        over: how the federation ended for this kit, if only work of its own is left to do.

    Raises:
        KitError: on entering, if another process works on the kit.
        StoreError: on entering, if the kit's folder cannot be written to or locked.
    """

    def __init__(self, kit: Kit, over: str = "") -> None:
        self.path, self.kit, self.over = kit.folder / "status.json", kit, over
        self.begin = time.time()
        self._fields: Fields = dict
        self._begun = False
        self._claim, self._writing, self._left = Claim(kit.folder), threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="h2tune-status")

    def __enter__(self) -> Self:
        try:
            self._claim.take(PATIENCE)
        except InUseError:
            other = (read(self.kit) or {}).get("pid", "unknown")
            raise KitError(
                f"{self.kit.folder} is in use by process {other}: one process at a time works on a kit."
            ) from None
        try:
            self._write()
        except StoreError:
            self._claim.give_up()
            raise
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._left.set()
        self._thread.join()
        if not self.over:
            self.over = _how_it_ended(error)
        try:
            self._write()
        finally:
            self._claim.give_up()

    def end(self, over: str) -> None:
        """Say how the federation ended for this kit; work of its own may follow."""
        self.over = over
        self._write()

    @contextmanager
    def kept(self, fields: Fields) -> Iterator[None]:
        """While it lasts, the file says how things stand; before, the process is starting: models and data are loaded."""
        self._fields, self._begun = fields, True
        try:
            self._write()
            yield
        finally:
            self._fields = dict

    def _keep(self) -> None:
        while not self._left.wait(SECONDS):
            # A full disk, or a table that changed while it was read: the next second may do.
            with suppress(StoreError, RuntimeError):
                self._write()

    def _write(self) -> None:
        about = self.kit.about
        known = {"role": about.role, "name": about.name, "pid": os.getpid(), "since": self.begin, "time": time.time(),
                 "begun": self._begun}  # fmt: skip
        with self._writing:
            known |= self._fields() | ({"over": self.over} if self.over else {})
            write_atomic(self.path, json.dumps(known, indent=1).encode())


@contextmanager
def starting(kit: Kit) -> Iterator[None]:
    """Hold the kit while heavy libraries are imported, so that `describe` knows of this process.

    What is wrong with its lock is said by whoever works on it afterwards.
    """
    claim = Claim(kit.folder)
    with suppress(StoreError):
        claim.take(PATIENCE)
    try:
        yield
    finally:
        claim.give_up()


def _how_it_ended(error: BaseException | None) -> str:
    if error is None:
        return "finished"
    return f"stopped: {str(error).splitlines()[0]}" if isinstance(error, H2TuneError) else "stopped"


def running(kit: Kit) -> bool:
    """Whether a process works on a kit; the system knows, in whatever container the process runs."""
    try:
        return Claim(kit.folder).taken()
    except StoreError:  # of another user, say: what the file tells, as long as it is fresh
        said = read(kit) or {}
        return not said.get("over") and time.time() - said.get("time", 0.0) < FRESH


def finished(kit: Kit) -> str:
    """What a client whose federation is over says when it is started again; an empty text while it is not over."""
    said, adapter = read(kit) or {}, kit.folder / "state" / "adapter"
    if said.get("over") != "finished" or not (kit.folder / "state" / "run.json").is_file():
        return ""
    where = f"; the adapter is in {adapter}" if adapter.is_dir() else ""
    return (
        f"{kit.about.name}: the federation has finished{where}. To take part in a new one with this kit, move"
        f" {kit.folder / 'state'} away."
    )


def read(kit: Kit) -> dict[str, Any] | None:
    """What status.json says, or None."""
    path = kit.folder / "status.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except ValueError:
        raise KitError(f"{path} is damaged: delete it; it holds nothing that is needed to go on.") from None
    return found if isinstance(found, dict) else None


def describe(kit: Kit) -> dict[str, Any]:
    """Everything that `h2tune status` shows, as plain values.

    Raises:
        KitError: the certificate cannot be read.
    """
    said, works = read(kit) or {}, running(kit)
    # Nothing is written while libraries are imported; while models are loaded the work has not begun.
    at_work = "running" if said.get("begun") or said.get("over") else "starting"
    state = at_work if works else (said.get("over") or "stopped unexpectedly") if said else "never started"
    end = kit.validity()[1]
    about = {
        "kit": str(kit.folder),
        "role": kit.about.role,
        "name": kit.about.name,
        "server": f"{kit.about.host}:{kit.about.port}",
        "certificate_until": f"{end:%Y-%m-%d}",
        "certificate_expired": datetime.now(UTC) > end,
        "state": state,
    }
    return about | {k: v for k, v in said.items() if k not in ("role", "name", "over", "begun")}
