"""The clients of a run that live in this process, one after the other or side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise

from accelerate import Accelerator

from h2tune.client import Client
from h2tune.config import ClientConfig, Experiment
from h2tune.frames.sources import load_anchors
from h2tune.participant.base_models import ModelPool
from h2tune.participant.context import Watch, make_accelerator
from h2tune.participant.together import TogetherTrainer
from h2tune.simulation.paging import Memory, PagedClient
from h2tune.store import RunStore
from h2tune.transport.inprocess import InProcess
from h2tune.utils.memory import KEPT, give_back_memory

FEW = 64  # clients that stay in memory in any case
Simulated = Client | PagedClient


def build_clients(
    experiment: Experiment,
    store: RunStore,
    models: ModelPool,
    accelerator: Accelerator | None = None,
    watch: Watch | None = None,
    names: Sequence[str] | None = None,
    trainer: TogetherTrainer | None = None,
) -> dict[str, Simulated]:
    """The clients of a run in this process; ``names`` picks some of them, ``trainer`` trains those that can be trained together.

    Of more than `FEW` clients, those that were not used lately lie on disk, unless a round selects all.
    """
    anchors = load_anchors(experiment.anchors, experiment.anchor_words)
    wanted = None if names is None else set(names)
    configs = [c for c in experiment.clients if wanted is None or c.name in wanted]

    def build(c: ClientConfig) -> Client:
        own = None if c.row_privacy else trainer
        return Client(c, experiment, models, anchors, store.client(c.name), watch, accelerator, own)

    if len(configs) <= most_in_memory(experiment):
        return {c.name: build(c) for c in configs}
    memory = Memory(most_in_memory(experiment))
    return {c.name: PagedClient(c, partial(build, c), store.client(c.name), memory) for c in configs}


def most_in_memory(experiment: Experiment) -> int:
    """Clients that are in memory at a time, if there are so many."""
    return max(FEW, experiment.clients_per_round)


def in_process(
    experiment: Experiment,
    store: RunStore,
    models: ModelPool,
    accelerator: Accelerator | None = None,
    watch: Watch | None = None,
    names: Sequence[str] | None = None,
) -> InProcess[Simulated]:
    """Clients of a run, and the way to them: with ``parallel`` other than 1 those of one base model act side by side."""
    if experiment.parallel == 1:
        return InProcess(build_clients(experiment, store, models, accelerator, watch, names))
    accelerator = accelerator or make_accelerator(experiment, models.device)
    trainer = TogetherTrainer(experiment.training, accelerator, len(experiment.clients), partial(_warn, store))
    room = most_in_memory(experiment)
    return Groups(build_clients(experiment, store, models, accelerator, watch, names, trainer), trainer, room)


def _warn(store: RunStore, text: str) -> None:
    store.event("warning", text)


class Groups(InProcess[Simulated]):
    """Lets clients of one base model act in groups, whose local training is carried out side by side.

    Args:
        room: clients that can be in memory at a time.
    """

    def __init__(self, clients: dict[str, Simulated], trainer: TogetherTrainer, room: int) -> None:
        super().__init__(clients)
        self.trainer, self.room = trainer, room

    def exchange(self, requests: dict[str, bytes], fresh: bool = False) -> Iterator[tuple[str, bytes]]:
        self.known |= requests.keys()
        for names in self._groups(requests):
            acts: list[Callable[[], bytes]] = [partial(self.clients[n].handle, requests[n]) for n in names]
            answers = self.trainer.together(acts) if len(acts) > 1 else [acts[0]()]
            yield from zip(names, answers, strict=True)
            give_back_memory(above=KEPT)  # as in `InProcess`

    def groups(self, names: Iterable[str]) -> list[list[str]]:
        """Clients of one base model, as many at a time as train side by side, in groups of about the same size."""
        return list(self._groups(names))

    def _groups(self, names: Iterable[str]) -> Iterator[list[str]]:
        left = list(names)
        while left:  # as many as are in memory together
            some, left = left[: self.room], left[self.room :]
            yield from self._on_bases(some)

    def _on_bases(self, names: list[str]) -> list[list[str]]:
        on_base: dict[int, list[str]] = {}
        for name in names:
            on_base.setdefault(id(self.clients[name].context.base), []).append(name)
        found = []
        for several in on_base.values():
            count = -(-len(several) // min(self.size(several), self.trainer.limit.most))
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
        return max(1, self.trainer.full // (longest * experiment.training.batch_size))
