"""One participant of a federation: its model, its data, its private state, and what it answers to the server.

Read `handle` from top to bottom: join, describe, welcome, then round after round, and the result. Everything that
comes in is decoded and judged by `wire`; everything that goes out is what the method packs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from pydantic import Field

from h2tune import tasks
from h2tune.adapter import TriLoraConfig
from h2tune.aggregation.secret_sharing import ClientSecrets, SecureError, context_of
from h2tune.aggregation.secure_mean import threshold_of
from h2tune.config import ClientConfig, ConfigError, Experiment
from h2tune.frames.anchor_text import anchor_batch, coverage
from h2tune.frames.bases import Bases, describe
from h2tune.frames.episodes import load_practice
from h2tune.frames.lexicon import Episode
from h2tune.frames.sources import load_anchors, load_codes, load_texts
from h2tune.frames.word_codes import TextCodes
from h2tune.methods import resolve_method
from h2tune.participant import budget
from h2tune.participant.base_models import ModelPool, adapter_name
from h2tune.participant.batches import stream
from h2tune.participant.optim import NanLossError
from h2tune.participant.prepare import client_base, load_data
from h2tune.participant.scoring import Score, score, unigram_nats
from h2tune.protocol.codec import Message, Payload, ProtocolError, decode
from h2tune.protocol.codec import encode as to_bytes
from h2tune.store import ClientStore, RunStore
from h2tune.utils.launcher import no_launcher
from h2tune.utils.seeds import derive
from h2tune.utils.sizes import parse_size

Watch = Callable[[str, int, str, int, int, float], None]
"""Told of every update: client, round, phase, step, steps, loss."""


class LostStateError(RuntimeError):
    """The private state of a committed round is not on this disk."""


class Client:
    """A participant.

    Args:
        config: its own part of the experiment.
        experiment: what all participants agree on.
        models: the base models of this process.
        anchors: the public sentences, the same for everyone.
        store: where its private state lives; None keeps nothing.
        watch: called with client, phase, step, steps, loss after every update.
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
    ) -> None:
        self.config, self.experiment, self.anchors, self.store, self.watch = config, experiment, anchors, store, watch
        self.name, self.seed, self.rounds = config.name, experiment.seed, experiment.rounds
        self.adapter = adapter_name(config.name)
        self.training, self.rank, self.data_seed = experiment.training, experiment.rank, config.name
        self.task = tasks.build_task(config.task)
        self.models, self.base = models, client_base(config, self.task, models)
        method, settings = resolve_method(experiment.method)
        self.layout = self.base.layout.only(settings.adapter_slots)
        self.tokenizer = self.base.tokenizer
        self.accelerator = accelerator or make_accelerator(experiment, models.device)
        self._load_data()
        self.keep = self._affordable() if config.keep == "auto" else float(config.keep)
        self.method = method.client(self, settings)
        self.method.check()
        self.run, self.done = "", 0  # of which run, and the last round that it has trained
        self.joined = self.ready = False
        self.secrets: ClientSecrets | None = None

    def introduction(self) -> dict[str, Any]:
        """What its method may tell of it before anything is trained."""
        return self.method.introduction()

    def _load_data(self) -> None:
        seed = derive(self.seed, self.data_seed, "data")
        data = load_data(
            self.config, self.task, self.base, seed=seed, n_validation=self.experiment.evaluation.n_validation
        )
        self.train_examples, self.train_data = data.train.examples, data.train.encoded
        self.validation, self.validation_data = data.validation.examples, data.validation.encoded
        self.test, self.test_data, self.leaked = data.test.examples, data.test.encoded, data.leaked

    def _affordable(self) -> float:
        """``keep: auto``; what was found once is kept, so that a resumed run has the same shapes."""
        known = self.store.read_json("budget.json") if self.store else None
        if known is None:
            maps = self.base.maps(self.layout)
            pairs = len(self.layout.slots) * min(self.experiment.depth or 2 * self.layout.depth, 2 * self.layout.depth)
            limits = self.config.budget

            def fits(rank: int) -> bool:
                upload = limits.upload is None or budget.upload_bytes(pairs, rank) <= parse_size(limits.upload)
                memory = limits.memory is None or budget.adapter_bytes(maps, rank) <= parse_size(limits.memory)
                return upload and memory and (limits.step_ms is None or self._step_ms(rank) <= limits.step_ms)

            try:
                known = {"keep": budget.kept_share(self.rank, fits, f"rank 1 needs {budget.upload_bytes(pairs, 1)} bytes up"
                                                   f" and {budget.adapter_bytes(maps, 1):,} bytes of memory")}  # fmt: skip
            except ValueError as error:
                raise ConfigError([f"{self.name}: {error}"]) from None
            if self.store:
                self.store.write_json("budget.json", known)
        return known["keep"]

    def _step_ms(self, rank: int) -> float:
        """Median milliseconds of three training steps with a throw-away adapter of this rank."""
        name, times = f"_probe{rank}", []
        config = TriLoraConfig(r=rank, residual=False, target_modules=self.layout.targets, parts=self.layout.parts or None,
                               task_type="SEQ_CLS" if self.task.kind == "classify" else "CAUSAL_LM")  # fmt: skip
        self.base.attach(name, config)
        batches = stream(self.train_data, self.training.batch_size, self.tokenizer.pad_token_id, 0)
        for _ in range(4):
            batch = {k: v.to(self.accelerator.device) for k, v in next(batches)[0].items()}
            begin = time.perf_counter()
            self.base.peft(**batch).loss.backward()
            times.append(1000 * (time.perf_counter() - begin))
        self.base.peft.zero_grad()
        self.base.detach(name)
        return sorted(times[1:])[1]

    @contextmanager
    def generator(self, *purpose: object) -> Iterator[None]:
        """Torch's generators seeded for one purpose of this client, and restored afterwards."""
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(derive(self.seed, self.data_seed, *purpose))
            yield

    def describe_anchors(self, directions: int, most: int | None = None) -> Bases:
        """Factors of this model's activations on the anchors, or ``most`` of them; clients on one base share them."""
        anchors = self.anchors[:: -(-len(self.anchors) // most)] if most else self.anchors
        base, key = self.base, ("bases", directions, hash(tuple(anchors)))
        if key not in base.cache:
            batch = anchor_batch(anchors, self.tokenizer, base.context, base.causal)
            model = base.model
            if base.peft is None:
                base.cache[key] = describe(model, self.layout, batch, directions)
            else:
                with base.peft.disable_adapter():
                    base.cache[key] = describe(model, self.layout, batch, directions)
        return base.cache[key]

    def word_codes(self, source: str, pairs: bool) -> TextCodes:
        """Public codes of words, of the core's rank."""
        return load_codes(source, self.rank, pairs)

    def public_texts(self) -> list[str]:
        """What frames by words are practised on."""
        return load_texts(self.config.practice) if self.config.practice else self.anchors

    def practice(self) -> list[Episode]:
        """Public practice problems, as episodes."""
        return load_practice(self.config.practice, self.tokenizer, self.config.max_length or self.base.context)

    def handle(self, data: bytes) -> bytes:
        """Answer one message of the server."""
        message = decode(data, run=self.run or None)
        self.run = message.run
        actions: dict[str, Callable[[Message], tuple[str, Payload]]] = {
            "join": self._join,
            "describe": lambda m: ("described", self.method.describe()),
            "welcome": self._welcome,
            "resume": self._resume,
            "keys": self._keys,
            "shares": self._shares,
            "round": self._round,
            "unmask": lambda m: (
                "shares",
                Payload(meta={"shares": self._secrets().reveal(m.payload.said("answered", list[str]))}),
            ),
            "finish": self._finish,
        }
        if message.kind not in actions:
            raise ProtocolError(f"{self.name} cannot answer a message of kind {message.kind!r}.")
        if not {"describe": self.joined, "welcome": self.joined, "round": self.ready, "finish": self.ready}.get(
            message.kind, True
        ):
            raise ProtocolError(f"{self.name} is sent {message.kind!r} before its time.")
        try:
            kind, payload = actions[message.kind](message)
        except (NanLossError, SecureError) as error:
            kind, payload = "failure", Payload(meta={"reason": str(error)})
        reply = Message(kind, message.run, message.round, self.name, message.method, payload, len(self.train_data))
        return to_bytes(reply)

    def _join(self, message: Message) -> tuple[str, Payload]:
        # Baselines of the same run ask again; the untouched model has not changed.
        key = ("base", repr(self.config.task), self.config.max_length, hash(repr(self.test)))
        if key not in self.base.cache:
            self.base.cache[key] = self._score(self.test, self.test_data, bare=True)
        base = self.base.cache[key]
        payload = self.method.join()
        self.joined = True
        covered, missing = coverage(self.anchors, [e.prompt + e.answer for e in self.train_examples])
        if self.store:
            # The words themselves are private text; only the share is told.
            self.store.write_json("anchors.json", {"covered": covered, "missing": missing})
        payload.meta |= {"base": base.plain(), "facts": self._facts() | {"anchor_coverage": covered}}
        return "joined", payload

    def _facts(self) -> dict[str, Any]:
        golds = [e.gold for e in self.test]
        return {
            # A path says something about this machine; a public name says nothing.
            "model": f"local {self.base.family}" if Path(self.config.model).exists() else self.config.model,
            "family": self.base.family,
            "task": self.task.name,
            "kind": self.task.kind,
            "metric": self.task.metric,
            "n_train": len(self.train_data),
            "n_validation": len(self.validation),
            "n_test": len(self.test),
            "keep": self.keep,
            "unigram_nats": unigram_nats(self.train_data, self.test_data, len(self.tokenizer)),
            "majority": max(map(golds.count, set(golds))) / len(golds),
            "leaked": self.leaked,
        }

    def _welcome(self, message: Message) -> tuple[str, Payload]:
        with self.generator("welcome"):
            self.method.welcome(message.payload)
        self.ready = True
        self.done = max(0, message.round - 1)
        if self.store:
            self.store.save_state(self.done, self.method.state())
        return "ready", Payload()

    def _resume(self, message: Message) -> tuple[str, Payload]:
        """Rebuild what a committed round left: the same objects, then the saved tensors."""
        self.method.join(fresh=False)
        self.method.welcome(message.payload, fresh=False)
        self._stand_at(message.round)
        self.joined = self.ready = True
        return "ready", Payload()

    def _stand_at(self, round: int) -> None:
        """Take the private state as it was after a round."""
        if self.store is None or (state := self.store.load_state(round)) is None:
            raise LostStateError(f"{self.name} has no saved state for round {round}.")
        self.method.load_state(state)
        self.done = round

    def _round(self, message: Message) -> tuple[str, Payload]:
        begin = time.perf_counter()

        def on_step(phase: str, step: int, steps: int, loss: float) -> None:
            if self.watch:
                self.watch(self.name, message.round, phase, step, steps, loss)

        if self.done >= message.round:  # too few others had answered: the round is held again
            self._stand_at(message.round - 1)
        good = self.method.state()
        if "sealed" in message.payload.meta:
            self.method.keep_secret(self._secrets(), message.payload.said("sealed", dict[str, str]))
        try:
            with self.generator(message.round, "train"):
                payload, losses = self.method.train(message.round, message.payload, on_step)
            record = self._scores(message) | {"loss": losses, "seconds": time.perf_counter() - begin}
        except NanLossError:
            self.method.load_state(good)
            raise
        payload.meta |= {"record": record}
        self.done = message.round
        if self.store:
            self.store.save_state(message.round, self.method.state())
        return "update", payload

    def _keys(self, message: Message) -> tuple[str, Payload]:
        """Secure aggregation: fresh secrets for this round."""
        if self.experiment.secure_aggregation is None:
            raise SecureError("secure aggregation was not agreed on")
        self.secrets = ClientSecrets(self.name, threshold_of(self.experiment), context_of(message.run, message.round))
        mask, channel = self.secrets.publics()
        return "keys", Payload(meta={"mask": mask, "channel": channel})

    def _shares(self, message: Message) -> tuple[str, Payload]:
        publics = message.payload.said("publics", dict[str, Annotated[list[str], Field(min_length=2, max_length=2)]])
        pairs = {name: (mask, channel) for name, (mask, channel) in publics.items()}
        return "shares", Payload(meta={"shares": self._secrets().share_out(pairs)})

    def _secrets(self) -> ClientSecrets:
        if self.secrets is None:
            raise SecureError("this client has no secrets for the round: it was restarted in its midst")
        return self.secrets

    def _scores(self, message: Message) -> dict[str, Any]:
        """Validation (and for the curves test) figures of a round, where the server wants them."""
        scores: dict[str, Any] = {"validation": None, "test": None}
        if message.payload.meta.get("evaluate"):
            scores["validation"] = self._score(self.validation, self.validation_data).plain()
            if self.experiment.evaluation.curves:
                scores["test"] = self._score(self.test, self.test_data).plain()
        return scores

    def _finish(self, message: Message) -> tuple[str, Payload]:
        """Take the last shared state, unless by validation the client's own last one is better."""
        own, kept = self.validation_loss(), self.method.state()
        self.method.receive(message.payload)
        if own < self.validation_loss():
            self.method.load_state(kept)
        better = self._score(self.validation, self.validation_data)
        final = self._score(self.test, self.test_data)
        if self.store:
            self.store.save_adapter(self.base.peft, self.adapter)
            # P is private: it is kept for the client's own report and not sent.
            self.store.write_json("report.json", self.method.report())
        result = final.plain() | {"validation": better.metric, "validation_nats": better.nats}
        return "result", Payload(meta={"final": result})

    def validation_loss(self) -> float:
        """Nats per answer token of the client's model, as it stands, on its validation rows."""
        return self._score(self.validation, self.validation_data, loss_only=True).nats

    def _score(self, examples: Sequence, encoded: Sequence, bare: bool = False, loss_only: bool = False) -> Score:
        """Score the client's model, or with ``bare`` the untouched base model."""
        base, size = self.base, self.experiment.evaluation.batch_size
        args = (self.tokenizer, self.task, examples, encoded, size, loss_only, self.config.max_length)
        if bare and base.peft is None:
            found = score(base.model, *args)
        elif bare:
            with base.peft.disable_adapter():
                found = score(base.model, *args)
        else:
            found = score(base.activate(self.adapter), *args)
        if not math.isfinite(found.nats):
            raise NanLossError("the loss on held-out rows is not a number")
        return found


def make_accelerator(experiment: Experiment, device: str, folder: Path | None = None) -> Accelerator:
    """One Accelerator for all clients of a process; its trackers, if any are asked for, write under ``folder``."""
    precision = {"fp32": "no"}.get(experiment.training.precision, experiment.training.precision)
    trackers = list(experiment.tracking) if folder else None
    state = AcceleratorState._shared_state
    if state and state.get("_mixed_precision") != precision:
        # Accelerate keeps one precision per process; a second run with another one is nothing unusual for us.
        AcceleratorState._reset_state(reset_partial_state=True)
    with no_launcher():
        return Accelerator(
            mixed_precision=precision, cpu=device == "cpu", log_with=trackers or None, project_dir=folder
        )


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
