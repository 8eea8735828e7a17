"""Envelopes: what travels between a server and its clients around the messages of `h2tune.protocol`.

An envelope is a small JSON header and a body. Clients write ``hello`` (I am here, this is what I do) and ``answer``; the
server writes ``request``, ``stop`` (nothing more will come: end) and ``pause`` (the server ends and may be started again:
wait). Four bytes say how long the header is. Who does not know a kind leaves the envelope alone.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from typing import Any

from h2tune.errors import ProtocolError
from h2tune.version import __version__

PROTOCOL = 2  # raised whenever envelopes of two versions could not be read by one another
HEAD_LIMIT = 1 << 14
PROCESS = 40  # characters
# What each kind's header must hold.
KINDS: dict[str, dict[str, type]] = {
    "hello": {"federation": str, "process": str, "version": str, "protocol": int, "busy": bool, "doing": dict},
    "answer": {"number": str},
    "request": {"number": str, "process": str},  # for one process
    "stop": {"reason": str, "finished": bool, "process": str},  # of one process
    "pause": {"reason": str, "process": str},  # for one process; versions before it was there ignore it
}


@dataclass(frozen=True)
class Envelope:
    """One envelope; ``fields`` are those of `KINDS`."""

    kind: str
    fields: dict[str, Any] = field(default_factory=dict)
    body: bytes = b""

    def pack(self) -> bytes:
        head = json.dumps({"kind": self.kind} | self.fields).encode()
        return struct.pack(">I", len(head)) + head + self.body


class OtherVersion(ProtocolError):
    """A client's hello of another protocol.

    Attributes:
        process: of the client, as it says.
    """

    def __init__(self, version: str, process: str) -> None:
        super().__init__(f"it runs h2tune {version}, the server {__version__}: install the same version on both sides")
        self.process = process


def unpack(data: bytes) -> Envelope:
    """The envelope in ``data``.

    Raises:
        OtherVersion: it is a hello of another version's form.
        ProtocolError: it is no envelope.
    """
    try:
        (size,) = struct.unpack(">I", data[:4])
        if size > min(HEAD_LIMIT, len(data) - 4):
            raise ValueError("its header is longer than it may be")
        head = json.loads(data[4 : 4 + size])
        kind = head.pop("kind")
        wanted = KINDS[kind]
        if kind == "hello" and head.get("protocol") != PROTOCOL:
            version, process = head["version"], head["process"]
            if type(version) is str and type(process) is str and version[:1].isdigit():
                raise OtherVersion(version[:PROCESS], process[:PROCESS])
        if {k: type(v) for k, v in head.items()} != wanted:
            raise ValueError(f"the header of {kind!r} does not hold {', '.join(wanted)}")
        if kind == "hello" and len(head["process"]) > PROCESS:
            raise ValueError("its process is longer than it may be")
    except OtherVersion:
        raise
    except Exception as error:
        raise ProtocolError(f"This is no envelope: {error}") from None
    return Envelope(kind, head, bytes(data[4 + size :]))


def writer(data: bytes) -> str:
    """The process that wrote a hello, or an empty text."""
    try:
        return str(unpack(data).fields.get("process", ""))
    except OtherVersion as error:
        return error.process
    except ProtocolError:
        return ""


PROGRESS = {"round": int, "phase": str, "step": int, "steps": int}


def progress(doing: dict[str, Any]) -> dict[str, Any]:
    """What a client says it is doing, if it says so as clients do; people and commands read it."""
    fits = (
        {k: type(v) for k, v in doing.items()} == PROGRESS
        and len(doing["phase"]) <= 40
        and doing["phase"].isprintable()
    )
    return doing if fits else {}
