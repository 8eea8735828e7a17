"""Differential privacy for clients: clipped updates, Gaussian noise on their sum, and what that spends.

    D_i <- D_i min(1, clip / |D_i|)                      over the entries that client i covers
    S   <- S + (sum_i D_i + N(0, (noise clip)^2)) / m    m: how many of the round's selected clients cover an entry

(McMahan et al. 2018, arXiv 1710.06963, with a fixed denominator.) Two runs are neighbours if they differ in all that one
client sends: its updates, or zeros. Then the sum differs by at most ``clip`` in L2 norm over all entries together,
and the noise on it has standard deviation ``noise clip``: a Gaussian mechanism of multiplier ``noise``, in every round. m is
public and fixed before the round: coverage follows from depth, slots and rank, and a client that fails still counts. So
the division comes after the mechanism and costs nothing; where few clients cover an entry its noise is larger,
``noise clip / m``, which is what the same protection costs there.

Noise comes from the operating system's source of randomness, never from a run's seed, and from no generator whose state
could be worked out from noise that somebody can see. It is drawn in double precision: attacks on the low bits of
floating-point noise (Mironov 2012) are not defended against.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from h2tune.aggregation.base import Aggregator, Mean
from h2tune.errors import ProtocolError

Source = Callable[[int], bytes]
INSTALL = "needs an accountant: pip install 'h2tune[privacy]'"


def clipped(update: Tensor, coverage: Tensor, limit: float) -> Tensor:
    """The covered entries of an update, scaled down to L2 norm ``limit`` if it is longer; zero elsewhere."""
    update = torch.where(coverage, update, 0.0)
    length = float(update.double().norm())
    return update if length <= limit else update * (limit / length)


def standard_normal(shape: Sequence[int], source: Source = os.urandom) -> Tensor:
    """Normal numbers (Box and Muller) from 16 random bytes each; only tests pass another ``source``."""
    count = math.prod(shape)
    whole = torch.frombuffer(bytearray(source(16 * count)), dtype=torch.int64).view(2, count) >> 11
    first, second = ((whole & (1 << 53) - 1).double() + 0.5) / (1 << 53)
    normal: Tensor = (-2 * first.log()).sqrt() * (2 * math.pi * second).cos()
    return normal.view(tuple(shape))


class Private(Aggregator):
    """Clips each update, and adds noise to the mean that another aggregator makes of them.

    Args:
        inner: sums the clipped updates.
        clip: largest norm of an update. noise: multiplier of the Gaussian noise.
        source: of the noise; only tests pass another one.
    """

    def __init__(self, inner: Mean, clip: float, noise: float, source: Source = os.urandom) -> None:
        super().__init__(inner.decode)
        self.inner, self.clip, self.noise, self.source = inner, clip, noise, source

    def start(self, before: Tensor, covers: Mapping[str, Tensor]) -> None:
        self.before, self.covers = before, dict(covers)
        self.inner.start(torch.zeros(before.shape, dtype=torch.float64), covers)

    def fold(self, client: str, core: Tensor, coverage: Tensor, weight: int) -> None:
        r = coverage.shape[-1]
        if not torch.equal(coverage, self.covers[client][..., :r, :r]) or self.covers[client].sum() != coverage.sum():
            raise ProtocolError(f"the update of {client} covers other entries than its depth, slots and rank say")
        update = core.double() - self.before[..., :r, :r].double()
        self.inner.fold(client, clipped(update, coverage, self.clip), coverage, 1)

    def result(self, excluded: int = 0) -> Tensor:
        """The new core. Every call draws new noise: call it once per round, and publish nothing else of the sum."""
        count = torch.stack(list(self.covers.values())).sum(0)
        total = self.inner.result() * self.inner.sum.weight
        noisy = total + self.noise * self.clip * standard_normal(self.before.shape, self.source)
        before = self.before.double()
        self.spent.append(self.noise)
        return torch.where(count > 0, before + noisy / count.clamp_min(1), before).to(self.before.dtype)


def has_accountant() -> bool:
    return importlib.util.find_spec("dp_accounting") is not None


def epsilon(noises: Sequence[float], delta: float) -> float:
    """Epsilon at ``delta`` of one round for each noise multiplier, by Renyi differential privacy (`dp-accounting`).

    Every round counts in full for every client: the sample of clients follows from the run's public seed, so no
    privacy is gained by not being selected.
    """
    return _epsilon(tuple(sorted(Counter(noises).items())), delta)


@lru_cache(maxsize=1024)
def _epsilon(rounds: tuple[tuple[float, int], ...], delta: float) -> float:
    if not rounds:
        return 0.0
    import dp_accounting
    from dp_accounting import rdp

    accountant = rdp.RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    for noise, count in rounds:
        accountant.compose(dp_accounting.GaussianDpEvent(noise), count)
    return float(accountant.get_epsilon(delta))


def rounds_within(noise: float, delta: float, budget: float, most: int) -> int:
    """How many rounds, up to ``most``, spend no more than ``budget``."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if epsilon([noise] * middle, delta) <= budget else (low, middle - 1)
    return low


def noise_in_words(noise: float, clip: float, clients: int, entries: int) -> str:
    """What the noise of a round does, in a sentence.

    Args:
        clients: of a round, all of which cover all entries; where fewer do, noise is larger.
        entries: of the core, d. Noise on the mean has standard deviation ``noise clip / clients`` in each, so its norm is
            about ``noise clip sqrt(d) / clients``; the mean of clipped updates is no longer than ``clip``.
    """
    norm = noise * clip * math.sqrt(entries) / clients
    enough = math.ceil(2 * noise * math.sqrt(entries))
    does = (
        f"so a round's mean is {norm / clip:.1f} times noise: the updates drown"
        if norm > clip
        else f"that is {norm / clip:.0%} of it"
    )
    few = "" if clients >= enough else f"; from about {enough:,} clients a round on, noise is at most half of it"
    return (
        f"with {clients} clients the noise on a mean of {entries:,} entries has norm {norm:.3g}, the mean update at most"
        f" {clip:g} (`clip`), {does}{few}"
    )
