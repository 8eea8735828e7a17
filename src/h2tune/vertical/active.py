"""The active party: it has the labels, drives every round, and keeps the model over all views."""

from __future__ import annotations

import json
import secrets
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from h2tune.protocol.codec import Payload
from h2tune.utils.numbers import finite
from h2tune.utils.seeds import derive
from h2tune.vertical import average, exposure, fuse
from h2tune.vertical.config import VerticalConfig
from h2tune.vertical.encoder import adamw, batch_rows, corrupt, make_encoder, pack, unpack
from h2tune.vertical.exchange import Exchange
from h2tune.vertical.labels import Labels
from h2tune.vertical.meeting import Meeting
from h2tune.vertical.parties import PartyData
from h2tune.vertical.priors import global_prior
from h2tune.vertical.prototypes import from_means, merge
from h2tune.vertical.top import KNOWN, Top


class Active:
    """Runs the rounds of one vertical federation.

    Args:
        meeting: what the parties agreed on, see `h2tune.vertical.meeting`.
        vectors: public vectors of the classes (C x q), for `unseen: described`.
        secret: what its private draws follow from; by default new ones.
    """

    def __init__(self, config: VerticalConfig, data: PartyData, meeting: Meeting, exchange: Exchange,
                 vectors: Tensor | None = None, secret: bytes | None = None) -> None:  # fmt: skip
        self.config, self.data, self.meeting, self.exchange = config, data, meeting, exchange
        training, seed = config.training, config.seed
        self.parties, self.classes = [data.name, *meeting.passive], meeting.classes
        self.encoder = make_encoder(data.width, training.hidden, training.dim, derive(seed, "encoder", data.name))
        self.top = Top(len(self.parties), len(self.classes), config.method, training, seed, vectors)
        trained = [*self.encoder.parameters(), *self.top.parameters()]
        self.optimiser = adamw(trained, training.learning_rate, training.weight_decay)
        self.secret = secret or secrets.token_bytes(32)
        self.labels = Labels(config, data.train, meeting, self.secret)
        self.reported = torch.zeros(len(self.parties), len(self.classes))
        self.reported[0] = self.labels.own_counts
        self.priors = torch.zeros_like(self.reported)
        self.pooled = global_prior(self.labels.counts, [])
        self.top.counts.copy_(self.labels.aligned_counts + self.reported)
        self.round, self.history = 0, list[dict[str, Any]]()
        self.best, self.best_parts = 0, dict[str, Tensor]()
        self.average = dict[str, Tensor]()  # of the weights over rounds, with `training.average`

    @property
    def shown(self) -> tuple[nn.Module, Top]:
        """The network and the top layer that predict."""
        encoder, top = (average.averaged(part, name, self.average) for name, part in self._modules().items())
        assert isinstance(top, Top)
        return encoder, top

    def _modules(self) -> dict[str, nn.Module]:
        return {"encoder": self.encoder, "top": self.top}

    # A round

    def one_round(self) -> dict[str, Any]:
        """Steps on aligned batches, then every party's own part; returns the round's record.

        Raises:
            PartyGone: the round must be repeated.
        """
        begin, number = time.perf_counter(), self.round + 1
        self.exchange.begin(number)
        here = self.exchange.here
        self.sums = torch.zeros_like(self.top.mu)
        gradients: dict[str, Tensor] = {}
        losses = []
        for step in range(self.config.training.steps):
            loss, gradients = self._step(number, step, gradients, here)
            losses.append(loss)
        self._local(number, gradients, here)
        self.round = number
        if keep := self.config.training.average:
            self.average = average.moved(self.average, average.weights(self._modules()), keep, number)
        record: dict[str, Any] = {"round": number, "loss": sum(losses) / len(losses), "counts": self._rounded()}
        record["seconds"] = time.perf_counter() - begin
        record = finite(record)  # a run that diverges is kept and told, too: JSON has no NaN
        self.history.append(record)
        return record

    def _step(
        self, number: int, step: int, owed: dict[str, Tensor], here: list[str]
    ) -> tuple[float, dict[str, Tensor]]:
        """One exchange: send the gradients owed, get embeddings, update; returns the loss and the next gradients."""
        config, training = self.config, self.config.training
        meta = {"step": step} | ({"keep": self.best} if step == 0 and self.best else {})
        requests = {name: Payload({"gradient": owed[name]} if name in owed else {}, dict(meta)) for name in here}
        answers = self.exchange.ask_all("step", requests)
        rows = batch_rows(len(self.labels.y), training.batch, config.seed, "batch", number, step)
        leaves = {name: answers[name].tensors["z"].requires_grad_() for name in here}
        gradients: dict[str, Tensor] = {}
        value = torch.zeros(())
        for repeat in range(training.stale):
            generator = torch.Generator().manual_seed(derive(config.seed, "step", number, step, repeat))
            value = self.batch_loss(rows, leaves, generator)
            self.optimiser.zero_grad()
            torch.autograd.backward(value)
            self.optimiser.step()
            if repeat == 0:
                gradients = {name: self._noisy(z, name, number, step) for name, z in leaves.items()}
        return float(value.detach()), gradients

    def batch_loss(self, rows: Tensor, passive: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        """The loss of an aligned batch, and of a batch of the active party's own rows."""
        training = self.config.training
        own = self.data.train.x
        mine = self.encoder(corrupt(own[self.meeting.rows[rows]], own, training.augment, generator))
        absent = torch.zeros_like(mine)
        z = [mine, *(passive.get(name, absent) for name in self.meeting.passive)]
        present = self.meeting.present[rows] & self.here()
        used = self.labels.trained[rows]
        self._collect([view.detach() for view in z], present & used[:, None], rows)
        if not bool(used.all()):
            z, present, rows = [view[used] for view in z], present[used], rows[used]
        if len(rows):
            value = self.top.loss(z, present, self.labels.y[rows], self.labels.shares, generator, self.labels.flip)
        else:  # validation rows alone: no gradient
            value = torch.stack([view.sum() for view in z]).sum()
        if len(self.labels.own_y) and training.local_steps:
            value = value + self._own_loss(generator) / len(z)
        return value

    def _own_loss(self, generator: torch.Generator) -> Tensor:
        """The loss of the own view on own rows that no other party has."""
        training = self.config.training
        rows = torch.randperm(len(self.labels.own_y), generator=generator)[: training.batch]
        z = self.encoder(corrupt(self.labels.own_x[rows], self.labels.own_x, training.corrupt, generator))
        shares = self.labels.own_counts / self.labels.own_counts.sum()
        shares = shares if self.config.method.adjust else (shares > 0).float()
        return fuse.loss(z @ self.top.nu[0].T, self.labels.own_y[rows], shares, self.labels.flip).mean()

    def here(self) -> Tensor:
        """Which parties take part now (K, bool)."""
        return torch.tensor([True, *(name in self.exchange.here for name in self.meeting.passive)])

    def _noisy(self, z: Tensor, name: str, number: int, step: int) -> Tensor:
        assert z.grad is not None
        # Noise that follows from the run's seed could be taken off again by every party.
        seed = derive(int.from_bytes(self.secret, "big"), "noise", name, number, step)
        return exposure.add_noise(z.grad, self.config.exposure.gradient_noise, seed).clone()

    def _collect(self, z: list[Tensor], present: Tensor, rows: Tensor) -> None:
        """Add a batch to the sums that the aligned class means are made of."""
        names = F.one_hot(self.labels.y[rows], len(self.classes)).float()
        for k, view in enumerate(z):
            weights = names * present[:, k, None]
            self.sums[k] += weights.T @ F.normalize(view, dim=1)

    def _local(self, number: int, gradients: dict[str, Tensor], here: list[str]) -> None:
        """Every passive party's own part of the round."""
        aligned = F.normalize(self.sums, dim=2)
        self.top.mu[0] = aligned[0]
        mu = torch.stack([
            merge([aligned[k], self.top.mu[k]], [self.labels.aligned_counts[k], self.reported[k]]) for k in range(len(self.parties))
        ])  # fmt: skip
        places = {name: k for k, name in enumerate(self.parties)}
        requests = {}
        for name in here:
            k = places[name]
            tensors = {"nu": self.top.nu[k].detach().clone(), "mu": mu[k].clone(), "prior": self.pooled}
            if name in gradients:
                tensors["gradient"] = gradients[name]
            requests[name] = Payload(tensors)
        answers = self.exchange.ask_all("local", requests)
        with torch.no_grad():
            for name, answer in answers.items():
                self._take_local(places[name], answer, aligned, number)
        sizes = dict(zip(self.meeting.passive, self.meeting.sizes, strict=True))
        pooled = [
            (sizes[n], self.priors[places[n]]) for n in self.meeting.passive if bool(self.priors[places[n]].any())
        ]
        self.pooled = global_prior(self.labels.counts, pooled)

    def _take_local(self, k: int, answer: Payload, aligned: Tensor, number: int) -> None:
        """A party's prototypes, counts and shares; rows of classes that only it has seen start at its means."""
        t = answer.tensors
        self.reported[k], self.priors[k] = t["counts"], t["prior"]
        self.top.mu[k] = merge([aligned[k], t["mu"]], [self.labels.aligned_counts[k], t["counts"]])
        self.top.counts[k] = self.labels.aligned_counts[k] + t["counts"]
        nu = t["nu"]
        if number <= self.config.method.warmup:
            fresh = (self.labels.shares <= 0) & (t["counts"] > KNOWN)
            nu = from_means(nu, t["mu"], fresh, self.labels.shares > 0)
        self.top.nu[k] = nu

    def judge(self, record: dict[str, Any]) -> None:
        """Where validation rows are kept, remember the best round; of equal ones the later."""
        score = (record.get("validation") or {}).get("balanced")
        if score is not None and score >= max(
            (r["validation"]["balanced"] for r in self.history if "validation" in r and r is not record), default=0.0
        ):
            self.best = record["round"]
            self.best_parts = pack(dict(zip(self._modules(), self.shown, strict=True)))

    @property
    def result(self) -> dict[str, Any]:
        """The record of the round whose networks are the result: the best by validation, else the last."""
        return next((r for r in self.history if r["round"] == self.best), self.history[-1])

    def finish(self) -> None:
        """The end: everyone's result is that of the best round, or of the last if there is no validation."""
        chosen = {"best": self.best} if self.best else {}
        self.exchange.ask("finish", {name: Payload(meta=dict(chosen)) for name in self.exchange.here})
        chosen_parts = self.best_parts if self.best else pack(dict(zip(self._modules(), self.shown, strict=True)))
        unpack({**self._modules()}, chosen_parts)
        self.average = {}

    def _rounded(self) -> list[list[float]]:
        """Rows of each class that each party has seen, to one decimal."""
        return [[round(value, 1) for value in row] for row in self.top.counts.tolist()]

    # State

    def _parts(self) -> dict[str, Any]:
        return {"encoder": self.encoder, "top": self.top, "optimiser": self.optimiser, "reported": self.reported,
                "priors": self.priors, "pooled": self.pooled}  # fmt: skip

    def state(self) -> dict[str, Tensor]:
        """All that the next round depends on."""
        kept = {"best": self.best_parts, "average": self.average}
        return pack(self._parts()) | {
            f"{kind}/{n}": tensor for kind, parts in kept.items() for n, tensor in parts.items()
        }

    def records(self) -> dict[str, Any]:
        """Plain values beside the state."""
        return {"history": list(self.history), "best": self.best}

    def restore(self, round: int, tensors: dict[str, Tensor], records: dict[str, Any]) -> None:
        """Go back to a committed round."""
        unpack(self._parts(), tensors)
        self.best_parts, self.average = (
            {n.removeprefix(kind): t for n, t in tensors.items() if n.startswith(kind)}
            for kind in ("best/", "average/")
        )
        self.round, self.history, self.best = round, json.loads(json.dumps(records["history"])), records["best"]
