"""Secure aggregation of cores (`h2tune.aggregation.secret_sharing`) as a method sees it: what a client sends, and the mean of the sums.

A client sends w_i S_i as whole numbers under masks, over all entries of the core: zeros where it covers nothing, so that
every vector has one length. Which entries a client covers, and its weight, the server knows anyway; from them and the
revealed sum follows the mean ``sum w C S / sum w C``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from h2tune.aggregation.secret_sharing import (
    INSTALL,
    STEP_BITS,
    ClientSecrets,
    MaskedSum,
    SecureError,
    from_steps,
    is_available,
    to_steps,
)
from h2tune.config import Wire
from h2tune.core.client_core import CoreShape

if TYPE_CHECKING:
    from h2tune.config import Experiment
    from h2tune.methods.h2tune_settings import H2TuneSettings

LARGEST_MEAN = 1e5  # of an entry: cores have entries near 1, a sum that was revealed with false shares near 1e8
LEAST = 3  # of two clients each knows the other's core from the sum


def threshold_of(experiment: Experiment) -> int:
    """How many clients must help to reveal a sum: more than two thirds of a round's, unless the experiment says."""
    section = experiment.secure_aggregation
    assert section is not None
    return section.threshold or 2 * experiment.clients_per_round // 3 + 1


def against_secrecy(experiment: Experiment, settings: H2TuneSettings) -> list[str]:
    """What secure aggregation excludes, or lacks."""
    count = experiment.clients_per_round
    threshold = threshold_of(experiment)
    masked = settings.mask == "entries" and any(c.keep != 1 for c in experiment.clients)
    found = {
        f"needs {LEAST} clients in a round, there are {count}: from a sum of two each knows the other's": count
        < LEAST,
        f"threshold {threshold} can never be met by {count} clients": threshold > count,
        f"threshold {threshold} must be more than half of {count} clients": 2 * threshold <= count,
        "needs aggregate: mean (other rules must see every update)": settings.aggregate != "mean",
        "excludes wire: sums are of whole numbers of 64 bits": experiment.wire != Wire(),
        "excludes privacy: the server must clip every update once more": experiment.privacy is not None,
        "excludes mask: entries with keep below 1 (which entries are kept would have to be told)": masked,
        "excludes relation: similarity (coverage must be known from sizes alone)": settings.relation == "similarity",
        "excludes share: false": not settings.share,
        INSTALL: not is_available(),
    }
    return [text for text, wrong in found.items() if wrong]


def masked_tensors(core: Tensor, coverage: Tensor, rank: int, weight: int, secrets: ClientSecrets,
                   sealed: dict[str, str]) -> dict[str, Tensor]:  # fmt: skip
    """What a client sends for S (L x slots x r x r): y_i over the whole core of rank R."""
    whole, r = torch.zeros(*core.shape[:2], rank, rank), core.shape[-1]
    whole[..., :r, :r] = torch.where(coverage, core.detach().cpu(), 0.0)
    largest = float(whole.abs().max()) * weight * (len(sealed) + 1)
    if largest >= 2.0 ** (63 - STEP_BITS):
        raise SecureError(f"{secrets.name}: its core times its weight is too large to be summed in 64 bits")
    masked = secrets.mask(to_steps(whole, weight), sealed)
    return {"masked": torch.from_numpy(masked.view("int64"))}


class MaskedMean:
    """The server's half of one round."""

    def __init__(self, shape: CoreShape, publics: dict[str, tuple[str, str]], context: bytes) -> None:
        self.shape = shape
        self.sum = MaskedSum(shape.zeros().numel(), publics, context)
        self.weight = shape.zeros().double()

    def add(self, name: str, tensors: dict[str, Tensor], covers: Tensor, weight: int) -> None:
        """Raises ValueError for anything but one masked vector of each client."""
        found = tensors.get("masked")
        if tensors.keys() != {"masked"} or found is None or found.dtype != torch.int64 or found.dim() != 1:
            raise ValueError("it holds something else than one masked vector")
        self.sum.add(name, found.numpy().view("uint64"))
        self.weight += weight * covers.double()

    def mean(self, before: Tensor, members: list[str], revealed: dict[str, dict[str, str]], threshold: int) -> Tensor:
        """``sum w C S / sum w C``; entries that nobody covers keep their value ``before``."""
        total = from_steps(self.sum.unmask(members, revealed, threshold), before.shape)
        mean = total / self.weight.clamp_min(1)
        if float(mean.abs().max()) > LARGEST_MEAN:
            raise ValueError("the sum that was revealed is none of cores: somebody's shares were false")
        return torch.where(self.weight > 0, mean, before.double()).to(before.dtype)
