"""What deserves attention before anything is trained, in the words in which `plan` and `run` say it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from h2tune import tasks
from h2tune.config import ClientConfig, Experiment
from h2tune.frames import registry as frames
from h2tune.methods.base import Method
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


def about_rates(experiment: Experiment, names: Collection[str] | None = None) -> list[str]:
    """Rates under `methods:` that some clients do not take, so that methods that are compared differ in more than is meant.

    Args:
        names: the methods that are compared; None takes all that the file has changes for.
    """
    own = [client.name for client in experiment.clients if client.learning_rate]
    return [
        f"methods.{name}.learning_rate is without effect for {', '.join(own)}: a learning_rate of the client's own comes first;"
        " leave one of the two out"
        for name, changes in experiment.methods.items()
        if own and changes.learning_rate and (names is None or name in names)
    ]


def about_use(experiment: Experiment) -> str | None:
    """Keys that the file's method does not read; `compare` may run another that does, so they are no mistake."""
    method, settings = resolve_method(experiment.method)
    unread = []
    if not settings.inner.has_core:
        unread += ["depth"] * (experiment.depth is not None)
        if not any_rank(method, settings):
            unread += [f"keep ({c.name})" for c in experiment.clients if c.keep != 1]
    # Frames of the package's own registry practise nothing; what an entry point adds may.
    if getattr(settings.inner, "frames", "anchor") in frames.OWN:
        unread += [f"practice ({c.name})" for c in experiment.clients if c.practice]
    if experiment.public and not settings.asks_public:
        unread.append("public")
    return f"without effect with method {method.name}: {', '.join(unread)}" if unread else None


def any_rank(method: Method, settings: Any) -> bool:
    """Whether `keep` gives clients of a method without a core different ranks; one that wraps another goes by that."""
    host = getattr(settings, "host_method", (method,))[0]
    return getattr(host.client, "any_rank", False)
