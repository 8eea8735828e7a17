"""What deserves attention before anything is trained, in the words in which `plan` and `run` say it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from h2tune import tasks
from h2tune.config import ClientConfig, Experiment
from h2tune.methods.registry import resolve_method
from h2tune.participant.devices import missing_device
from h2tune.tasks.example import Task


def about_sharing(experiment: Experiment, known: Sequence[Task | None] | None = None) -> str | None:
    """Who shares nothing, if anybody: frames by effect go by predictions of words, and a classification head makes none.

    Args:
        known: the clients' tasks, None for one that cannot be built; by default they are built here.
    """
    settings = resolve_method(experiment.method)[1]
    if not settings.inner.has_core or getattr(settings.inner, "frames", "") != "effect":
        return None
    known = [tasks.build_task(c.task) for c in experiment.clients] if known is None else known
    heads = [c.name for c, task in zip(experiment.clients, known, strict=True) if task and task.kind == "classify"]
    if not heads:
        return None
    alone = len(experiment.clients) - len(heads) < 2
    return (
        f"{', '.join(heads)}: with a classification head (kind: classify) a model predicts no words and shares nothing; kind:"
        " choice or generate shares"
        + ("; as it is, nobody shares with anybody, and every client trains alone" if alone else "")
    )


def about_device(experiment: Experiment) -> str | None:
    """A device that this machine lacks, which another one may have."""
    missing = missing_device(experiment.device)
    return f"{missing}; the run needs a machine that has it, or device: auto" if missing else None


def about_revision(client: ClientConfig) -> str | None:
    """A model of the Hub of which no revision is pinned."""
    away = "/" in client.model and not Path(client.model).is_absolute() and not Path(client.model).exists()
    return f"{client.model} has no pinned revision; it may change under you" if away and not client.revision else None
