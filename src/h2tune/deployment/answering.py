"""What every client's process does with a message of the server: refuse what is not of its run, and say why it failed."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from h2tune.errors import ProtocolError
from h2tune.protocol.codec import Message, Payload, decode, encode
from h2tune.store import ClientStore
from h2tune.tasks.fingerprint import keep_fingerprint

# What a message leads to that says other things than it may.
NONSENSE = (LookupError, AttributeError, TypeError, ValueError)


class Answering(ABC):
    """Answers messages, and has private state that belongs to one run.

    Attributes:
        name: of the client. word: what the federation calls one, ``client`` or ``party``.
        limit: most bytes of a message. store: the private state. process: a random name, new for every process.
        refused: errors whose text the server is told; for `lost` ones it gives the client its place anew.
        doing: what it is doing, in plain values that the coordinator may see.
        interrupt: called from time to time during long work; it raises if nothing more is to be done.
    """

    word = "client"
    refused: tuple[type[Exception], ...] = (ProtocolError,)
    lost: tuple[type[Exception], ...] = ()
    name: str
    limit: int
    store: ClientStore
    process: str
    doing: dict[str, Any]
    interrupt: Callable[[], None]

    @abstractmethod
    def handle(self, message: Message, data: bytes) -> bytes:
        """The answer to a message of this run; ``message`` is what stands in ``data``."""

    @abstractmethod
    def fingerprint(self) -> dict[str, str]:
        """Of the data that the state was begun with."""

    def answer(self, data: bytes) -> bytes:
        """The answer to one message of the server; a refused message is answered with the reason."""
        message = Message("unknown", "", -1, "", "")
        try:
            message = decode(data, limit=self.limit)
            self._check_run(message)
            return self.handle(message, data)
        except (*self.refused, *self.lost) as error:  # a full disk or a bug ends the process instead
            reason = Payload(meta={"reason": str(error), "rejoin": isinstance(error, self.lost)})
        except NONSENSE as error:
            logging.getLogger(__name__).exception("a message of the server could not be answered")
            # Only what kind of error: its text may hold a path or a row of this machine.
            text = f"a message of kind {message.kind[:20]!r} could not be answered ({type(error).__name__})"
            reason = Payload(meta={"reason": text})
        finally:
            self.doing = {}
        return encode(message.reply("failure", reason, self.name, self.process))

    def _check_run(self, message: Message) -> None:
        """Private state belongs to one run; the first join decides which."""
        known = self.store.read_json("run.json")
        if known is None and message.kind == "join":
            keep_fingerprint(self.store.folder, self.fingerprint())
            self.store.write_json("run.json", {"run": message.run})
        elif known is not None and known["run"] != message.run:
            raise ProtocolError(
                f"this {self.word}'s state belongs to run {known['run'][:8]}, the server is at run {message.run[:8]};"
                f" to begin anew, move the kit's folder `state` away and start the {self.word} again"
            )
