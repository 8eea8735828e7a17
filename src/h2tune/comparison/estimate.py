"""How long a run will take on this machine, from loading, scoring and a few updates of each client."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from h2tune.client import Client
from h2tune.config import ClientConfig, Experiment
from h2tune.participant.base_models import ModelPool
from h2tune.participant.prepare import Split
from h2tune.utils.logging import quiet_libraries

SAMPLE = 64  # test rows that are scored to know what a row takes


def local_seconds(experiment: Experiment, threads: int) -> float:
    """Seconds of a run of local training, one client after the other.

    A method's own set-up (frames, practice) comes on top, and so does what other runs and programs take of the machine.
    """
    quiet_libraries()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        experiment = experiment.model_copy(update={"method": "local"})
        models = ModelPool.of(experiment)
        return sum(_of_client(experiment, client, models) for client in experiment.clients)
    finally:
        torch.set_num_threads(before)


def _of_client(experiment: Experiment, client: ClientConfig, models: ModelPool) -> float:
    begin = time.perf_counter()
    context = Client(client, experiment, models).context
    loading, data = time.perf_counter() - begin, context.data
    some = Split(data.test.examples[:SAMPLE], data.test.encoded[:SAMPLE])
    # With a cached prefix a row takes longer when it is met for the first time.
    first, again = (_timed(lambda: context.score(some, untouched=True)) / len(some) for _ in range(2))
    met = (first - again) * (len(data.train) + len(data.validation) + len(data.test)) if context.prefix else 0.0
    # Test rows before and after; validation rows with every evaluation and three times at the end; training rows for the bias.
    evaluations = experiment.rounds / experiment.evaluation.every + 3
    scored = 2 * len(data.test) + len(data.validation) * evaluations + len(data.train)
    updates = experiment.training.steps * experiment.training.accumulation * experiment.rounds
    return loading + max(0.0, met) + context.step_milliseconds() / 1000 * updates + again * scored


def _timed(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin
