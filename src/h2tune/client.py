"""One participant of a federation: what it answers to the server, message by message.

Read `Client.handle` from top to bottom: decode, act, encode. Set-up comes first (join, then what the method asks for),
then the method's actions round after round, and the result. Everything that comes in is decoded and checked by
`h2tune.protocol`; everything that goes out is what the engine (`LEAVES`) and the method declare.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from h2tune.config import ClientConfig, Experiment
from h2tune.errors import ClientError, H2TuneError, ProtocolError
from h2tune.frames.anchor_text import coverage
from h2tune.frames.sources import load_anchors
from h2tune.methods.base import Sent
from h2tune.methods.registry import resolve_method
from h2tune.participant.base_models import ModelPool
from h2tune.participant.context import ClientContext, Watch, make_accelerator
from h2tune.participant.scoring import unigram_nats
from h2tune.participant.trainer import NanLossError, Trainer
from h2tune.protocol.codec import Message, Payload, decode, encode
from h2tune.store import ClientStore, RunStore

__all__ = ["LEAVES", "Client", "LostStateError", "build_clients", "make_accelerator"]

LEAVES = [
    Sent(
        "join",
        ("facts", "base", "depth", "slots", "rank", "keep", "family", "fingerprint", "maps"),
        "numbers of rows, the task's name and kind, sizes and family of the model and a digest of its weights, scores of the"
        " untouched model on test rows",
        "once",
    ),
    Sent("*", ("report",), "mean losses and seconds of the round, scores on validation (and with `curves` test) rows"),
    Sent("finish", ("final",), "scores on validation and test rows", "at the end"),
    Sent("failure", ("reason", "rejoin"), "why a request could not be answered", "when it happens"),
]
"""What the engine itself lets leave a client; a method declares the rest (`ClientMethod.leaves`)."""


class LostStateError(H2TuneError, RuntimeError):
    """The private state of a committed round is not on this disk."""


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
        self.process, self.run = secrets.token_hex(8), ""
        self.joined = self.ready = False
        self.done = 0  # the last round that it has ended
        self.begun: tuple[int, int] | None = None  # the round, and its attempt, that it has begun
        self.good: dict[str, Tensor] = {}  # the state with which it began
        self.seconds = 0.0

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
        engine = {"join": self._join, "resume": self._resume, "finish": self._finish}
        if message.kind in engine:
            return engine[message.kind](message)
        if message.kind in self.method.setup_actions and self.joined:
            return self._set_up(message)
        if message.kind in self.method.actions and self.ready:
            return self._act(message)
        known = message.kind in (*self.method.setup_actions, *self.method.actions)
        why = (
            f"{message.kind!r} comes before this client is set up" if known else f"there is no action {message.kind!r}"
        )
        raise ProtocolError(f"{self.name}: {why}")

    # ---- set-up

    def _join(self, message: Message) -> Payload:
        self._check_method(message.payload.meta.get("method"))
        context, data = self.context, self.context.data
        # Baselines of the same run ask again; the untouched model has not changed.
        key = ("base", context.task, hash(tuple(example.prompt for example in data.test.examples)))
        if key not in context.base.cache:
            context.base.cache[key] = context.score(data.test, untouched=True)
        payload = self.method.join()
        self.joined = True
        covered, missing = coverage(context.anchors, [e.prompt + e.answer for e in data.train.examples])
        if self.store:
            # The words themselves are private text; only the share is told.
            self.store.write_json("anchors.json", {"covered": covered, "missing": missing})
        payload.meta |= {
            "base": context.base.cache[key].plain(),
            "facts": self._facts() | {"anchor_coverage": covered},
        }
        return payload

    def _check_method(self, wanted: Any) -> None:
        own = self.kind.actions()
        if wanted != own:
            raise ProtocolError(
                f"the server runs {_in_words(wanted)}, this client has {_in_words(own)}; install the same version on both"
                " sides"
            )

    def _facts(self) -> dict[str, Any]:
        context, data = self.context, self.context.data
        golds = [example.gold for example in data.test.examples]
        model = self.config.model
        return {
            # A path says something about this machine; a public name says nothing.
            "model": f"local {context.base.family}" if Path(model).exists() else model,
            "family": context.base.family,
            "task": context.task.name,
            "kind": context.task.kind,
            "metric": context.task.metric,
            "n_train": len(data.train),
            "n_validation": len(data.validation),
            "n_test": len(data.test),
            "keep": context.keep,
            "unigram_nats": unigram_nats(data.train.encoded, data.test.encoded, len(context.tokenizer)),
            "majority": max(map(golds.count, set(golds))) / len(golds),
            "leaked": data.leaked,
        }

    def _set_up(self, message: Message) -> Payload:
        with self.context.generator(message.kind):
            payload: Payload = getattr(self.method, message.kind)(message.payload)
        if message.kind == self.method.setup_actions[-1]:
            self.ready, self.begun = True, None
            self.done = max(0, message.round - 1)
            self._save()
        return payload

    def _resume(self, message: Message) -> Payload:
        """Rebuild what a committed round left: the same objects, then the saved tensors."""
        self.method.join(fresh=False)
        self.method.welcome(message.payload, fresh=False)
        self._stand_at(message.round)
        self.joined = self.ready = True
        return Payload()

    # ---- rounds

    def _act(self, message: Message) -> Payload:
        start, self.context.round = time.perf_counter(), message.round
        self._begin(message.round, message.attempt)
        try:
            with self.context.generator(message.round, message.kind):
                payload: Payload = getattr(self.method, message.kind)(message.round, message.payload)
            self.seconds += time.perf_counter() - start
            if message.kind == self.method.ends:
                payload.meta["report"] = self._end(message)
        except NanLossError:
            self.method.load_state(self.good)
            raise
        return payload

    def _begin(self, round: int, attempt: int) -> None:
        """A round starts from the state after the last one, also if it was begun before and came to nothing."""
        if self.begun == (round, attempt):
            return
        if self.done >= round or (self.begun is not None and self.begun[0] > self.done):
            self._stand_at(round - 1)
        self.begun, self.good, self.seconds = (round, attempt), self.method.state(), 0.0
        self.context.take_losses()

    def _end(self, message: Message) -> dict[str, Any]:
        """Score and save; what the server is told of the round."""
        start, data = time.perf_counter(), self.context.data
        validation = test = None
        if message.payload.meta.get("evaluate"):
            validation = self.context.score(data.validation).plain()
            if self.context.experiment.evaluation.curves:
                test = self.context.score(data.test).plain()
        self.done = message.round
        self._save()
        seconds = self.seconds + time.perf_counter() - start
        return {"loss": self.context.take_losses(), "seconds": seconds, "validation": validation, "test": test}

    def _save(self) -> None:
        if self.store:
            self.store.save_state(self.done, self.method.state())

    def _stand_at(self, round: int) -> None:
        """Take the private state as it was after a round."""
        state = self.store.load_state(round) if self.store else None
        if state is None and self.begun is not None and self.begun[0] == round + 1:
            state = self.good
        if state is None:
            raise LostStateError(f"{self.name} has no saved state for round {round}")
        self.method.load_state(state)
        self.done, self.begun = round, None

    # ---- the result

    def _finish(self, message: Message) -> Payload:
        """Take the last shared state, unless by validation the client's own last one is better."""
        if not self.ready:
            raise ProtocolError(f"{self.name}: 'finish' comes before this client is set up")
        context = self.context
        own, kept = context.validation_loss(), self.method.state()
        self.method.receive(message.payload)
        if own < context.validation_loss():
            self.method.load_state(kept)
        validation, final = context.score(context.data.validation), context.score(context.data.test)
        if self.store:
            self.store.save_adapter(context.base.activate(self.name), self.name)
            # P is private: it is kept for the client's own report and not sent.
            self.store.write_json("report.json", self.method.report())
        result = final.plain() | {"validation": validation.metric, "validation_nats": validation.nats}
        return Payload(meta={"final": result})


def _in_words(method: Any) -> str:
    if not isinstance(method, dict):
        return "a method of an h2tune version that does not say which"
    actions = method.get("actions") or []
    return f"{method.get('name')} version {method.get('version')} (actions {', '.join(map(str, actions))})"


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
