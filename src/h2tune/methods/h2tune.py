"""H2Tune: federated fine-tuning of different models on different tasks (arXiv 2507.22633), with aligned frames.

    adapter          delta W = B T A, T written from the core             (triple matrix decomposition)
                     + B' A', private coordinates beside the frames, where `private` asks for some
    layer alignment  T[l, j] = sum_g P[g, l] (C[g, j] * S[g, j])          (relation-guided)
    download         S_i <- S, or with `accept: validation` whichever of S_i, (S_i + S) / 2, S fits the client best
    shared phase     A, B, head frozen; S, P, M on CE + mu/2 ||S - S0||^2
    specific phase   S, P, M frozen; A, B, head on CE + lambda KL(z_shared || z)
    aggregation      S <- sum_i w_i C_i S_i / sum_i w_i C_i, over the clients that cover an entry
                     (or with `aggregate` a robust rule: `h2tune.aggregation.robust`)

What the paper leaves open, and what makes the mean of S mean something, are the frames: before round 0 every client
regresses its A and B on latent coordinates that all models share on public anchor text (`h2tune.frames.consensus`).
Only covered entries of S ever leave a client, and once the left factors U of the anchors' activations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from h2tune.core.client_core import ANY, ClientCore, CoreShape
from h2tune.core.masks import kept_rank
from h2tune.core.packing import unpack_core
from h2tune.core.relation import depth_relation, nearest_relation
from h2tune.core.slots import SLOTS
from h2tune.frames import bases
from h2tune.frames.registry import check_frames, start
from h2tune.frames.words import core_slots, tied_slot
from h2tune.methods.base import Method, OnStep
from h2tune.methods.core_server import ClientUpdates, CoreServer
from h2tune.methods.distill import distillation
from h2tune.methods.h2tune_settings import H2TuneSettings, UnsharedSettings
from h2tune.participant.adapter_client import AdapterClient
from h2tune.protocol.codec import Payload, ProtocolError, Size


class H2TuneClient(AdapterClient):
    settings: H2TuneSettings
    residual = False

    @property
    def shared_rank(self) -> int:
        return kept_rank(self.client.keep, self.client.rank) if self.settings.mask == "dims" else self.client.rank

    @property
    def adapter_rank(self) -> int:
        return self.shared_rank + self.settings.private

    def check(self) -> None:
        super().check()
        check_frames(self)

    def join(self, fresh: bool = True) -> Payload:
        client, settings = self.client, self.settings
        framed = self.shared_rank if settings.private else 0
        self.attach(self.adapter_rank, residual=self.residual or settings.private > 0, framed=framed)
        self.core_leaves = self.leaves  # the T of the maps that the core acts on
        meta = self.introduction() | {"keep": client.keep}
        if settings.frames == "words":
            meta["slots"] = [tied_slot(self)]
        if settings.frames == "anchor" and fresh:
            self.described = client.describe_anchors(settings.directions * client.rank)
            meta["digest"] = self.described.digest
        return Payload(meta=meta)

    def describe(self) -> Payload:
        return Payload(self.described.tensors())

    def welcome(self, payload: Payload, fresh: bool = True) -> None:
        client, settings = self.client, self.settings
        depth, slots = payload.said("depth", Size), payload.said("slots", list[str])
        tied = settings.frames == "words"
        known, own = (ANY, [tied_slot(self)]) if tied else (SLOTS, client.layout.slots)
        if odd := set(slots) - set(known) or set(own) - set(slots):
            raise ProtocolError(
                f"the server's core has unknown slots, or lacks this client's: {', '.join(sorted(odd))}"
            )
        self.shape = CoreShape(depth, client.rank, tuple(slots))
        places = nearest_relation if settings.relation == "nearest" else depth_relation
        relation = places(self.shape.depth, client.layout.depth)
        if fresh:
            relation = self.begin(payload, relation)
        self.core = self.make_core(relation).to(client.accelerator.device)
        self.updates = ClientUpdates(client.experiment, self.core.S)
        self.core.write(self.core_leaves)
        if fresh:
            self.warm_head()
        self._make_groups()

    def begin(self, payload: Payload, relation: Tensor) -> Tensor:
        """Set A and B to the frames; returns the start of P."""
        return start(self, payload, relation)

    def make_core(self, relation: Tensor) -> ClientCore:
        settings, layout, tied = self.settings, self.client.layout, {}
        if settings.frames == "words":
            tied = {"tied": tied_slot(self)}
            layout = layout.only(core_slots(settings))
            # The leaves of the maps that the core acts on, in its own order.
            places = [m for _ in range(layout.depth) for m in self.client.layout.modules]
            self.core_leaves = [leaf for leaf, m in zip(self.leaves, places, strict=True) if m in layout.modules]
        return ClientCore(
            self.shape, layout, relation, self.client.keep, settings.mask, settings.train_relation, **tied
        )

    def _make_groups(self) -> None:
        client = self.client
        phases = self.phases(client.training.steps)
        updates = {name: client.rounds * sum(p in (name, "joint") for p in phases) for name in ("shared", "specific")}
        factors = self.factors if self.learns_factors else []
        specific = [*factors, *self.head]
        # `group` lets gradients flow to all that it is given: a fixed P must not be among them.
        core = [p for p in self.core.parameters() if p.requires_grad]
        rate = client.training.core_learning_rate
        self.groups = {"shared": self.group(core, rate, updates["shared"])}
        if specific:
            self.groups["specific"] = self.group(specific, self.rate, updates["specific"])
        for parameter in (*self.factors, *self.head):
            parameter.requires_grad_(parameter in set(specific))

    @property
    def learns_factors(self) -> bool:
        return self.settings.train_factors or (self.settings.private > 0 and self.settings.train_private)

    def phases(self, steps: int) -> list[str]:
        """The phase of each update of a round; the first is a shared one: at S = 0 nothing else has a gradient."""
        if not (self.learns_factors or self.head):
            return ["shared"] * steps
        if self.settings.alternation == "joint":
            return ["joint"] * steps
        share = self.settings.shared_part
        if self.settings.alternation == "part":
            cut = max(1, round(share * steps))
            return ["shared"] * cut + ["specific"] * (steps - cut)
        # Spread evenly: update n is shared whenever the count of shared updates falls behind its share.
        return [
            "shared" if int((n + 1) * share + 1 - share) > int(n * share + 1 - share) else "specific"
            for n in range(steps)
        ]

    def train(self, round: int, payload: Payload, on_step: OnStep) -> tuple[Payload, dict[str, float]]:
        self.activate()
        if self.settings.share:
            self.receive(payload) if self.settings.accept == "always" else self._receive_what_fits(payload)
        self.start = self.core.S.detach().clone()
        phases, batches = self.phases(self.client.training.steps), self.batches(round)
        losses: dict[str, list[float]] = {}
        for step, phase in enumerate(phases):
            if self.settings.distill and phase == "specific" and (step == 0 or phases[step - 1] != phase):
                self.kept = [p.detach().clone() for p in self.factors]
            loss = getattr(self, f"_{phase}")(batches)
            losses.setdefault(phase, []).append(loss)
            on_step(phase, step + 1, len(phases), loss)
        self.core.write(self.core_leaves)
        upload = Payload(self.pack(), {}) if self.settings.share else Payload()
        return upload, {phase: sum(values) / len(values) for phase, values in losses.items()}

    def _shared(self, batches: Any) -> float:
        self._listen(core=True, factors=False)
        self.core.write(self.core_leaves)
        loss = self.updater.gradients(batches)
        self._update_core()
        return loss

    def _specific(self, batches: Any) -> float:
        self._listen(core=False, factors=True)
        self.core.write(self.core_leaves)
        loss = self.updater.gradients(batches, distillation(self) if self.settings.distill else None)
        self._update_factors()
        return loss

    def _joint(self, batches: Any) -> float:
        """Both groups from one backward pass."""
        self._listen(core=True, factors=True)
        self.core.write(self.core_leaves)
        loss = self.updater.gradients(batches)
        self._update_core()
        self._update_factors()
        return loss

    def _update_factors(self) -> None:
        if not self.settings.train_factors:  # the frames' part of A and B stays
            for layer in self.layers:
                a, b = layer.trilora_A[self.client.adapter], layer.trilora_B[self.client.adapter]
                if a.grad is not None:
                    a.grad[: self.shared_rank] = 0
                    b.grad[:, : self.shared_rank] = 0
        self.updater.apply(self.groups["specific"])

    def _update_core(self) -> None:
        self.core.pull(self.core_leaves)
        if self.settings.ridge:
            self.core.S.grad.add_(self.core.S.detach(), alpha=self.settings.ridge / len(self.client.train_data))
        if self.settings.proximal:
            self.core.S.grad.add_(self.core.S.detach() - self.start, alpha=self.settings.proximal)
        self.updater.apply(self.groups["shared"])

    def _listen(self, core: bool, factors: bool) -> None:
        for leaf in self.core_leaves:
            leaf.requires_grad_(core)
        if "specific" in self.groups:
            self.groups["specific"].trainable(factors)

    def receive(self, payload: Payload) -> None:
        if not self.settings.share:
            return
        core, coverage = unpack_core(payload.tensors, self.shape, self.core.rank)
        self.updates.receive(core)
        with torch.no_grad():
            self.core.S.copy_(torch.where(coverage.to(self.core.S.device), core.to(self.core.S.device), self.core.S))
        self.core.write(self.core_leaves)

    def _receive_what_fits(self, payload: Payload) -> None:
        """Of the own core, the received one and their mean the one with the least validation loss."""
        own = self.core.S.detach().clone()
        self.receive(payload)
        received = self.core.S.detach().clone()
        if torch.equal(own, received):
            return
        losses = {}
        for share in (1.0, 0.5, 0.0):
            self.core.S.data.copy_(torch.lerp(own, received, share))
            self.core.write(self.core_leaves)
            losses[share] = self.client.validation_loss()
        self.accepted = min(losses, key=lambda share: (losses[share], -share))
        self.core.S.data.copy_(torch.lerp(own, received, self.accepted))
        self.core.write(self.core_leaves)
        self.activate()

    accepted = 1.0

    def keep_secret(self, secrets: Any, sealed: dict[str, str]) -> None:
        weight = len(self.client.train_data) if self.client.experiment.weights == "examples" else 1
        self.updates.secrets = secrets, sealed, weight

    def pack(self) -> dict[str, Tensor]:
        """What is sent: the kept entries of S and their coverage, nothing else."""
        return self.updates.pack(*self.upload(), masked=self.core.scores is not None)

    def upload(self) -> tuple[Tensor, Tensor]:
        """S and its coverage."""
        return self.core.S, self.core.coverage

    def state(self) -> dict[str, Tensor]:
        core = {f"core.{k}": v.detach().clone() for k, v in self.core.state_dict().items()}
        return super().state() | core | self.updates.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        super().load_state(state)
        self.updates.load_state(state)
        self.core.load_state_dict({k.removeprefix("core."): v for k, v in state.items() if k.startswith("core.")})
        self.core.write(self.core_leaves)

    def report(self) -> dict[str, Any]:
        return {"relation": self.core.relation().detach().cpu().tolist(), "accepted": self.accepted}


class H2TuneServer(CoreServer):
    settings: H2TuneSettings
    needs = ("depth", "slots", "rank", "keep")

    def check_introduction(self, name: str, payload: Payload) -> None:
        super().check_introduction(name, payload)
        if self.settings.frames == "anchor":
            payload.said("digest", str)
        slots = set(payload.meta["slots"])
        if bool(slots & set(ANY)) != (self.settings.frames == "words") or not slots:
            raise ProtocolError(f"its introduction has slots that do not belong to frames: {self.settings.frames}")

    def misfits(self, joined: dict[str, Payload], described: dict[str, Payload]) -> dict[str, str]:
        if self.settings.frames != "anchor":
            return {}
        sent = {name: payload.tensors for name, payload in described.items()}
        said = {name: (joined[name].meta["depth"], joined[name].meta["slots"]) for name in sent}
        return bases.misfits(sent, said, self.experiment.rank, self.settings.directions * self.experiment.rank)

    def ask(self, joined: dict[str, Payload]) -> list[str]:
        """One client for each distinct set of bases: clients on one model would send the same bytes."""
        if self.settings.frames != "anchor" or hasattr(self, "shape"):
            return []  # late joiners regress on the coordinates that there are
        return list({payload.meta["digest"]: name for name, payload in reversed(joined.items())}.values())[::-1]

    def open(self, joined: dict[str, Payload], described: dict[str, Payload]) -> dict[str, Payload]:
        if not hasattr(self, "shape"):
            depth = self.experiment.depth or max(p.meta["depth"] for p in joined.values())
            held = {slot for p in joined.values() for slot in p.meta["slots"]}
            self.shape = CoreShape(depth, self.experiment.rank, tuple(s for s in (*SLOTS, *ANY) if s in held))
            self.S = self.shape.zeros()
            self.ranks: dict[str, int] = {}
            self.masked: dict[str, bool] = {}
            self.frames = None
            if self.settings.frames == "anchor":
                sent = {name: payload.tensors for name, payload in described.items()}
                self.frames = bases.agree(sent, self.shape, self.settings.depth_frames == "procrustes")
            self.agreement = self.frames.agreement if self.frames else None
        for name, payload in joined.items():
            if strange := [s for s in payload.meta["slots"] if s not in self.shape.slots]:
                raise ValueError(f"{name} joins late with slots that the core lacks: {', '.join(strange)}")
        self.ranks |= {name: p.meta["rank"] for name, p in joined.items()}
        self.masked |= {name: self.settings.mask == "entries" and p.meta["keep"] < 1 for name, p in joined.items()}
        self.held = getattr(self, "held", {}) | {name: p.meta["slots"] for name, p in joined.items()}
        self.blocks = getattr(self, "blocks", {}) | {name: p.meta["depth"] for name, p in joined.items()}
        meta = {"depth": self.shape.depth, "slots": list(self.shape.slots)}
        tensors = self.frames.tensors() if self.frames else {}
        return {name: Payload(tensors, meta) for name in joined}

    def state(self) -> dict[str, Tensor]:
        return {"S": self.S}

    def plain_state(self) -> dict[str, Any]:
        shape = {"depth": self.shape.depth, "rank": self.shape.rank, "slots": list(self.shape.slots)}
        held = {
            "ranks": self.ranks,
            "masked": self.masked,
            "held": self.held,
            "blocks": self.blocks,
            "spent": self.spent,
        }
        return {"shape": shape, "agreement": self.agreement} | held

    def fixed(self) -> dict[str, Tensor]:
        return self.frames.tensors() if self.frames else {}

    def resume(
        self, tensors: dict[str, Tensor], plain: dict[str, Any], fixed: dict[str, Tensor], names: list[str]
    ) -> dict[str, Payload]:
        shape = plain["shape"]
        self.shape = CoreShape(shape["depth"], shape["rank"], tuple(shape["slots"]))
        self.S, self.agreement = tensors["S"].clone(), plain["agreement"]
        self.frames = bases.Frames.from_tensors(fixed, self.shape) if fixed else None
        self.ranks, self.masked, self.held = plain["ranks"], plain["masked"], plain["held"]
        self.blocks, self.spent = plain.get("blocks", {}), plain.get("spent", [])  # older runs have neither
        return {name: Payload(meta={"depth": shape["depth"], "slots": shape["slots"]}) for name in names}

    def report(self) -> dict[str, Any]:
        shape = {"depth": self.shape.depth, "slots": list(self.shape.slots), "rank": self.shape.rank}
        return {"core": shape | {"norms": self.S.flatten(2).norm(dim=-1).tolist()}, "agreement": self.agreement}


_SENDS = "covered entries of the core S; once, with anchor frames, left factors of activations on public text"
_SOURCE = "Guo et al., arXiv 2507.22633; the frames are this project's"
Method(
    "h2tune", H2TuneSettings, H2TuneClient, H2TuneServer, "frames from public text, a shared core, two phases",
    sends=_SENDS, source=_SOURCE,
)  # fmt: skip
Method(
    "h2tune-unshared", UnsharedSettings, H2TuneClient, H2TuneServer, "the same frames and phases, never averaged",
    source=_SOURCE,
)  # fmt: skip
