"""The clients of a run that live in this process."""

from __future__ import annotations

from collections.abc import Sequence

from accelerate import Accelerator

from h2tune.client import Client
from h2tune.config import Experiment
from h2tune.frames.sources import load_anchors
from h2tune.participant.base_models import ModelPool
from h2tune.participant.context import Watch
from h2tune.store import RunStore


def build_clients(
    experiment: Experiment,
    store: RunStore,
    models: ModelPool,
    accelerator: Accelerator | None = None,
    watch: Watch | None = None,
    names: Sequence[str] | None = None,
) -> dict[str, Client]:
    """The clients of a run in this process; ``names`` picks some of them."""
    anchors = load_anchors(experiment.anchors, experiment.anchor_words)
    return {
        c.name: Client(c, experiment, models, anchors, store.client(c.name), watch, accelerator)
        for c in experiment.clients
        if names is None or c.name in names
    }
