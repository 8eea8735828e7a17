"""What a report knows of a run, as typed values without behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from h2tune.report.flows import Flows

Matrix = tuple[tuple[float | None, ...], ...]
STAGES = ("base", "local", "unshared", "final")  # the results that a client may have, in the order they are shown


@dataclass(frozen=True)
class Score:
    """One evaluation: `metric` is a share between 0 and 1 (higher is better), `nats` per answer token (lower is)."""

    metric: float | None = None
    nats: float | None = None
    validation: float | None = None


@dataclass(frozen=True)
class Traffic:
    """Bytes that left (`up`) and reached (`down`) one machine."""

    up: int = 0
    down: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.up + other.up, self.down + other.down)


@dataclass(frozen=True)
class Round:
    """What one client did in one round."""

    round: int
    loss: Mapping[str, float | None]
    validation: Score | None
    test: Score | None
    traffic: Traffic
    seconds: float | None


@dataclass(frozen=True)
class Agreement:
    """Correlation of the models' coordinates on held-out anchor rows: depths x kinds of input, depths x slots."""

    inputs: Matrix | None
    outputs: Matrix | None
    slots: tuple[str, ...]
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class Client:
    """One participant and everything that is known about its result."""

    name: str
    model: str
    family: str
    task: str
    kind: str
    metric: str
    n_train: int | None
    n_validation: int | None
    n_test: int | None
    base: Score | None
    local: Score | None
    unshared: Score | None
    final: Score | None
    majority: float | None
    unigram_nats: float | None
    kept: str | None
    status: str
    rounds: tuple[Round, ...]
    relation: Matrix | None
    accepted: float | None
    agreement: Agreement | None
    anchor_words: float | None
    anchor_missing: tuple[str, ...]
    setup: Traffic

    def score(self, stage: str) -> Score:
        """The result at "base", "local", "unshared" or "final"; empty where there is none."""
        return getattr(self, stage) or Score()

    def gain(self, over: str = "local") -> float | None:
        """Difference of the federated result to `over` ("local" or "base"), as a share."""
        before, after = self.score(over).metric, self.score("final").metric
        return None if before is None or after is None else after - before

    @property
    def has_nats(self) -> bool:
        return any(self.score(stage).nats is not None for stage in ("base", "local", "final"))

    @property
    def in_rounds(self) -> Traffic:
        return sum((entry.traffic for entry in self.rounds), Traffic())


@dataclass(frozen=True)
class Core:
    """Norms of the shared core, depth x slots."""

    slots: tuple[str, ...]
    norms: Matrix | None


@dataclass(frozen=True)
class Event:
    time: str
    event: str
    round: int | None
    client: str | None
    text: str


@dataclass(frozen=True)
class Run:
    """All that a run directory says. `unreadable` counts event lines that could not be read."""

    name: str
    method: str
    seed: int | None
    rounds: int
    finished: bool
    seconds: float | None
    version: str
    clients: tuple[Client, ...]
    core: Core | None
    sent: tuple[str, ...]
    never: tuple[str, ...]
    events: tuple[Event, ...]
    unreadable: int
    config: str
    flows: Flows | None = None  # of `method: lada`
    privacy: str = ""  # what was spent, in words; empty where nothing is promised

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages at which at least one client has a result."""
        return tuple(stage for stage in STAGES if any(c.score(stage).metric is not None for c in self.clients))

    @property
    def complete(self) -> tuple[Client, ...]:
        """The clients that have a result at all of these stages.

        Every mean is over these clients alone: a weak client that drops out must not make the federation look better.
        """
        return self.having("metric")

    def having(self, figure: str) -> tuple[Client, ...]:
        """The clients that have this figure ("metric" or "nats") at every stage at which at least one client has it."""
        found = {
            c.name: {stage for stage in STAGES if getattr(c.score(stage), figure) is not None} for c in self.clients
        }
        stages = set().union(*found.values())
        return tuple(c for c in self.clients if found[c.name] == stages)

    @property
    def incomplete(self) -> tuple[Client, ...]:
        """The clients that the means leave out."""
        complete = {client.name for client in self.complete}
        return tuple(client for client in self.clients if client.name not in complete)

    @property
    def rounds_done(self) -> int:
        return max((entry.round for client in self.clients for entry in client.rounds), default=0)
