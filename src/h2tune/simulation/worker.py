"""What lives in a worker's process: some of a run's clients."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from h2tune.config import parse_config
from h2tune.errors import H2TuneError

if TYPE_CHECKING:
    from h2tune.participant.context import Watch


class WorkersError(H2TuneError, RuntimeError):
    """Workers cannot be had; the text says what to do."""


class WorkerEnded(WorkersError):
    """A worker's process, or its machine, is no more.

    Args:
        reason: what is known of it, in a line.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"A worker has ended: {reason.rstrip('.')}. The last committed round is safe: --resume.")
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason,)


class Worker:
    """Some of a run's clients, in a process of their own.

    Args:
        plain: the experiment, as JSON has it. run: its directory.
        frames: what was worked out for a base is kept there (`ModelPool`), also for the runs beside this one.
        names: of the clients. threads: that they may use.

    Attributes:
        watch: told of the clients' updates.
    """

    watch: Watch | None = None

    def __init__(self, plain: dict[str, Any], run: str, frames: str, names: list[str], threads: int) -> None:
        self.plain, self.run, self.frames, self.names, self.threads = plain, run, frames, names, threads

    @cached_property
    def party(self) -> Any:
        """The clients, loaded when they are asked for first."""
        import torch

        from h2tune.participant.base_models import ModelPool
        from h2tune.simulation.clients import in_process
        from h2tune.store import RunStore
        from h2tune.utils.logging import quiet_libraries

        torch.set_num_threads(self.threads)
        quiet_libraries()
        experiment, store = parse_config(self.plain), RunStore(self.run)
        models = ModelPool.of(experiment, Path(self.frames))
        return in_process(experiment, store, models, watch=self.watch, names=self.names)

    def sees(self, path: str) -> bool:
        """Whether a file of the process that runs the federation is here, too."""
        return Path(path).is_file()

    def introduce(self) -> dict[str, tuple[list[str], dict[str, Any]]]:
        return {name: (client.remarks, client.introduction()) for name, client in self.party.clients.items()}

    def groups(self, names: list[str]) -> list[list[str]]:
        """Clients that act together (``parallel``)."""
        found: list[list[str]] = self.party.groups(names)
        return found

    def handle(self, requests: dict[str, bytes]) -> dict[str, bytes]:
        return dict(self.party.exchange(requests))
