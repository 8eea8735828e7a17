"""One participant of a federation: what it answers to the server, message by message.

Read `Client.handle` from top to bottom: decode, act, encode. Set-up comes first (join, then what the method asks for),
then the method's actions round after round, and the result. Everything that comes in is decoded and checked by
`h2tune.protocol`; everything that goes out is declared (`h2tune.methods.leaving`).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from accelerate import Accelerator

from h2tune.config import ClientConfig, Experiment
from h2tune.errors import ClientError, ProtocolError
from h2tune.frames.anchor_text import coverage
from h2tune.frames.sources import load_anchors
from h2tune.methods.registry import resolve_method
from h2tune.participant.base_models import ModelPool
from h2tune.participant.context import ClientContext, Watch
from h2tune.participant.facts import base_score, facts_of
from h2tune.participant.round_state import LostStateError, RoundState
from h2tune.participant.trainer import NanLossError, Trainer
from h2tune.protocol.codec import Message, Payload, decode, encode
from h2tune.store import ClientStore, RunStore

__all__ = ["Client", "LostStateError", "build_clients"]


class Client:
    """A participant.

    Args:
        config: its own part of the experiment.
        experiment: what all participants agree on.
        models: the base models of this process.
        anchors: the public sentences, the same for everyone.
        store: where its private state lives; None keeps nothing.
        watch: told of every update.
        trainer: carries out local training; by default one update after the other.
    """

    def __init__(
        self,
        config: ClientConfig,
        experiment: Experiment,
        models: ModelPool,
        anchors: Sequence[str] = (),
        store: ClientStore | None = None,
        watch: Watch | None = None,
        accelerator: Accelerator | None = None,
        trainer: Trainer | None = None,
    ) -> None:
        self.kind, settings = resolve_method(experiment.method)
        self.context = ClientContext(
            config,
            experiment,
            models,
            slots=settings.adapter_slots,
            anchors=anchors,
            store=store,
            watch=watch,
            accelerator=accelerator,
            trainer=trainer,
        )
        self.config, self.name, self.store = config, config.name, store
        self.method = self.kind.client(self.context, settings)
        self.method.check()
        self.rounds = RoundState(self.name, store, self.method.state, self.method.load_state)
        self.process, self.run = secrets.token_hex(8), ""
        self.joined = self.ready = False
        self.seconds = 0.0  # spent on the round so far

    @property
    def leaked(self) -> int:
        """Test rows that also occur in the training data."""
        return self.context.data.leaked

    def introduction(self) -> dict[str, Any]:
        """What its method may tell of it before anything is trained."""
        return self.method.introduction()

    def handle(self, data: bytes) -> bytes:
        """Answer one message of the server."""
        message = decode(data, run=self.run or None)
        self.run = self.context.run = message.run
        kind = message.kind
        try:
            payload = self._answer(message)
        except ClientError as error:
            kind, payload = "failure", Payload(meta={"reason": str(error)})
        examples = len(self.context.data.train)
        return encode(message.reply(kind, payload, self.name, self.process, examples))

    def _answer(self, message: Message) -> Payload:
        kind, method = message.kind, self.method
        if kind == "join":
            return self._join(message)
        if kind == "resume":
            return self._resume(message)
        if kind in method.setup_actions and self.joined:
            return self._set_up(message)
        if kind in method.actions and self.ready:
            return self._act(message)
        if kind == "finish" and self.ready:
            return self._finish(message)
        known = kind in (*method.setup_actions, *method.actions, "finish")
        raise ProtocolError(
            f"{self.name}: {kind!r} comes before this client is set up"
            if known
            else f"{self.name}: there is no action {kind!r}"
        )

    def _join(self, message: Message) -> Payload:
        self.kind.check_peer(message.payload.meta.get("method"))
        base = base_score(self.context)
        payload = self.method.join()
        self.joined = True
        rows = self.context.data.train.examples
        covered, missing = coverage(self.context.anchors, [row.prompt + row.answer for row in rows])
        if self.store:
            # The words themselves are private text; only the share is told.
            self.store.write_json("anchors.json", {"covered": covered, "missing": missing})
        payload.meta |= {"base": base.plain(), "facts": facts_of(self.context, covered)}
        return payload

    def _set_up(self, message: Message) -> Payload:
        with self.context.generator(message.kind):
            payload: Payload = getattr(self.method, message.kind)(message.payload)
        if message.kind == self.method.setup_actions[-1]:
            self.ready = True
            self.rounds.end(max(0, message.round - 1))
        return payload

    def _resume(self, message: Message) -> Payload:
        """Rebuild what a committed round left: the same objects, then the saved tensors."""
        self.method.join(fresh=False)
        self.method.welcome(message.payload, fresh=False)
        self.rounds.go_back(message.round)
        self.joined = self.ready = True
        return Payload()

    def _act(self, message: Message) -> Payload:
        """One exchange of a round; the last one also scores and saves."""
        start, context = time.perf_counter(), self.context
        if self.rounds.begin(message.round, message.attempt):
            context.round, self.seconds = message.round, 0.0
            context.take_losses()
        try:
            with context.generator(message.round, message.kind):
                payload: Payload = getattr(self.method, message.kind)(message.round, message.payload)
            if message.kind == self.method.ends:
                payload.meta["report"] = self._report(message) | {"loss": context.take_losses()}
        except NanLossError:
            self.rounds.undo()
            raise
        self.seconds += time.perf_counter() - start
        if message.kind == self.method.ends:
            payload.meta["report"]["seconds"] = self.seconds
            self.rounds.end(message.round)
        return payload

    def _report(self, message: Message) -> dict[str, Any]:
        """Scores after a round, where the server asks for them."""
        context = self.context
        scores: dict[str, Any] = {"validation": None, "test": None}
        if message.payload.meta.get("evaluate"):
            scores["validation"] = context.score(context.data.validation).plain()
            if context.experiment.evaluation.curves:
                scores["test"] = context.score(context.data.test).plain()
        return scores

    def _finish(self, message: Message) -> Payload:
        """Take the last shared state, unless by validation the client's own last one is better."""
        context = self.context
        own, kept = context.validation_loss(), self.method.state()
        self.method.receive(message.payload)
        if own < context.validation_loss():
            self.method.load_state(kept)
        validation, final = context.score(context.data.validation), context.score(context.data.test)
        if self.store:
            if context.has_adapter:
                self.store.save_adapter(context.base.activate(context.adapter), context.adapter)
            # P is private: it is kept for the client's own report and not sent.
            self.store.write_json("report.json", self.method.report())
        result = final.plain() | {"validation": validation.metric, "validation_nats": validation.nats}
        return Payload(meta={"final": result})


def build_clients(
    experiment: Experiment,
    store: RunStore,
    models: ModelPool,
    accelerator: Accelerator | None = None,
    watch: Watch | None = None,
    names: Sequence[str] | None = None,
) -> dict[str, Client]:
    """The clients of a run in this process; ``names`` picks some of them."""
    anchors = load_anchors(experiment.anchors, experiment.anchor_words)
    return {
        c.name: Client(c, experiment, models, anchors, store.client(c.name), watch, accelerator)
        for c in experiment.clients
        if names is None or c.name in names
    }
