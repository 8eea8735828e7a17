"""Bytes of a core's messages, from shapes alone."""

from __future__ import annotations

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
    entries of the core, as numbers of 64 bits.
    """
    kind, dims, depth = kind_of(settings.frames), settings.mask == "dims", shape.depth
    rank = kept_rank(shape.keep, experiment.rank) if dims else experiment.rank
    start = nearest_relation if settings.relation == "nearest" else depth_relation
    covered = int((start(depth, shape.blocks) > 0).any(1).sum())
    own, everybody = (len(kind.core_slots(settings, slots)) for slots in (shape.slots, shape.all_slots))
    pairs, received = (covered * own, depth * own) if kind.fits(shape) else (0, 0)
    entries = rank**2 if dims else round(shape.keep * experiment.rank**2)
    mask = 0 if dims or shape.keep == 1 else -(-pairs * experiment.rank**2 // 8)
    up = Code(experiment.wire.dtype, experiment.wire.top_k).size(pairs, pairs * entries) + mask
    if experiment.secure_aggregation:
        up = 8 * depth * everybody * experiment.rank**2
    down = DOWNLOADS[experiment.wire.download].itemsize * received * rank**2
    return PlannedBytes(up, down, *kind.setup_bytes(experiment, settings, shape))
