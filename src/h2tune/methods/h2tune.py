"""H2Tune: federated fine-tuning of different models on different tasks (arXiv 2507.22633), with aligned frames.

    adapter          delta W = B T A, T written from the core             (triple matrix decomposition)
                     + B' A', private coordinates beside the frames, where `private` asks for some
    layer alignment  T[l, j] = sum_g P[g, l] (C[g, j] * S[g, j])          (relation-guided)
    download         S_i <- S, or with `accept: validation`, while cores learn, whichever of S_i, (S_i + S) / 2, S, 0
                     fits the client best
    shared phase     A, B, head frozen; S, P, M on CE (or that of the choice between labels) + mu/2 ||S - S0||^2
    specific phase   S, P, M frozen; A, B, head on CE + lambda KL(z_shared || z)
    alternation      the phases in turns, or with `rounds` (the default, with frames by effect) in the first quarter of
                     the rounds S beside A', B', head from one backward pass, then A', B', head; A, B and P stay
    aggregation      S <- sum_i w_i C_i S_i / sum_i w_i C_i, over the clients that cover an entry
                     (or with `aggregate` a robust rule: `h2tune.aggregation.robust`)

What the paper leaves open, and what makes the mean of S mean something, are the frames: before round 1 every client sets
its A and B so that they read and write coordinates that all models share (`h2tune.frames`). Only covered entries of S
ever leave a client, and once what its kind of frames needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from h2tune.config import Experiment
from h2tune.core.client_core import ANY, ClientCore, CoreShape
from h2tune.core.masks import kept_rank
from h2tune.core.relation import depth_relation, nearest_relation
from h2tune.core.slots import SLOTS
from h2tune.errors import MethodError, ProtocolError
from h2tune.frames.base import FramedAdapter
from h2tune.frames.registry import kind_of
from h2tune.methods.base import Method, ModelShape, PlannedBytes, Sent
from h2tune.methods.core_bytes import planned_core_bytes
from h2tune.methods.core_client import CoreClient
from h2tune.methods.core_server import CoreServer
from h2tune.methods.core_updates import leaves
from h2tune.methods.distill import Distillation
from h2tune.methods.h2tune_settings import AlternatingSettings, H2TuneSettings
from h2tune.participant.context import ClientContext
from h2tune.participant.trainer import LocalTraining, Update, among, with_penalty
from h2tune.protocol.codec import Payload, Size


class H2TuneClient(FramedAdapter, CoreClient):
    settings: AlternatingSettings
    hosts = True
    protects_rows = True  # frames and relation are made from public text
    residual = False
    gives_way = "specific"  # phase whose updates are left out where another method needs room

    def __init__(self, context: ClientContext, settings: AlternatingSettings) -> None:
        super().__init__(context, settings)
        self.frames = kind_of(settings.frames).client(self)

    @classmethod
    def leaves(cls, experiment: Experiment | None, settings: Any) -> list[Sent]:
        core = leaves(experiment, "the entries of the core S that the client keeps, and which they are")
        return [*kind_of(settings.frames).leaves(settings), *core]

    @classmethod
    def planned_bytes(cls, experiment: Experiment, settings: Any, shape: ModelShape) -> PlannedBytes:
        return planned_core_bytes(experiment, settings, shape)

    @property
    def shared_rank(self) -> int:
        context = self.context
        return kept_rank(context.keep, context.rank) if self.settings.mask == "dims" else context.rank

    @property
    def adapter_rank(self) -> int:
        return self.shared_rank + self.private_rank

    @property
    def private_rank(self) -> int:
        private = self.settings.private
        return self.context.rank if private is None else private

    def check(self) -> None:
        super().check()
        self.frames.check()

    # ---- before round 1: the adapter, its frames, the core

    def join(self, fresh: bool = True) -> Payload:
        private = self.private_rank > 0
        self.attach(self.adapter_rank, residual=self.residual or private, framed=self.shared_rank if private else 0)
        return Payload(meta=self.introduction() | {"keep": self.context.keep} | self.frames.introduction(fresh))

    def describe(self, payload: Payload) -> Payload:
        return self.frames.describe()

    def welcome(self, payload: Payload, fresh: bool = True) -> Payload:
        depth, slots = payload.said("depth", Size), payload.said("slots", list[str])
        if odd := set(slots) - {*SLOTS, *ANY} or set(self.frames.core_slots) - set(slots):
            raise ProtocolError(
                f"the server's core has unknown slots, or lacks this client's: {', '.join(sorted(odd))}"
            )
        self.shape = CoreShape(depth, self.context.rank, tuple(slots))
        places = nearest_relation if self.settings.relation == "nearest" else depth_relation
        relation = places(depth, self.context.layout.depth)
        if payload.meta.get("fits") is False:  # phases and schedules go by what is covered, after a restart, too
            relation = torch.zeros_like(relation)
        if fresh:
            relation = self.set_up(payload, relation)
        self.take_core(self.make_core(relation), acts_on=self.frames.layout.modules)
        if fresh:
            self.warm_head()
        self._make_groups()
        return Payload()

    def set_up(self, payload: Payload, relation: Tensor) -> Tensor:
        """Set A and B to the frames; returns the start of P."""
        return self.frames.set_up(payload, self.shape, relation)

    def make_core(self, relation: Tensor) -> ClientCore:
        settings, frames = self.settings, self.frames
        masks = (self.context.keep, settings.mask, settings.train_relation)
        return ClientCore(self.shape, frames.layout, relation, *masks, tied=frames.tied or ANY[0])

    def _make_groups(self) -> None:
        context, rule = self.context, self.settings.core_rule
        phases = [p for round in range(1, context.rounds + 1) for p in self.phases(self.steps, round)]
        count = {name: sum(p in (name, "joint") for p in phases) for name in ("shared", "specific")}
        specific = [*(self.factors if self.settings.learns_factors else []), *self.head]
        # `group` lets gradients flow to all that it is given: a fixed P must not be among them.
        core = [p for p in self.core.parameters() if p.requires_grad] if rule == "adamw" else [self.core.S]
        self.groups = {"shared": self.group(core, context.training.core_learning_rate, count["shared"], rule)}
        if specific:
            self.groups["specific"] = self.group(specific, context.learning_rate, count["specific"])
        for parameter in (*self.factors, *self.head):
            parameter.requires_grad_(parameter in set(specific))

    # ---- a round: download, training in phases, upload

    def train(self, round: int, payload: Payload) -> Payload:
        model = self.activate()
        self.secure.take(payload)
        self.download(round, payload)
        self.start = self.core.S.detach().clone()
        self.pull = Distillation(self, self.settings.distill) if self.settings.distill else None
        training = LocalTraining(model, self._own_phases(round), self._updates(), self.context.batches(round))
        self.context.train(training)
        self.finish_training()
        self.core.write(self.core_leaves)
        return Payload(self.pack())

    def download(self, round: int, payload: Payload) -> None:
        """Take the server's core, or with `accept: validation` what fits of it.

        Nothing is chosen anew where no core has learnt since the last choice.
        """
        if not self.chooses:
            self.receive(payload)
        elif self.has_learnt(round):
            self.receive_what_fits(payload, self.listens)
        else:
            self.keep_own(payload)

    def upload(self) -> tuple[Tensor, Tensor]:
        """S and its coverage.

        Under secure aggregation the received S in rounds in which no core learns: two sums of the same cores, over other
        clients each time, would differ by a core.
        """
        core, coverage = super().upload()
        if self.secure.agreed and not self._core_learns(self.context.round):
            core = torch.where(self.sent.reached, self.sent.received, core.detach().cpu())
        return core, coverage

    @property
    def chooses(self) -> bool:
        """Whether it tests cores; where none acts on the model there is nothing to choose."""
        return self.settings.accept == "validation" and bool(self.core.relation.covered.any())

    def has_learnt(self, round: int) -> bool:
        """Whether cores have learnt since the last choice."""
        return any(self._core_learns(number) for number in range(max(1, self.chosen), round + 1))

    def _core_learns(self, round: int) -> bool:
        return any(phase != "specific" for phase in self.phases(self.steps, round))

    def phases(self, steps: int, number: int = 1) -> list[str]:
        """The phase of each update of a round; the first is a shared one: at S = 0 nothing else has a gradient."""
        if not (self.settings.learns_factors or self.head):
            return ["shared"] * steps
        if not self.core.relation.covered.any():  # a model that the frames do not fit keeps to what is private
            return ["specific"] * steps
        return self.settings.phases(steps, number, self.context.rounds)

    def _own_phases(self, number: int) -> list[str]:
        """A round's phases without the last ones of the kind that gives way to another method's updates."""
        phases = self.phases(self.steps, number)
        for _ in range(self.left_out):
            del phases[len(phases) - 1 - phases[::-1].index(self.gives_way)]
        return phases

    def leave_out(self, phase: str, wanted: int) -> int:
        phases = self.phases(self.steps, self.context.round)
        self.gives_way = phase if phase in phases else phases[-1]
        self.left_out = min(wanted, phases.count(self.gives_way), len(phases) - 1)
        return self.left_out

    @classmethod
    def phases_of(cls, settings: AlternatingSettings) -> tuple[str, ...]:
        return ("shared", "specific") if settings.learns_factors else ("shared",)

    def update_of(self, phase: str) -> Update:
        return self._updates()[phase]

    def _updates(self) -> dict[str, Update]:
        """What each phase trains; a round that trains both at once makes them from one backward pass."""
        shared, specific = self.groups["shared"], self.groups.get("specific")
        heard, listen = among(self.listens), self._listen
        found = {"shared": Update([shared], heard, listen(True, False), self._core_gradient)}
        if specific:
            found["specific"] = Update([specific], with_penalty(self.pull), listen(False, True), self._factor_gradient)
            found["joint"] = Update([shared, specific], heard, listen(True, True), self._both_gradients)
        return found

    @property
    def listens(self) -> list[int]:
        """Tokens among which the core learns to choose; none for whole answers."""
        return self.context.telling if self.settings.core_loss == "labels" else []

    def _listen(self, core: bool, factors: bool) -> Callable[[], None]:
        """Before an update: who gets gradients; and T follows from S."""

        def before() -> None:
            for leaf in self.core_leaves:
                leaf.requires_grad_(core)
            if "specific" in self.groups:
                self.groups["specific"].trainable(factors)
            if core and self.pull:
                self.pull.remember()
            self.core.write(self.core_leaves)

        return before

    def _core_gradient(self) -> None:
        """dL/dT back to S, P and M by the chain rule; and the pulls on S."""
        self.core.pull(self.core_leaves)
        s, settings = self.core.S, self.settings
        if not (settings.ridge or settings.proximal):
            return
        assert s.grad is not None  # `pull` has just set it
        if settings.ridge:
            s.grad.add_(s.detach(), alpha=settings.ridge / len(self.context.data.train))
        if settings.proximal:
            s.grad.add_(s.detach() - self.start, alpha=settings.proximal)

    def _factor_gradient(self) -> None:
        """With fixed frames only the private part of A and B learns."""
        if self.settings.train_factors:
            return
        for layer in self.layers:
            a, b = layer.trilora_A[self.context.adapter], layer.trilora_B[self.context.adapter]
            if a.grad is not None:
                a.grad[: self.shared_rank] = 0
                b.grad[:, : self.shared_rank] = 0

    def _both_gradients(self) -> None:
        self._core_gradient()
        self._factor_gradient()

    def report(self) -> dict[str, Any]:
        chosen = self.accepted if self.core.coverage.any() else None  # a client that covers nothing has no choice
        return {"relation": self.core.relation().detach().cpu().tolist(), "accepted": chosen}


class H2TuneServer(CoreServer):
    settings: AlternatingSettings
    needs: ClassVar[tuple[str, ...]] = ("depth", "slots", "rank", "keep")

    def __init__(self, experiment: Experiment, settings: AlternatingSettings) -> None:
        super().__init__(experiment, settings)
        self.frames = kind_of(settings.frames).server(experiment, settings)
        self.is_open = False

    def check_introduction(self, name: str, payload: Payload) -> None:
        super().check_introduction(name, payload)
        self.frames.check_introduction(payload)

    def describers(self, joined: dict[str, Payload]) -> list[str]:
        return self.frames.describers(joined)

    def misfits(self, joined: dict[str, Payload], described: dict[str, Payload]) -> dict[str, str]:
        return self.frames.misfits(joined, described)

    def open(self, joined: dict[str, Payload], described: dict[str, Payload]) -> dict[str, Payload]:
        if not self.is_open:
            depth = self.experiment.depth or max(p.meta["depth"] for p in joined.values())
            held = {slot for p in joined.values() for slot in p.meta["slots"]}
            self.shape = CoreShape(depth, self.experiment.rank, tuple(s for s in (*SLOTS, *ANY) if s in held))
            self.S, self.is_open = self.shape.zeros(), True
            self.frames.agree(described, self.shape)
        for name, payload in joined.items():
            meta = payload.meta
            if strange := [slot for slot in meta["slots"] if slot not in self.shape.slots]:
                raise MethodError(f"{name} joins late with slots that the core lacks: {', '.join(strange)}")
            self.ranks[name], self.held[name], self.blocks[name] = meta["rank"], meta["slots"], meta["depth"]
            self.masked[name] = self.settings.mask == "entries" and meta["keep"] < 1
            self.fits[name] = self.frames.fits(payload)
        self.check_company()
        return {name: Payload(self.frames.tensors_for(p), self.rejoin(name).meta) for name, p in joined.items()}

    def found(self) -> str:
        return "; ".join(text for text in (self.frames.found(), self.company_in_words()) if text)

    def plain_state(self) -> dict[str, Any]:
        return super().plain_state() | {"agreement": self.frames.agreement}

    def fixed(self) -> dict[str, Tensor]:
        return self.frames.tensors()

    def load(self, tensors: dict[str, Tensor], plain: dict[str, Any], fixed: dict[str, Tensor]) -> None:
        super().load(tensors, plain, fixed)
        self.frames.load(fixed, self.shape, plain["agreement"])
        self.is_open = True

    def report(self) -> dict[str, Any]:
        shape = {"depth": self.shape.depth, "slots": list(self.shape.slots), "rank": self.shape.rank}
        norms = self.S.flatten(2).norm(dim=-1).tolist()
        return {"core": shape | {"norms": norms}, "agreement": self.frames.agreement}


Method(
    "h2tune",
    H2TuneSettings,
    H2TuneClient,
    H2TuneServer,
    "frames from public text, a shared core beside a private LoRA",
    source="Guo et al., arXiv 2507.22633; the frames are this project's",
)
