"""What a method declares in plain values: its settings, what leaves a client, and how many bytes that is.

Frames declare the same about themselves, so these classes stand below both. Authors of methods import them from
`h2tune.methods.base`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A method's own settings, the keys beside ``name`` in ``method:``."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @property
    def inner(self) -> Settings:
        """Settings of what trains the adapter: a method that wraps another gives the other's."""
        return self

    @property
    def adapter_slots(self) -> Sequence[str] | None:
        """Slots that get an adapter; None is all."""
        return None

    @property
    def has_core(self) -> bool:
        """Whether clients share a core S, of a depth that all agree on."""
        return False

    @property
    def asks_public(self) -> bool:
        """Whether clients answer the public questions of ``public:``."""
        return False

    def adapter_numbers(self, maps: Sequence[tuple[int, int, int]], rank: int, whole: int) -> tuple[int, int]:
        """How many numbers of a client's adapter are trained, and how many stand still.

        Args:
            maps: (d_in, d_out, parts) of every adapted map.
            rank: the client's own rank. whole: the federation's.
        """
        return rank * sum(d_in + d_out for d_in, d_out, _ in maps), 0


@dataclass(frozen=True)
class Sent:
    """Something that leaves a client.

    Attributes:
        kind: the exchange in which it leaves.
        names: names of tensors, texts and plain values, as shell patterns.
        says: what it is, for people.
        when: how often it leaves: ``once``, ``each round``, ``at the end``.
    """

    kind: str
    names: tuple[str, ...]
    says: str
    when: str = "each round"

    def covers(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.names)


@dataclass(frozen=True)
class ModelShape:
    """A client's model as `plan` knows it, without weights.

    Attributes:
        rank: rank of the client's adapter. keep: its share of the core.
        maps: (d_in, d_out, parts) of every adapted map, block by block. blocks: number of blocks.
        slots: slots that the model has. all_slots: slots that any client of the federation has.
        depth: depth of the shared core. parts: output sizes of one block's slots, in the order of ``slots``.
        inputs: widths of one block's distinct inputs.
        anchor_lengths: words of each anchor. client: the client's name.
        head: whether it has a classification head, and so predicts no words.
        base: what tells models apart that `plan` takes for equal: their family and maps.
        company: all clients whose models are known, this one among them, by name.
    """

    rank: int
    keep: float
    maps: Sequence[tuple[int, int, int]]
    blocks: int
    slots: Sequence[str]
    all_slots: Collection[str]
    depth: int
    parts: Sequence[int]
    inputs: Sequence[int]
    anchor_lengths: Sequence[int]
    client: str = ""
    head: bool = False
    base: str = ""
    company: Mapping[str, ModelShape] = field(default_factory=dict)

    @property
    def anchor_words(self) -> int:
        return sum(self.anchor_lengths)

    @property
    def peers(self) -> dict[str, ModelShape]:
        """The clients with the same base, this one among them."""
        return {name: shape for name, shape in self.company.items() if shape.base == self.base}


@dataclass(frozen=True)
class PlannedBytes:
    """Tensor bytes of one client in a round, before anything is trained; None where that cannot be said beforehand."""

    up: int | None = None
    down: int | None = None
    setup_up: int = 0
    setup_down: int = 0
