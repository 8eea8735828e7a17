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


def planned_core_bytes(experiment: Experiment, settings: CoreSettings, shape: ModelShape) -> PlannedBytes:
    """Covered (depth, slot) pairs x kept entries x width, one bit per entry where the mask is learned.

    A model that the frames do not fit covers nothing and is sent nothing. Under secure aggregation everybody sends all
    entries of the core, as numbers of 64 bits, and gets those that are summed.
    """
    kind, dims, depth = kind_of(settings.frames), settings.mask == "dims", shape.depth
    rank = core_rank(experiment, settings, shape)
    slots = kind.core_slots(settings, shape.slots) if kind.fits(shape) else []
    pairs, received = len(_covered(settings, shape)), depth * len(slots) * rank**2
    entries = rank**2 if dims else round(shape.keep * experiment.rank**2)
    mask = 0 if dims or shape.keep == 1 else -(-pairs * experiment.rank**2 // 8)
    up = Code(experiment.wire.dtype, experiment.wire.top_k).size(pairs, pairs * entries) + mask
    if experiment.secure_aggregation:
        up = 8 * depth * len(kind.core_slots(settings, shape.all_slots)) * experiment.rank**2
        if len(shape.company) == len(experiment.clients):
            summed = summed_ranks(experiment, settings, shape.company.values())
            received = sum(min(rank, least) ** 2 for (_, slot), least in summed.items() if slot in slots)
    down = DOWNLOADS[experiment.wire.download].itemsize * received
    return PlannedBytes(up, down, *kind.setup_bytes(experiment, settings, shape))


def core_rank(experiment: Experiment, settings: CoreSettings, shape: ModelShape) -> int:
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


def summed_ranks(
    experiment: Experiment, settings: CoreSettings, shapes: Iterable[ModelShape]
) -> dict[tuple[int, str], int]:
    """Under secure aggregation, of every (depth, slot) pair that anybody covers the rank up to which enough clients do."""
    ranks: dict[tuple[int, str], list[int]] = {}
    for shape in shapes:
        for pair in _covered(settings, shape):
            ranks.setdefault(pair, []).append(core_rank(experiment, settings, shape))
    return {pair: sorted(found)[-LEAST] if len(found) >= LEAST else 0 for pair, found in ranks.items()}


def summed_share(experiment: Experiment, settings: CoreSettings, shapes: list[ModelShape]) -> float:
    """Share of the covered entries of a core that are summed under secure aggregation."""
    largest: dict[tuple[int, str], int] = {}
    for shape in shapes:
        for pair in _covered(settings, shape):
            largest[pair] = max(largest.get(pair, 0), core_rank(experiment, settings, shape))
    summed = sum(rank**2 for rank in summed_ranks(experiment, settings, shapes).values())
    return summed / (sum(rank**2 for rank in largest.values()) or 1)
