"""Who may take part now: two lists beside the server's engine, written by `h2tune provision` and read again when they change.

``disabled_clients.json`` names participants that are revoked. ``certificates.json`` holds the serial numbers of the
certificates that each participant may use: a renewed one takes the place of all before it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from h2tune.errors import H2TuneError
from h2tune.utils.files import write_atomic

REVOKED, CERTIFICATES = "disabled_clients.json", "certificates.json"
PUT_OUT = "the coordinator has revoked this participant"
DAMAGED = "{} is damaged: it must hold {}. Put it back from a backup"
REPLACED = "its certificate was replaced by a newer one: use the newest kit"


class AccessError(H2TuneError, ValueError):
    """A list is there and cannot be read."""


class AccessList:
    """The two lists of a server's kit; a list that is not there refuses nobody.

    Args:
        folder: the engine's folder in the server's kit.

    Attributes:
        revoked: names of participants that are refused.
        certificates: serial numbers that a participant's certificate may have; who is not named may have any.
        fault: why the newest lists are not in force, or an empty text.

    Raises:
        AccessError: a list cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.revoked: frozenset[str] = frozenset()
        self.certificates: dict[str, tuple[int, ...]] = {}
        self._seen, self.fault = tuple[int, ...](), ""
        self.look()
        if self.fault:
            raise AccessError(f"{self.fault}: copy it from the coordinator's folder `authority` again")

    def look(self) -> bool:
        """Read the lists again if a file has changed; returns whether it has. A file that cannot be read, or is gone, changes
        nothing: a list that is to name nobody is there and empty.
        """
        seen = self._stamps()
        if seen == self._seen:
            self.fault = ""
            return False
        try:
            if any(before and not now for before, now in zip(self._seen, seen, strict=False)):
                raise AccessError("a list is gone")
            revoked, certificates = read_revoked(self.folder), read_certificates(self.folder)
            if self._stamps() != seen:
                raise AccessError("a list changed while it was read")
        except (OSError, AccessError):
            # looked at again next time: somebody may be copying it
            self.fault = f"{self.folder / REVOKED} or {CERTIFICATES} beside it cannot be read"
            return False
        self._seen, self.revoked, self.certificates, self.fault = seen, frozenset(revoked), certificates, ""
        return True

    def _stamps(self) -> tuple[int, ...]:
        return tuple(_stamp(self.folder / name) for name in (REVOKED, CERTIFICATES))

    def objection(self, name: str, serial: int | None = None) -> str:
        """Why a participant is refused, or an empty text; with ``serial`` also by its certificate."""
        if name in self.revoked:
            return PUT_OUT
        known = self.certificates.get(name)
        return REPLACED if serial is not None and known is not None and serial not in known else ""


def _stamp(path: Path) -> int:
    """When a file was written last; 0 for one that is not there, or that is being replaced at this moment."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def read_revoked(folder: Path) -> list[str]:
    """Names on the list in this folder.

    Raises:
        AccessError: the file is damaged.
    """
    path = folder / REVOKED
    if not path.is_file():
        return []
    names = _read(path).get("disabled_clients")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise AccessError(DAMAGED.format(path, "`disabled_clients`, a list of names"))
    return names


def write_revoked(folder: Path, names: Iterable[str]) -> None:
    """In the form that NVFlare reads when it starts."""
    write_atomic(folder / REVOKED, json.dumps({"disabled_clients": sorted(set(names))}, indent=1).encode())


def read_certificates(folder: Path) -> dict[str, tuple[int, ...]]:
    """Serial numbers by participant, of the list in this folder.

    Raises:
        AccessError: the file is damaged.
    """
    path = folder / CERTIFICATES
    found = _read(path) if path.is_file() else {}
    try:
        if not all(isinstance(serials, list) for serials in found.values()):
            raise TypeError
        return {str(name): tuple(int(serial, 16) for serial in serials) for name, serials in found.items()}
    except (TypeError, ValueError):
        raise AccessError(DAMAGED.format(path, "a list of serial numbers for each participant")) from None


def write_certificates(folder: Path, certificates: dict[str, tuple[int, ...]]) -> None:
    """Hexadecimal, as people see them in a certificate."""
    plain = {name: [f"{serial:x}" for serial in serials] for name, serials in sorted(certificates.items())}
    write_atomic(folder / CERTIFICATES, json.dumps(plain, indent=1).encode())


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise AccessError(DAMAGED.format(path, "a JSON object"))
    return found
