"""Bytes of a core's messages, from shapes alone."""

from __future__ import annotations

from collections.abc import Iterable

from h2tune.aggregation.secure_mean import LEAST
from h2tune.config import Experiment
from h2tune.core.compress import Code
from h2tune.core.masks import kept_rank
from h2tune.core.relation import depth_relation, nearest_relation
from h2tune.frames.registry import kind_of
from h2tune.methods.base import ModelShape, PlannedBytes
from h2tune.methods.core_server import DOWNLOADS
from h2tune.methods.h2tune_settings import CoreSettings

# Bytes of keys, shares and commitments for each other client of a secure round; measured.
UP_EACH, DOWN_EACH = 220, 370


def planned_core_bytes(experiment: Experiment, settings: CoreSettings, shape: ModelShape) -> PlannedBytes:
    """Covered (depth, slot) pairs x kept entries x width, one bit per entry where the mask is learned.

    A model that the frames do not fit covers nothing and is sent nothing. Under secure aggregation everybody sends all
    entries of the core, as numbers of 64 bits, and gets those that are summed; beside them go keys and shares for each
    other client.
    """
    kind, dims, depth = kind_of(settings.frames), settings.mask == "dims", shape.depth
    if not kind.shares(experiment, shape):
        return PlannedBytes(0, 0, *kind.setup_bytes(experiment, settings, shape))
    rank = _core_rank(experiment, settings, shape)
    slots = kind.core_slots(settings, shape.slots) if kind.fits(shape) else []
    pairs, received = len(_covered(settings, shape)), depth * len(slots) * rank**2
    entries = rank**2 if dims else round(shape.keep * experiment.rank**2)
    mask = 0 if dims or shape.keep == 1 else -(-pairs * experiment.rank**2 // 8)
    up = Code(experiment.wire.dtype, experiment.wire.top_k).size(pairs, pairs * entries) + mask
    if experiment.secure_aggregation:
        up = 8 * depth * len(kind.core_slots(settings, shape.all_slots)) * experiment.rank**2
        if len(shape.company) == len(experiment.clients):
            pairs_of_all = _ranks(experiment, settings, shape.company.values())
            received = sum(min(rank, _summed(r)) ** 2 for (_, slot), r in pairs_of_all.items() if slot in slots)
    down = DOWNLOADS[experiment.wire.download].itemsize * received
    if experiment.secure_aggregation:
        others = experiment.clients_per_round - 1
        up, down = up + UP_EACH * others, down + DOWN_EACH * others
    return PlannedBytes(up, down, *kind.setup_bytes(experiment, settings, shape))


def _core_rank(experiment: Experiment, settings: CoreSettings, shape: ModelShape) -> int:
    """Rank of a client's part of the core."""
    return kept_rank(shape.keep, experiment.rank) if settings.mask == "dims" else experiment.rank


def _covered(settings: CoreSettings, shape: ModelShape) -> list[tuple[int, str]]:
    """(depth, slot) pairs of the core that a client covers."""
    kind = kind_of(settings.frames)
    if not kind.fits(shape):
        return []
    start = nearest_relation if settings.relation == "nearest" else depth_relation
    depths = (start(shape.depth, shape.blocks) > 0).any(1).nonzero()[:, 0].tolist()
    return [(depth, slot) for depth in depths for slot in kind.core_slots(settings, shape.slots)]


def _ranks(
    experiment: Experiment, settings: CoreSettings, shapes: Iterable[ModelShape]
) -> dict[tuple[int, str], list[int]]:
    """Of every (depth, slot) pair that anybody covers, the ranks of the clients that cover it, the largest first."""
    found: dict[tuple[int, str], list[int]] = {}
    for shape in shapes:
        for pair in _covered(settings, shape):
            found.setdefault(pair, []).append(_core_rank(experiment, settings, shape))
    return {pair: sorted(ranks, reverse=True) for pair, ranks in found.items()}


def _summed(ranks: list[int]) -> int:
    """The rank up to which enough clients cover a pair for a secure sum, from the ranks of all that cover it."""
    return ranks[LEAST - 1] if len(ranks) >= LEAST else 0


def summed_share(experiment: Experiment, settings: CoreSettings, shapes: Iterable[ModelShape]) -> float:
    """Share of the covered entries of a core that are summed under secure aggregation, 0 to 1."""
    pairs = _ranks(experiment, settings, shapes).values()
    return sum(_summed(ranks) ** 2 for ranks in pairs) / (sum(ranks[0] ** 2 for ranks in pairs) or 1)
