"""A client's process: its own model and data, its private state on its own disk, and answers to the server."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

from h2tune.client import Client, LostStateError
from h2tune.config import ConfigError
from h2tune.deployment.alone import FINAL, asked_for, train_alone
from h2tune.deployment.answering import Answering
from h2tune.deployment.kept_answer import KeptAnswer
from h2tune.deployment.kits import THEIRS, Kit
from h2tune.deployment.process import Engine, Say, take_part
from h2tune.deployment.status import StatusFile, finished
from h2tune.errors import MethodError, ProtocolError
from h2tune.frames.sources import load_anchors
from h2tune.participant.base_models import ModelPool
from h2tune.participant.context import make_accelerator
from h2tune.participant.row_privacy import promise_in_words
from h2tune.participant.trainer import nothing
from h2tune.protocol.codec import Message, decode
from h2tune.store import ClientStore
from h2tune.tasks.fingerprint import check_fingerprint, data_fingerprint, keep_fingerprint
from h2tune.transport.nvflare.flare import Flare
from h2tune.version import __version__


class Participant(Answering):
    """Answers the server's messages with a `Client` that is built anew whenever the server gives it its place.

    Args:
        kit: the client's kit.
        own: the values that are the client's own.
        watch: told of every update: client, round, phase, step, steps, loss.

    Attributes:
        interrupt: called after every update; it raises if nothing more is to be done.
        promise: what row privacy will spend, in words; empty without it.
    """

    refused, lost = (ProtocolError, MethodError), (LostStateError,)

    def __init__(self, kit: Kit, own: dict[str, Any], watch: Callable[..., None] | None = None) -> None:
        self.experiment = kit.experiment(own)
        self.config = self.experiment.clients[0]
        if missing := [key for key in ("model", "train", "test") if getattr(self.config, key) == THEIRS]:
            raise ConfigError([f"--{key} is missing: it is not part of the kit" for key in missing])
        self.name, self.limit = self.config.name, self.experiment.network.largest
        self.watch, self.doing = watch, {}
        self.process = secrets.token_hex(8)
        self.store = ClientStore(kit.folder / "state")
        self.models = ModelPool.of(self.experiment, kit.folder / "state" / "frames")
        self.anchors = load_anchors(self.experiment.anchors, self.experiment.anchor_words)
        meant = f"delete {self.store.folder / 'data.json'} to go on with the new ones"
        data = self.fingerprint()
        check_fingerprint(self.store.folder, data, cure=meant)
        if (
            self.store.read_json("run.json") is not None
        ):  # where data.json was deleted, the new data are meant from now on
            keep_fingerprint(self.store.folder, data)
        self.kept = KeptAnswer(self.store, f"{__version__} {self.experiment.to_yaml()} {sorted(data.items())}")
        self.interrupt: Callable[[], None] = nothing
        self.client: Client | None = self._build()  # every mistake in model and data shows before we connect
        self.promise = self._row_promise(self.client)

    def _build(self) -> Client:
        self.models.release()
        accelerator = make_accelerator(self.experiment, self.models.device)
        return Client(self.config, self.experiment, self.models, self.anchors, self.store, self._step, accelerator)

    def _row_promise(self, client: Client) -> str:
        """What the client's row privacy will spend, in words; an empty text without it."""
        asked, experiment, context = self.config.row_privacy, self.experiment, client.context
        plan = (len(context.data.train), experiment.rounds, context.task.kind == "classify")
        return promise_in_words(asked, experiment.training, *plan) if asked else ""

    def _step(self, client: str, round: int, phase: str, step: int, steps: int, loss: float) -> None:
        # The loss is private; how far we are is not.
        self.doing = {"round": round, "phase": phase, "step": step, "steps": steps}
        self.interrupt()
        if self.watch:
            self.watch(client, round, phase, step, steps, loss)

    def handle(self, message: Message, data: bytes) -> bytes:
        if message.kind in ("join", "rejoin") and (self.client is None or self.client.run):
            self.client = self._build()
        assert self.client is not None
        if (kept := self.kept.find(message, self.client)) is not None:
            return kept
        answer = self.client.handle(data)
        self.kept.keep(message, self.client, answer)
        if message.kind == "finish":
            self.store.write_json(FINAL, decode(answer, limit=len(answer)).payload.meta.get("final"))
        return answer

    def fingerprint(self) -> dict[str, str]:
        return data_fingerprint(self.experiment)


def attend(
    kit: Kit,
    own: dict[str, Any],
    say: Say = lambda text: None,
    watch: Callable[..., None] | None = None,
    engine: Engine = Flare,
) -> str:
    """Take part in the kit's federation until it is over; returns the server's last words.

    Raises:
        KitError, StoreError, ConfigError, ChannelError, DismissedError
    """
    given, words = kit.own() | own, finished(kit)
    if words and not asked_for(kit, given):
        return words
    if not words:
        kit.check_certificate()
    with StatusFile(kit, over="finished" if words else "") as status:
        if words:  # it was stopped before it had trained alone
            return f"{words}\n{train_alone(kit, given)}"
        participant = Participant(kit, given, watch)
        kit.keep_own(given)
        if participant.promise:
            say(participant.promise)
        words = take_part(kit, status, participant, engine, say, participant.experiment.network)
        if not asked_for(kit, given):
            return words
        say(f"{words}; {kit.about.name} now trains alone, to compare")
        return train_alone(kit, given)
