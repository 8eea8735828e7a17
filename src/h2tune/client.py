"""Federated learning from a client's side: a message comes in, the client acts, an answer goes out.

Read `Client.handle` first. A client joins, is set up, does the method's actions round after round, and is scored at the
end. What it trains and sends is the method's (`h2tune.methods`). Everything that comes in is checked by
`h2tune.protocol`; everything that goes out is declared (`h2tune.methods.leaving`).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from accelerate import Accelerator

from h2tune.agreed import agreed, check_agreed
from h2tune.config import ClientConfig, Experiment
from h2tune.errors import ClientError, MethodError, ProtocolError
from h2tune.figures import base_score, facts_of, final_scores, round_scores
from h2tune.methods.registry import resolve_method
from h2tune.participant.base_models import ModelPool
from h2tune.participant.context import ClientContext, Watch
from h2tune.participant.label_bias import LABEL_BIAS
from h2tune.participant.prepare import remarks
from h2tune.participant.round_state import LostStateError, RoundState
from h2tune.participant.trainer import NanLossError, Trainer
from h2tune.protocol.codec import Message, Payload, decode, encode
from h2tune.store import ClientStore
from h2tune.tasks.read_by import READ_BY, read_by

__all__ = ["Client", "LostStateError"]


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
            settings=settings,
            anchors=anchors,
            store=store,
            watch=watch,
            accelerator=accelerator,
            trainer=trainer,
        )
        self.config, self.name, self.store = config, config.name, store
        self.method = self.kind.client(self.context, settings)
        self.method.check()
        if config.row_privacy and not self.kind.client.protects_rows:
            raise MethodError(
                f"{self.name}: row_privacy: {self.kind.name} uses rows in other ways than local training"
            )
        self.rounds = RoundState(self.name, store, self.method.state, self.method.load_state)
        self.process, self.run = secrets.token_hex(8), ""
        self.joined = self.ready = False  # introduced; set up
        self.seconds = 0.0  # spent on the round so far

    @property
    def remarks(self) -> list[str]:
        """What deserves attention in its test rows."""
        data = self.context.data
        return remarks(self.context.task, data.train.examples, data.test.examples, data.leaked)

    def introduction(self) -> dict[str, Any]:
        """What its method may tell of it before anything is trained."""
        return self.method.introduction()

    def handle(self, data: bytes) -> bytes:
        """Answer one message of the server: decode, act, encode.

        Raises:
            ProtocolError: the message is damaged, of another run, or out of place.
            MethodError: client and server do not fit together.
            LostStateError: the state that a committed round left is not here.
        """
        message = decode(data, run=self.run or None, limit=self.context.experiment.network.largest)
        self.run = self.context.run = message.run
        kind = message.kind
        try:
            payload = self._act(message)
        except ClientError as error:
            kind, payload = "failure", Payload(meta={"reason": str(error)})
        examples = len(self.context.data.train)
        return encode(message.reply(kind, payload, self.name, self.process, examples))

    def _act(self, message: Message) -> Payload:
        """Do what a message asks for, if this client has come so far."""
        kind, method = message.kind, self.method
        if kind == "join":
            return self._join(message)
        if kind == "rejoin":
            return self._rejoin(message)
        if kind in method.setup_actions and self.joined:
            return self._set_up(message)
        if kind in method.actions and self.ready:
            return self._take_part(message)
        if kind == "finish" and self.ready:
            return self._finish(message)
        if kind in (*method.setup_actions, *method.actions, "finish"):
            raise ProtocolError(f"{self.name}: {kind!r} comes before this client is set up")
        raise ProtocolError(f"{self.name}: there is no action {kind!r}")

    def _join(self, message: Message) -> Payload:
        """Score the untouched model, attach what is trained, and introduce oneself."""
        context, said = self.context, message.payload.meta
        self.kind.check_peer(said.get("method"), self.method.settings)
        check_agreed(agreed(context.experiment, self.method.settings), said.get("agreed"))
        context.keep_share()
        base = base_score(context)
        payload = self.method.join()
        payload.meta |= {"base": base.plain(), "facts": facts_of(context, self.store)}
        self.joined = True
        return payload

    def _set_up(self, message: Message) -> Payload:
        """Answer what the method asks for before the first round; after the last of it the client is ready."""
        with self.context.generator(message.kind):
            payload: Payload = getattr(self.method, message.kind)(message.payload)
        if message.kind == self.method.setup_actions[-1]:
            self.ready = True
            self.rounds.end(max(0, message.round - 1))
        return payload

    def _rejoin(self, message: Message) -> Payload:
        """Rebuild what a committed round left: the same objects, then the saved tensors."""
        self.method.join(fresh=False)
        self.method.welcome(message.payload, fresh=False)
        self.rounds.go_back(message.round)
        self.joined = self.ready = True
        return Payload()

    def _take_part(self, message: Message) -> Payload:
        """One exchange of a round, mostly the only one: train and answer. The last one also scores and saves."""
        start, context, ends = time.perf_counter(), self.context, message.kind == self.method.ends
        if self.rounds.begin(message.round, message.attempt):
            context.round, self.seconds = message.round, 0.0
            context.take_losses()
        try:
            with context.generator(message.round, message.kind):
                payload: Payload = getattr(self.method, message.kind)(message.round, message.payload)
            scores = round_scores(context) if ends and message.payload.meta.get("evaluate") else {}
        except NanLossError:
            self.rounds.undo()
            raise
        self.seconds += time.perf_counter() - start
        if ends:
            payload.meta["report"] = {"loss": context.take_losses(), "seconds": self.seconds} | scores
            self.rounds.end(message.round)
        return payload

    def _finish(self, message: Message) -> Payload:
        """Take the last shared state, unless the client's own validates better; keep the adapter, tell the scores."""
        context, method = self.context, self.method
        own, kept = context.validation_loss(), method.state()
        method.receive(message.payload)
        if own < context.validation_loss():
            method.load_state(kept)
        final = final_scores(context)
        if self.store:
            if context.has_adapter:
                self.store.save_adapter(context.base.activate(context.adapter), context.adapter)
                how = [asdict(one) for one in read_by(context.data.train.examples)]
                self.store.write_json(f"adapter/{READ_BY}", how)
                if bias := context.passes.bias:
                    self.store.write_json(f"adapter/{LABEL_BIAS}", asdict(bias))
            # P is private: it is kept for the client's own report and not sent.
            self.store.write_json("report.json", method.report())
        return Payload(meta={"final": final})
