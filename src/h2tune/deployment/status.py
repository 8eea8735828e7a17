"""Health and progress of a running kit: a small file that its process writes, and what a person reads from it."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from h2tune.deployment.kits import Kit, KitError
from h2tune.utils.files import write_atomic

SECONDS = 1.0  # between two writings
FRESH = 10.0  # seconds; a process writes more often than that


class StatusFile:
    """KIT/status.json, written by the kit's own process; at most one process works on a kit."""

    def __init__(self, kit: Kit) -> None:
        self.path, self.kit = kit.folder / "status.json", kit
        self.begin = time.time()
        if (other := running(kit)) is not None:
            raise KitError(f"{kit.folder} is in use by process {other}: one process at a time works on a kit.")

    def write(self, **fields: Any) -> None:
        about = self.kit.about
        known = {"role": about.role, "name": about.name, "pid": os.getpid(), "since": self.begin, "time": time.time()}
        write_atomic(self.path, json.dumps(known | fields, indent=1).encode())

    @contextmanager
    def kept(self, fields: Callable[[], dict[str, Any]]) -> Iterator[None]:
        """While it lasts, the file says every second how things stand."""
        over = threading.Event()

        def keep() -> None:
            while True:
                self.write(**fields())
                if over.wait(SECONDS):
                    return

        thread = threading.Thread(target=keep, daemon=True, name="h2tune-status")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def running(kit: Kit) -> int | None:
    """The process that works on a kit, or None."""
    said = read(kit)
    if said is None or said.get("over") or said["pid"] == os.getpid():
        return None
    try:
        os.kill(said["pid"], 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    # The number may have been given to another process since.
    return said["pid"] if time.time() - said["time"] < FRESH else None


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
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def describe(kit: Kit) -> dict[str, Any]:
    """Everything that `h2tune status` shows, as plain values."""
    said = read(kit) or {}
    state = "never started" if not said else "running" if running(kit) else said.get("over") or "stopped unexpectedly"
    end = kit.check_certificate()
    return {"kit": str(kit.folder), "role": kit.about.role, "name": kit.about.name, "server":
            f"{kit.about.host}:{kit.about.port}", "certificate_until": f"{end:%Y-%m-%d}", "state": state} | {
        k: v for k, v in said.items() if k not in ("role", "name", "over")
    }  # fmt: skip
