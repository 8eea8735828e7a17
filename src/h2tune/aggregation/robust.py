"""Means of cores that some bad clients cannot drag away: coordinate rules, Krum, norm bounding.

    median      coordinate by coordinate                              (Yin et al. 2018, arXiv 1803.01498)
    trimmed     mean without the share b at either end                (Yin et al. 2018)
    krum        the one update that is nearest to its n - f - 2 nearest   (Blanchard et al. 2017, NeurIPS)
    multi-krum  mean of the n - f best by that score
    closest     mean of the n - f that are closest together           (minimum diameter: Rousseeuw 1985; El Mhamdi 2020, 1905.03853)
    agreeing    mean of the updates that point the median's way, each scaled to their median norm  (after Cao et al.
                2021, FLTrust, arXiv 2012.13995, with the median in the place of the server's own update); cores that
                are far smaller than most are enlarged before
    bounded     mean of the updates, each scaled down to a radius     (Sun et al. 2019, arXiv 1911.07963)

Entry by entry over the clients that cover it; an entry that nobody covers keeps its value. Every client counts once:
n_i is a client's own claim. The order of arrival changes nothing. Unlike the streaming sum of `h2tune.core.client_core`
these rules need all updates of a round at once: **memory grows with the number of clients**, by one core and its
coverage each.

What no rule can do: judge an entry that one client alone covers (it takes that client's value), or protect with fewer
than three clients. Where exactly two cover an entry, median and trimmed mean let the core as it was vote as a third:
the result lies between "no change" and what the more cautious of the two says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor

from h2tune.aggregation.base import Aggregator, Decode
from h2tune.core.exact_sum import CoreSum

FEWEST = 3  # clients among which one that differs can be told at all
SUBSETS = 100_000  # that `closest` compares at most
UNIT = 4.0  # all begin a round with the same core: how much smaller than others' it may be at the end


@dataclass(frozen=True)
class Rule:
    """A robust rule and its figures.

    Attributes:
        name: ``median``, ``trimmed``, ``krum``, ``multi-krum``, ``closest``, ``agreeing`` or ``bounded``.
        trim: share that the trimmed mean leaves out at either end, rounded up to whole clients.
        faulty: f, the bad clients that krum, multi-krum and closest must survive.
        radius: largest norm of a bounded update; None is the median norm of the round.
    """

    name: str
    trim: float = 0.25
    faulty: int = 1
    radius: float | None = None

    @property
    def needs(self) -> int:
        """Clients without which the rule means nothing."""
        if self.name in ("krum", "multi-krum"):
            return 2 * self.faulty + 3
        if self.name == "closest":
            return 2 * self.faulty + 1
        return 1 if self.name == "bounded" and self.radius is not None else FEWEST

    def without(self, excluded: int) -> Rule:
        """The rule when so many bad clients are gone."""
        return replace(self, faulty=max(0, self.faulty - excluded))

    def needs_without(self, excluded: int) -> int:
        """Clients that must be left: of a rule that means nothing for one, two at least."""
        left = min(self.needs - excluded, self.without(excluded).needs)
        return max(left, 2) if self.needs > 1 else 1


def median(values: Tensor, held: Tensor) -> Tensor:
    """Median over the first dimension of what is held; the mean of the middle two for an even number."""
    count = held.sum(0)
    ordered = torch.where(held, values, torch.inf).sort(0).values
    low, high = ((count - 1).clamp_min(0) // 2)[None], (count // 2).clamp_max(len(values) - 1)[None]
    middle = (ordered.gather(0, low) + ordered.gather(0, high))[0] / 2
    return torch.where(count > 0, middle, 0.0)


def trimmed_mean(values: Tensor, held: Tensor, share: float) -> Tensor:
    """Mean of what is held without the ``ceil(share n)`` least and largest, of which at least one value is left."""
    count = held.sum(0)
    cut = torch.minimum((share * count - 1e-9).ceil().long(), (count - 1).clamp_min(0) // 2)
    ordered = torch.where(held, values, 0.0).masked_fill(~held, torch.inf).sort(0).values
    place = torch.arange(len(values)).view(-1, *[1] * (values.ndim - 1))
    inside = (place >= cut) & (place < count - cut)
    return torch.where(inside, ordered, 0.0).sum(0) / inside.sum(0).clamp_min(1)


def with_vote(values: Tensor, held: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Where exactly two clients cover an entry, ``start`` as a third value."""
    return torch.cat([values, start[None]]), torch.cat([held, (held.sum(0) == 2)[None]])


def distances(values: Tensor, held: Tensor) -> Tensor:
    """Squared distance between any two updates, n x n, infinite to oneself.

    It is the mean over the entries that both cover, so that clients of other ranks and slots compare; two that have no
    entry in common are infinitely far apart.
    """
    flat, covers = torch.where(held, values, 0.0).flatten(1), held.flatten(1)
    found = torch.full((len(flat), len(flat)), torch.inf, dtype=torch.float64)
    for i in range(len(flat)):
        common = covers & covers[i]
        squares = torch.where(common, flat - flat[i], 0.0).square().sum(1)
        found[i] = torch.where(common.any(1), squares / common.sum(1).clamp_min(1), torch.inf)
    return found.fill_diagonal_(torch.inf)


def krum_scores(values: Tensor, held: Tensor, faulty: int) -> Tensor:
    """Sum of each update's n - f - 2 least distances to others."""
    return distances(values, held).sort(1).values[:, : max(1, len(values) - faulty - 2)].sum(1)


def closest(values: Tensor, held: Tensor, faulty: int) -> list[int]:
    """The n - f updates whose two farthest members are nearest; the first such set in order."""
    apart = distances(values, held).tolist()
    sets = combinations(range(len(values)), len(values) - faulty)
    return list(min(sets, key=lambda chosen: max((apart[i][j] for i, j in combinations(chosen, 2)), default=0.0)))


def agreeing(values: Tensor, held: Tensor, start: Tensor) -> list[int]:
    """Updates whose cosine with the median update is above 0 and above half of the median cosine.

    All are brought to one norm first, so that nobody moves the median by being loud.
    """
    lengths = norms(values, held, start)
    scale = (lengths.median() / lengths.clamp_min(1e-30)).view(-1, *[1] * start.ndim)
    updates = torch.where(held, values - start, 0.0) * scale
    middle = median(*with_vote(updates, held, torch.zeros_like(start)))
    theirs = torch.where(held, middle, 0.0)  # the median where the client covers it
    sizes = updates.flatten(1).norm(dim=1) * theirs.flatten(1).norm(dim=1)
    cosines = (updates * theirs).flatten(1).sum(1) / sizes.clamp_min(1e-30)
    least = max(0.0, float(cosines.median()) / 2)
    kept = [i for i, cosine in enumerate(cosines.tolist()) if cosine > least]
    return kept or list(range(len(values)))  # nobody moved at all


def in_usual_unit(values: Tensor, held: Tensor) -> Tensor:
    """Cores of a root mean square below the median one by more than a factor `UNIT`, enlarged to the median.

    Who sends his core in another unit sends the same wrong update, -S, as all who make that mistake: a group that agrees.
    Cores that are too large need nothing: what is left of their updates when they have the usual length does no harm.
    """
    sizes = norms(values, held, torch.zeros_like(values[0])) / held.flatten(1).sum(1).clamp_min(1).sqrt()
    usual = sizes.median()
    scale = torch.where(sizes * UNIT < usual, usual / sizes.clamp_min(1e-30), 1.0)
    return values * scale.view(-1, *[1] * (values.ndim - 1))


def norms(values: Tensor, held: Tensor, start: Tensor) -> Tensor:
    """L2 norm of each update ``values - start`` over its covered entries."""
    found: Tensor = torch.where(held, values - start, 0.0).flatten(1).norm(dim=1)
    return found


class Robust(Aggregator):
    """Keeps a round's updates until the rule is applied to all of them."""

    def __init__(self, decode: Decode, rule: Rule) -> None:
        super().__init__(decode)
        self.rule = rule

    def start(self, before: Tensor, covers: Mapping[str, Tensor]) -> None:
        self.before = before
        self.updates: dict[str, tuple[Tensor, Tensor]] = {}

    def fold(self, client: str, core: Tensor, coverage: Tensor, weight: int) -> None:
        r = core.shape[-1]
        whole = torch.zeros(self.before.shape, dtype=torch.float64)
        held = torch.zeros(self.before.shape, dtype=torch.bool)
        whole[..., :r, :r], held[..., :r, :r] = torch.where(coverage, core.double(), 0.0), coverage
        self.updates[client] = whole, held

    def result(self, excluded: int = 0) -> Tensor:
        """The rule's result; where the round has too few clients for it, something more careful, with a notice.

        That is the median, which with two updates goes no further than the more cautious one; a lone update, which
        nobody else can vouch for, is left out. Clients that the run has excluded are among the bad ones that the
        rule must survive.
        """
        n, rule = len(self.updates), self.rule.without(excluded)
        needs = self.rule.needs_without(excluded)
        if n >= needs:
            return self._apply(rule, self.before)
        why = f"{rule.name} needs {needs} updates and this round has {n}"
        if n > 1:
            self.notices.append(f"{why}: the coordinate median was taken")
            return self._apply(Rule("median"), self.before)
        self.notices.append(f"{why}: the core stays as it was")
        return self.before.clone()

    def _apply(self, rule: Rule, before: Tensor) -> Tensor:
        names = sorted(self.updates)
        values, held = (torch.stack([self.updates[n][part] for n in names]) for part in (0, 1))
        start = before.double()
        if rule.name == "bounded":
            return self._bounded(values, held, before)
        if rule.name == "agreeing":
            values = in_usual_unit(values, held)
            kept = agreeing(values, held, start)
            return self._bounded(values[kept], held[kept], before, alike=True)
        if rule.name == "closest":
            kept = closest(values, held, rule.faulty)
            return self._sum(values[kept], held[kept], before)
        if "krum" in rule.name:
            return self._nearest(values, held, before, rule.faulty)
        votes = with_vote(values, held, start)
        mean = median(*votes) if rule.name == "median" else trimmed_mean(*votes, rule.trim)
        return torch.where(held.any(0), mean, start).to(before.dtype)

    def _nearest(self, values: Tensor, held: Tensor, before: Tensor, faulty: int) -> Tensor:
        """The best update by Krum's score, or the mean of the best n - f; ties go to the first name."""
        order = krum_scores(values, held, faulty).argsort(stable=True)
        kept = order[: 1 if self.rule.name == "krum" else len(order) - faulty].tolist()
        return self._sum(values[kept], held[kept], before)

    def _bounded(self, values: Tensor, held: Tensor, before: Tensor, alike: bool = False) -> Tensor:
        """Updates scaled down to the radius; ``alike``: all to the median norm, so that none is there in name only."""
        start, lengths = before.double(), norms(values, held, before.double())
        ordered = lengths.sort().values
        middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
        radius = float(middle) if alike or self.rule.radius is None else self.rule.radius
        for index, length in enumerate(lengths.tolist()):
            if length > radius or (alike and 0 < length < radius):  # others stay themselves, to the last bit
                values[index] = start + (values[index] - start) * (radius / length)
        return self._sum(values, held, before)

    def _sum(self, values: Tensor, held: Tensor, before: Tensor) -> Tensor:
        total = CoreSum(before.shape)
        for core, coverage in zip(values, held, strict=True):
            total.add(core, coverage, 1)
        return total.mean(before)


def rule_of(aggregate: str, trim: float, faulty: int | None, radius: float | None, clients: int) -> Rule:
    """The rule for rounds of so many clients.

    By default krum survives as many bad ones as that number allows, and closest a third.
    """
    most = clients // 3 if aggregate == "closest" else math.floor((clients - 3) / 2)
    return Rule(aggregate, trim, max(1, most) if faulty is None else faulty, radius)
