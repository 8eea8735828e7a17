"""What every kind of frames answers, once for the client and once for the server.

T only means something between two bases: A and B that start at random give every client bases of its own, and a mean of
T's in unrelated bases is noise. A kind of frames gives all clients bases that fit together.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from h2tune.adapter import TriLoraLayer
from h2tune.config import ClientConfig, Experiment
from h2tune.core.client_core import ANY, CoreShape
from h2tune.core.slots import Layout
from h2tune.declared import ModelShape, Sent, Settings
from h2tune.errors import ProtocolError
from h2tune.participant.adapter_trainer import AdapterTrainer
from h2tune.protocol.codec import Payload
from h2tune.tasks.example import Task

FRAMES = (
    "`effect`: what a block does to predictions of common words; `anchor`: what it says of public text; `words`: practised"
    " on public codes of words, for tasks that choose among labels; `glossary`: public terms and practice problems;"
    " `weights` (singular vectors of the base) and `random`: no common frames (ablations); or a kind that another package"
    " adds"
)


class FrameSettings(Settings):
    """The keys that say where A and B come from."""

    frames: str = Field("anchor", description=FRAMES)
    slots: list[Literal["q", "k", "v", "o", "gate", "up", "down"]] | None = Field(
        None, description="slots that are adapted and shared; by default all (`frames: words`: o, up, down, tied)"
    )
    private: int | None = Field(
        0,
        ge=0,
        description="coordinates beside the frames: a LoRA of this rank that no core can disturb; null: the core's rank",
    )
    directions: int = Field(4, ge=1, description="directions kept of each input and output, in multiples of the rank")
    codes: str = Field("builtin", description="word vectors for `frames: words`: `builtin`, or a text file")
    text_column: str | None = Field(
        None, description="the task's column that holds the text (`frames: words`); by default what its prompt reads"
    )
    practice_steps: int = Field(1800, ge=1, description="updates of practice (`frames: words`)")
    practice_rate: float = Field(3e-3, gt=0, description="learning rate of A and B in practice")


class FramedAdapter(AdapterTrainer):
    """An adapter whose A and B start from frames."""

    settings: FrameSettings


class ClientFrames:
    """The client's half: sets A and B before round 1. By default they are left as they are, at random."""

    def __init__(self, adapter: FramedAdapter) -> None:
        self.adapter, self.settings, self.context = adapter, adapter.settings, adapter.context

    @classmethod
    def suits(cls, settings: Any, client: ClientConfig, task: Task) -> None:
        """Raise MethodError if a client with this task cannot have such frames; needs no model, so that `plan` can ask."""

    def check(self) -> None:
        """Raise MethodError if this client cannot have such frames."""
        self.suits(self.settings, self.context.config, self.context.task)

    @property
    def layout(self) -> Layout:
        """The maps on which the core acts."""
        return self.context.layout

    @property
    def layers(self) -> list[TriLoraLayer]:
        """The adapter's layers on those maps, block by block."""
        whole, own = self.context.layout, self.layout.modules
        modules = [module for _ in range(whole.depth) for module in whole.modules]
        return [layer for layer, module in zip(self.adapter.layers, modules, strict=True) if module in own]

    @property
    def tied(self) -> str | None:
        """The one slot of the core that all this client's maps read; None where each map reads its own."""
        return None

    @property
    def core_slots(self) -> list[str]:
        """Slots of the core that this client reads."""
        return [self.tied] if self.tied else list(self.layout.slots)

    def introduction(self, fresh: bool) -> dict[str, Any]:
        """What the server must know to agree on frames."""
        return {}

    def describe(self) -> Payload:
        """Answer to the server's question before frames are agreed on."""
        return Payload()

    def set_up(self, payload: Payload, shape: CoreShape, relation: Tensor) -> Tensor:
        """Set A and B; returns the start of P (L x L_i).

        Raises:
            ProtocolError: the server's frames cannot be used.
        """
        return relation


class ServerFrames:
    """The server's half: agrees on frames from what clients describe. By default there is nothing to agree on.

    Attributes:
        agreement: how well the clients' coordinates agree, for the report; None where that is not measured.
    """

    def __init__(self, experiment: Experiment, settings: FrameSettings) -> None:
        self.experiment, self.settings = experiment, settings
        self.agreement: dict[str, Any] | None = None

    def check_introduction(self, payload: Payload) -> None:
        """Raise ProtocolError if a client's introduction does not belong to these frames."""
        slots = set(payload.meta["slots"])
        if not slots or slots & set(ANY):
            raise ProtocolError(f"its introduction has slots that do not belong to frames: {self.settings.frames}")

    def describers(self, joined: dict[str, Payload]) -> list[str]:
        """Clients that must describe their model."""
        return []

    def misfits(self, joined: dict[str, Payload], described: dict[str, Payload]) -> dict[str, str]:
        """Clients whose description cannot be used, with the reason."""
        return {}

    def agree(self, described: dict[str, Payload], shape: CoreShape) -> None:
        """Work out the frames, once."""

    def fits(self, payload: Payload) -> bool:
        """Whether a client with this introduction covers anything of the core; must follow from what is public."""
        return True

    def found(self) -> str:
        """How well the clients' models fit together, in words; empty if that is not known."""
        return ""

    def tensors_for(self, payload: Payload) -> dict[str, Tensor]:
        """What a client with this introduction needs of them."""
        return self.tensors()

    def tensors(self) -> dict[str, Tensor]:
        """What every client is sent when it joins, and what is kept of the frames."""
        return {}

    def load(self, tensors: dict[str, Tensor], shape: CoreShape, agreement: dict[str, Any] | None) -> None:
        """Stand where `tensors` and `agreement` were taken."""
        self.agreement = agreement


@dataclass(frozen=True)
class FrameKind:
    """A kind of frames, as found in the registry.

    Attributes:
        says: what they are, in a line.
        tied: whether one matrix of the core serves all of a client's maps.
        whole_adapter: whether all maps are adapted, whichever the core acts on.
        suited: settings that go well with them, where a config says nothing else.
        reads_anchors: whether models are described on the anchors, and so have to read each of them whole.
    """

    name: str
    says: str
    client: type[ClientFrames] = ClientFrames
    server: type[ServerFrames] = ServerFrames
    tied: bool = False
    whole_adapter: bool = False
    reads_anchors: bool = False
    suited: Mapping[str, Any] = field(default_factory=dict)

    def adapter_slots(self, settings: FrameSettings) -> Sequence[str] | None:
        """Slots that get an adapter; None is all."""
        return None if self.whole_adapter else settings.slots

    def core_slots(self, settings: FrameSettings, slots: Collection[str]) -> list[str]:
        """Slots of the core that a model with these slots reads."""
        return sorted(slots)[:1] if self.tied else sorted(slots)

    def fits(self, shape: ModelShape) -> bool:
        """Whether a model of this shape can share a core in these frames; `plan` asks."""
        return True

    def shares(self, experiment: Experiment, shape: ModelShape) -> bool:
        """Whether two of the clients in a model's company can share a core, for all that is known when frames are made."""
        return True

    def leaves(self, settings: FrameSettings) -> list[Sent]:
        """What leaves a client for the sake of the frames."""
        return []

    def setup_bytes(self, experiment: Experiment, settings: FrameSettings, shape: ModelShape) -> tuple[int, int]:
        """Tensor bytes that go up and down before round 1."""
        return 0, 0
