"""Envelopes: what travels between a server and its clients around the messages of `h2tune.protocol`.

An envelope is a small JSON header and a body. Clients write ``hello`` (I am here, this is what I do) and ``answer``; the
server writes ``request`` and ``stop``. Four bytes say how long the header is.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from typing import Any

from h2tune.errors import ProtocolError

HEAD_LIMIT = 1 << 14
PROCESS = 40  # characters
# What each kind's header must hold.
KINDS: dict[str, dict[str, type]] = {
    "hello": {"federation": str, "process": str, "version": str, "busy": bool, "doing": dict},
    "answer": {"number": str},
    "request": {"number": str},
    "stop": {"reason": str, "finished": bool, "process": str},  # of one process, or with "" of all
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


def unpack(data: bytes) -> Envelope:
    """The envelope in ``data``; raises ProtocolError if it is none."""
    try:
        (size,) = struct.unpack(">I", data[:4])
        if size > min(HEAD_LIMIT, len(data) - 4):
            raise ValueError("its header is longer than it may be")
        head = json.loads(data[4 : 4 + size])
        kind = head.pop("kind")
        wanted = KINDS[kind]
        if {k: type(v) for k, v in head.items()} != wanted:
            raise ValueError(f"the header of {kind!r} does not hold {', '.join(wanted)}")
        if kind == "hello" and len(head["process"]) > PROCESS:
            raise ValueError("its process is longer than it may be")
    except Exception as error:
        raise ProtocolError(f"This is no envelope: {error}") from None
    return Envelope(kind, head, bytes(data[4 + size :]))


PROGRESS = {"round": int, "phase": str, "step": int, "steps": int}


def progress(doing: dict[str, Any]) -> dict[str, Any]:
    """What a client says it is doing, if it says so as clients do; people and commands read it."""
    fits = {k: type(v) for k, v in doing.items()} == PROGRESS and len(doing["phase"]) <= 40
    return doing if fits else {}
