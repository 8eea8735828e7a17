"""What a federated method answers, once for the client and once for the server.

A method is one file with two classes. The client's half says which adapter it gets, what it says of itself, how it
trains and what it sends; the server's half how the updates are combined and what goes back. Methods know the core and
the adapter, and nothing of files, networks or the command line.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from h2tune.config import Wire
from h2tune.protocol.codec import Payload, ProtocolError

if TYPE_CHECKING:
    from h2tune.aggregation.secret_sharing import ClientSecrets
    from h2tune.client import Client
    from h2tune.config import Experiment


class MethodError(ValueError):
    """A method cannot run on this federation; the text says which clients and why."""


class Settings(BaseModel):
    """A method's own settings, the keys beside ``name`` in ``method:``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    def adapter_slots(self) -> list[str] | None:
        """Slots that get an adapter; None is all."""
        return None


OnStep = Callable[[str, int, int, float], None]
"""Called with phase, step, number of steps and loss after every update."""


class ClientMethod(ABC):
    """The client's half. ``client`` is the participant: model, data, seeds; see `h2tune.client.Client`."""

    def __init__(self, client: Client, settings: Any) -> None:
        self.client, self.settings = client, settings

    def check(self) -> None:  # noqa: B027
        """Raise MethodError if the method cannot run on this client; before anything is trained or written."""

    @classmethod
    def planned_bytes(cls, settings: Any, rank: int, maps: list[tuple[int, int, int]], blocks: int) -> int | None:
        """Tensor bytes that a client sends in a round, from shapes alone; None if that cannot be said beforehand.

        Args:
            maps: (d_in, d_out, parts) of every adapted map.
        """
        return None

    def introduction(self) -> dict[str, Any]:
        """What the server may know of this client's model: sizes, family, identity of the base; no private data."""
        return {}

    @abstractmethod
    def join(self, fresh: bool = True) -> Payload:
        """Attach what is trained and introduce oneself. ``fresh`` is false where `load_state` will follow."""

    def describe(self) -> Payload:
        """Answer to the server's one question before the start, for example the bases of the anchors."""
        return Payload()

    def welcome(self, payload: Payload, fresh: bool = True) -> None:  # noqa: B027 - most methods need nothing
        """Take the server's answer, before round 0. ``fresh`` is false where `load_state` will follow."""

    def keep_secret(self, secrets: ClientSecrets, sealed: dict[str, str]) -> None:  # noqa: B027
        """Send this round's update under masks (`h2tune.aggregation.secret_sharing`)."""

    @abstractmethod
    def train(self, round: int, payload: Payload, on_step: OnStep) -> tuple[Payload, dict[str, float]]:
        """One local round: what is sent up, and the mean loss of each phase."""

    def receive(self, payload: Payload) -> None:  # noqa: B027
        """Take the last state of what is shared, without training; once, at the end."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Private tensors to keep over a restart: adapter, head, optimisers, whatever the method trains."""

    @abstractmethod
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Inverse of `state`."""

    def report(self) -> dict[str, Any]:
        """Figures worth showing (a relation matrix, say); plain values, no private data."""
        return {}


class ServerMethod(ABC):
    """The server's half."""

    def __init__(self, experiment: Experiment, settings: Any) -> None:
        self.experiment, self.settings = experiment, settings

    @classmethod  # noqa: B027 - most methods suit everybody
    def suits(cls, experiment: Experiment, introductions: dict[str, dict[str, Any]]) -> None:
        """Raise MethodError, naming clients and reason, if the method cannot run on this federation at all."""

    @classmethod
    def allows(cls, experiment: Experiment, settings: Any) -> None:
        """Raise MethodError if options of the experiment exclude each other or the method; needs no client."""
        if experiment.wire != Wire():
            raise MethodError("wire: only methods that share a core as H2Tune does can write it shorter")
        if experiment.privacy is not None:
            raise MethodError("privacy: only methods that share a core as H2Tune does can protect it")
        if experiment.secure_aggregation is not None:
            raise MethodError("secure_aggregation: only methods that share a core as H2Tune does can sum it in secret")

    excluded = 0
    """Clients that the run has excluded so far; the server keeps it."""

    needs: tuple[str, ...] = ()
    """What an introduction must hold (`h2tune.protocol.schemas.Introduction`); without it a client is excluded."""

    def check_introduction(self, name: str, payload: Payload) -> None:
        """Raise ProtocolError if a client's introduction lacks what the method needs, or holds what cannot be."""
        if missing := [key for key in self.needs if key not in payload.meta]:
            raise ProtocolError(f"its introduction lacks {', '.join(missing)}")

    def ask(self, joined: dict[str, Payload]) -> list[str]:
        """Clients whose `describe` is wanted before the start."""
        return []

    def misfits(self, joined: dict[str, Payload], described: dict[str, Payload]) -> dict[str, str]:
        """Clients whose description cannot be used, with the reason; they are excluded before `open`."""
        return {}

    @abstractmethod
    def open(self, joined: dict[str, Payload], described: dict[str, Payload]) -> dict[str, Payload]:
        """Set up what is shared; the answer for each client. Also called with late joiners only."""

    @abstractmethod
    def download(self, client: str) -> Payload:
        """What a selected client gets for a round."""

    def refuses_round(self) -> str | None:
        """Why no further round may start; None if one may."""
        return None

    def expect(self, selected: list[str]) -> None:  # noqa: B027 - most methods need not know
        """The clients of the round that starts, whether or not they will answer."""

    @abstractmethod
    def start_round(self) -> None:
        """Forget the sums of the last round."""

    @abstractmethod
    def add(self, client: str, payload: Payload, weight: int) -> None:
        """Fold one update in. Raises ProtocolError if it is not what this client may send; then nothing has changed."""

    def expect_masked(self, publics: dict[str, tuple[str, str]], context: bytes) -> None:  # noqa: B027
        """This round's updates come under masks; called after `start_round`."""

    def unmask(self, members: list[str], revealed: dict[str, dict[str, str]]) -> None:  # noqa: B027
        """Take the masks off the sum; called before `finish_round`. Raises ValueError if that cannot be done."""

    @abstractmethod
    def finish_round(self) -> None:
        """Make the round's result what is shared."""

    def notices(self) -> list[str]:
        """What the last round did otherwise than asked for, in words for the events; told once."""
        return []

    def privacy(self) -> dict[str, Any]:
        """Epsilon and delta that the rounds so far have spent; empty where nothing is promised."""
        return {}

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Tensors to commit after a round."""

    def plain_state(self) -> dict[str, Any]:
        """Plain values to commit beside them: what `resume` needs."""
        return {}

    def fixed(self) -> dict[str, Tensor]:
        """Tensors that never change after `open`; written once."""
        return {}

    @abstractmethod
    def resume(
        self, tensors: dict[str, Tensor], plain: dict[str, Any], fixed: dict[str, Tensor], names: list[str]
    ) -> dict[str, Payload]:
        """Stand where `state`, `plain_state` and `fixed` were taken.

        Returns the welcome for each of ``names``, less anything that clients keep themselves.
        """

    def report(self) -> dict[str, Any]:
        """Figures worth showing; plain values."""
        return {}


class Method:
    """A method's name, settings and halves, as found in the registry.

    Attributes:
        says: what it is, in a line.
        sends: what leaves a client each round, in words.
        source: the paper; a rule that could not be read in it is labelled a reconstruction in the method's file.
        one_architecture: whether it only averages between clients of equal models.
    """

    registry: ClassVar[dict[str, Method]] = {}

    def __init__(
        self,
        name: str,
        settings: type[Settings],
        client: type[ClientMethod],
        server: type[ServerMethod],
        says: str,
        *,
        sends: str = "nothing",
        source: str = "",
        one_architecture: bool = False,
    ) -> None:
        self.name, self.settings, self.client, self.server, self.says = name, settings, client, server, says
        self.sends, self.source, self.one_architecture = sends, source, one_architecture
        self.registry[name] = self
