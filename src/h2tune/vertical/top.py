"""The active party's model over all views: prototypes, gate, bias; its scores and its loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from h2tune.utils.seeds import derive
from h2tune.vertical import fuse, gate, prototypes
from h2tune.vertical.config import MethodConfig, Training
from h2tune.vertical.encoder import make_prototypes

KNOWN = 0.5  # rows above which a class counts as seen


class Top(nn.Module):
    """Everything above the encoders.

    Args:
        parties: K, the active party first.
        classes: C.
        vectors: public vectors of the classes (C x q), for `unseen: described`.

    Attributes:
        elsewhere: classes that a party which is no longer in here has seen (C, bool); of an export only.
    """

    counts: Tensor
    mu: Tensor

    def __init__(self, parties: int, classes: int, method: MethodConfig, training: Training, seed: int,
                 vectors: Tensor | None = None) -> None:  # fmt: skip
        super().__init__()
        self.method, self.training_config, self.vectors = method, training, vectors
        self.nu = make_prototypes(parties, classes, training.dim, derive(seed, "top"))
        self.bias = nn.Parameter(torch.zeros(classes))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "gate"))
            self.gate = gate.Gate(parties, training.dim) if method.gate == "learned" else None
            width = parties * training.dim
            self.mlp = (
                nn.Sequential(nn.Linear(width, training.hidden), nn.ReLU(), nn.Linear(training.hidden, classes))
                if method.top == "mlp"
                else None
            )
        self.elsewhere = torch.zeros(classes, dtype=torch.bool)
        self.register_buffer("counts", torch.zeros(parties, classes))
        self.register_buffer("mu", torch.zeros(parties, classes, training.dim))

    def without(self, left: list[int]) -> dict[str, Tensor]:
        """The weights with zeros in place of all that belongs to some parties; scores of rows that others have stay.

        The gate gives an absent party no weight, and the network on top reads zeros in place of its view.
        """
        found = {name: tensor.clone() for name, tensor in self.state_dict().items()}
        for k in left:
            for name in ("nu", "mu", "counts", *(["gate.outer"] if self.gate is not None else [])):
                found[name][k] = 0
            if self.gate is not None:
                found[f"gate.inner.{k}.weight"].zero_()
            if self.mlp is not None:
                dim = self.training_config.dim
                found["mlp.0.weight"][:, k * dim : (k + 1) * dim] = 0
        return found

    def seen_by(self, parties: list[int]) -> Tensor:
        """Classes that one of some parties has seen, or one that is no longer in here (C, bool)."""
        return (self.counts[parties] > KNOWN).any(0) | self.elsewhere

    def differs(self, left: list[int]) -> Tensor:
        """Classes whose probability for people of the others changes if some parties are left out (C, bool).

        All else that a score takes from a party that does not know the person is which classes somebody has seen
        (`elsewhere`). These two are figures of that party, and are left out with it.
        """
        here = [k for k in range(len(self.counts)) if k not in left]
        _, counts = self._described()
        knows, most = counts > KNOWN, counts.max(0).values
        if self.method.missing == "relation":  # its class means say what the class is like
            return ~knows[here].all(0) & knows[left].any(0)
        if self.method.missing != "evidence" or self.method.combine != "scores" or self.method.gate == "mean":
            return torch.zeros(len(most), dtype=torch.bool)
        return (
            ~knows[here].all(0) & knows[here].any(0) & (most > counts[here].max(0).values)
        )  # its rows weigh the view

    def possible(self, present: Tensor) -> Tensor:
        """Classes that each row may be given (n x C, bool): those that some party which has the row has seen.

        Args:
            present: who has the row (n x K, bool).
        """
        if self.method.unseen == "described":
            return torch.ones(len(present), self.counts.shape[1], dtype=torch.bool)
        if self.method.missing == "relation":  # views that have not seen a class speak for it, too
            present = torch.ones_like(present)
        seen: Tensor = present.float() @ self.counts > KNOWN
        return seen

    def probabilities(self, z: list[Tensor], present: Tensor) -> Tensor:
        """Class probabilities (n x C) under equal class shares; 0 for a class that the row cannot be given."""
        possible = self.possible(present)
        # Of a row whose parties have seen no class nothing is known.
        possible = possible | ~possible.any(1, keepdim=True)
        return self.scores(z, present).masked_fill(~possible, -torch.inf).softmax(1)

    def scores(self, z: list[Tensor], present: Tensor) -> Tensor:
        """Class scores (n x C) of rows that some parties have (n x K, bool)."""
        nu, counts = self._described()
        return self.combine(z, fuse.view_logits(z, nu), counts, present)

    def combine(self, z: list[Tensor], logits: Tensor, counts: Tensor, present: Tensor) -> Tensor:
        """Class scores (n x C) from view logits (n x K x C)."""
        if self.method.missing == "evidence":
            logits, counts = self._completed(logits, counts, present)
        if self.method.missing == "relation":
            logits, counts = self._related(logits, counts)
        if self.method.combine == "probabilities":
            return fuse.averaged(logits, counts > KNOWN, present)
        weights = self.gate_weights(z, logits, counts, present)
        scores = fuse.fused(logits, weights, self.bias)
        if self.mlp is not None:
            shown = [view * present[:, k, None] for k, view in enumerate(z)]
            scores = scores + self.mlp(torch.cat(shown, 1))
        return scores

    def gate_weights(self, z: list[Tensor], logits: Tensor, counts: Tensor, present: Tensor) -> Tensor:
        """How much each party counts for each class (n x K x C)."""
        seen = torch.zeros_like(counts) if self.method.gate == "mean" else gate.coverage(counts)
        scores = self.gate(z, logits) if self.gate is not None else torch.zeros(present.shape)
        return gate.weights(scores, seen, present)

    def _described(self) -> tuple[Tensor, Tensor]:
        """Prototypes and counts, with unseen classes filled in from their public vectors if there are any."""
        if self.method.unseen != "described" or self.vectors is None:
            return self.nu, self.counts
        seen = (self.counts.sum(0) > KNOWN) | self.elsewhere
        nu = torch.stack([prototypes.from_descriptions(slice_, self.vectors, seen) for slice_ in self.nu])
        typical = self.counts[:, seen].mean(1, keepdim=True)
        return nu, torch.where(seen[None, :], self.counts, typical)

    def _completed(self, logits: Tensor, counts: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Views of classes that a party has not seen: neutral, and moved towards the evidence of those that have seen them.

        A view's evidence for a class is its score over that of an average class that it knows. With exact views this is
        log p(x_k | c) / p(x_k), which is 0 where nothing is known; scores of two views cannot be compared without it.
        """
        knows = counts > KNOWN
        missing = ~knows & (knows.any(0) | self.elsewhere)
        if not bool(missing.any()):
            return logits, counts
        spread = logits.masked_fill(~knows, fuse.NEVER).logsumexp(2) - knows.sum(1).clamp_min(1).log()
        neutral = torch.where(knows.any(1), spread, 0.0)[:, :, None]
        weight = (counts * knows)[None] * present[:, :, None]
        evidence = ((logits - neutral) * weight).sum(1) / weight.sum(1).clamp_min(1e-9)
        filled = neutral + self.method.borrow * evidence[:, None, :]
        # Seen elsewhere alone: how often is not known, but all views here count alike for such a class.
        most = torch.maximum(counts.max(0).values, self.elsewhere.float())
        counts = torch.where(missing, most.expand_as(counts), counts)
        return torch.where(missing[None], filled, logits), counts

    def _related(self, logits: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Views of classes that a party has not seen, from its views of the classes that are like them."""
        knows = counts > KNOWN
        relation = torch.stack([prototypes.relations(mu, known) for mu, known in zip(self.mu, knows, strict=True)])
        holders = knows.float()[:, :, None]
        average = (holders * relation).sum(0) / holders.sum(0).clamp_min(1)
        missing = ~knows & knows.any(0)
        filled = logits @ average.T
        counts = torch.where(missing, counts.max(0).values.expand_as(counts), counts)
        return torch.where(missing[None], filled, logits), counts

    def loss(self, z: list[Tensor], present: Tensor, labels: Tensor, shares: Tensor, generator: torch.Generator,
             flip: Tensor | None = None) -> Tensor:  # fmt: skip
        """The loss of an aligned batch: of the fused scores, with parties left out at random, and of every view."""
        method = self.method
        shares = shares if method.adjust else (shares > 0).float()
        logits = fuse.view_logits(z, self.nu)
        shown = self._drop(present, generator)
        scores = self.combine(z, logits, self.counts, shown)
        value = method.fused_weight * fuse.loss(scores, labels, shares, flip).mean()
        for k in range(len(z)):
            here = present[:, k]
            if method.view_weight and bool(here.any()):
                each = fuse.loss(logits[:, k], labels, shares, flip)
                value = value + method.view_weight / len(z) * (each * here).sum() / here.sum()
        return value

    def _drop(self, present: Tensor, generator: torch.Generator) -> Tensor:
        chance = self.training_config.dropout
        if chance == 0 or present.shape[1] == 1:
            return present
        kept = present & (torch.rand(present.shape, generator=generator) >= chance)
        # Never all: a row that lost every party keeps them all.
        return torch.where(kept.any(1, keepdim=True), kept, present)
