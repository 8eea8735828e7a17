"""``keep: auto``: what share of the core a client's budget of upload, memory and step time allows."""

from __future__ import annotations

import time
from collections.abc import Callable

from h2tune.adapter import TriLoraConfig
from h2tune.config import ClientConfig, ConfigError, Experiment
from h2tune.core.slots import Layout
from h2tune.declared import Settings
from h2tune.participant import budget
from h2tune.participant.base_models import LoadedModel
from h2tune.participant.passes import Passes
from h2tune.participant.trainer import Batches, Trainer
from h2tune.utils.sizes import parse_size


def affordable_keep(
    config: ClientConfig,
    experiment: Experiment,
    base: LoadedModel,
    layout: Layout,
    settings: Settings,
    step_ms: Callable[[int], float],
) -> float:
    """The largest share of the core within the client's budget.

    Args:
        settings: those of what trains the adapter.
        step_ms: milliseconds of a training step, by rank; only called where the budget limits them.

    Raises:
        ConfigError: not even rank 1 fits.
    """
    limits = config.budget
    assert limits is not None  # the config asks for one
    maps = base.maps(layout)
    pairs = len(layout.slots) * min(experiment.depth or 2 * layout.depth, 2 * layout.depth)

    def memory_of(rank: int) -> int:
        return budget.adapter_bytes(*settings.adapter_numbers(maps, rank, experiment.rank))

    def fits(rank: int) -> bool:
        upload = limits.upload is None or budget.upload_bytes(pairs, rank) <= parse_size(limits.upload)
        memory = limits.memory is None or memory_of(rank) <= parse_size(limits.memory)
        return upload and memory and (limits.step_ms is None or step_ms(rank) <= limits.step_ms)

    least = f"rank 1 needs {budget.upload_bytes(pairs, 1)} bytes up and {memory_of(1):,} bytes of memory"
    try:
        return budget.kept_share(experiment.rank, fits, least)
    except ValueError as error:
        raise ConfigError([f"{config.name}: {error}"]) from None


def step_milliseconds(
    base: LoadedModel, layout: Layout, task_type: str, rank: int, trainer: Trainer, batches: Batches, passes: Passes
) -> float:
    """Median milliseconds of three training steps with a throw-away adapter of this rank, on rows that were met before."""
    name, times = f"_probe{rank}", []
    parts = layout.parts or None
    base.attach(
        name, TriLoraConfig(r=rank, residual=False, target_modules=layout.targets, parts=parts, task_type=task_type)
    )
    model = base.activate(name)
    for _ in range(3):
        batch = {k: v.to(trainer.accelerator.device) for k, v in next(batches)[0].items()}
        for _ in range(2):  # the first one warms up, and fills a cached prefix
            begin = time.perf_counter()
            trainer.forward(model, batch, [], passes).loss.backward()
            last = 1000 * (time.perf_counter() - begin)
        times.append(last)
    model.zero_grad()
    base.detach(name)
    return sorted(times)[1]
