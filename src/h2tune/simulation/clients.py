"""The clients of a run that live in this process, one after the other or side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise

from accelerate import Accelerator

from h2tune.client import Client
from h2tune.config import Experiment
from h2tune.frames.sources import load_anchors
from h2tune.participant.base_models import ModelPool
from h2tune.participant.context import Watch, make_accelerator
from h2tune.participant.together import TogetherTrainer
from h2tune.store import RunStore
from h2tune.transport.inprocess import InProcess

# Tokens that fill a pass. More made an update no cheaper on one core of a CPU (docs/scale.md); on a GPU none was at hand to try.
FULL, FULL_GPU = 2048, 65536


def build_clients(
    experiment: Experiment,
    store: RunStore,
    models: ModelPool,
    accelerator: Accelerator | None = None,
    watch: Watch | None = None,
    names: Sequence[str] | None = None,
    trainer: TogetherTrainer | None = None,
) -> dict[str, Client]:
    """The clients of a run in this process; ``names`` picks some of them, ``trainer`` trains those that can be trained together."""
    anchors = load_anchors(experiment.anchors, experiment.anchor_words)
    return {
        c.name: Client(
            c,
            experiment,
            models,
            anchors,
            store.client(c.name),
            watch,
            accelerator,
            None if c.row_privacy else trainer,
        )
        for c in experiment.clients
        if names is None or c.name in names
    }


def in_process(
    experiment: Experiment,
    store: RunStore,
    models: ModelPool,
    accelerator: Accelerator | None = None,
    watch: Watch | None = None,
    names: Sequence[str] | None = None,
) -> InProcess[Client]:
    """Clients of a run, and the way to them: with ``parallel`` other than 1 those of one base model act side by side."""
    if experiment.parallel == 1:
        return InProcess(build_clients(experiment, store, models, accelerator, watch, names))
    accelerator = accelerator or make_accelerator(experiment, models.device)
    trainer = TogetherTrainer(experiment.training, accelerator, len(experiment.clients), partial(_warn, store))
    return Groups(build_clients(experiment, store, models, accelerator, watch, names, trainer), trainer)


def _warn(store: RunStore, text: str) -> None:
    store.event("warning", text)


class Groups(InProcess[Client]):
    """Lets clients of one base model act in groups, whose local training is carried out side by side."""

    def __init__(self, clients: dict[str, Client], trainer: TogetherTrainer) -> None:
        super().__init__(clients)
        self.trainer = trainer

    def exchange(self, requests: dict[str, bytes], fresh: bool = False) -> Iterator[tuple[str, bytes]]:
        self.known |= requests.keys()
        for names in self.groups(requests):
            acts: list[Callable[[], bytes]] = [partial(self.clients[n].handle, requests[n]) for n in names]
            answers = self.trainer.together(acts) if len(acts) > 1 else [acts[0]()]
            yield from zip(names, answers, strict=True)

    def groups(self, names: Iterable[str]) -> list[list[str]]:
        """Clients of one base model, as many at a time as train side by side, in groups of about the same size."""
        on_base: dict[int, list[str]] = {}
        for name in names:
            on_base.setdefault(id(self.clients[name].context.base), []).append(name)
        found = []
        for several in on_base.values():
            count = -(-len(several) // min(self.size(several), self.trainer.most))
            size, more = divmod(len(several), count)
            ends = [i * size + min(i, more) for i in range(count + 1)]
            found += [several[a:b] for a, b in pairwise(ends)]
        return found

    def size(self, names: Sequence[str]) -> int:
        """How many of these clients train side by side."""
        contexts = [self.clients[name].context for name in names]
        experiment = contexts[0].experiment
        if experiment.parallel != "auto":
            return experiment.parallel
        longest = max(len(row.input_ids) for context in contexts for row in context.data.train.encoded)
        full = FULL_GPU if contexts[0].accelerator.device.type == "cuda" else FULL
        return max(1, full // (longest * experiment.training.batch_size))
