"""What a federated method answers, once for the client and once for the server.

A method is one file with two classes. The client's half says what it trains and sends, the server's half what happens in
a round: it drives the round through ``ask``, in as many exchanges as it needs. Methods see a participant's
`ClientContext` and what clients send, and nothing of files, networks or the command line.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from h2tune.config import Experiment, Wire
from h2tune.declared import ModelShape, PlannedBytes, Sent, Settings
from h2tune.errors import MethodError, ProtocolError
from h2tune.participant.context import ClientContext
from h2tune.protocol.codec import Payload
from h2tune.protocol.exchange import Ask, Reply

__all__ = [
    "ClientMethod",
    "Method",
    "MethodError",
    "ModelShape",
    "OneExchange",
    "PlannedBytes",
    "Sent",
    "ServerMethod",
    "Settings",
]


class ClientMethod(ABC):
    """The client's half.

    Attributes:
        version: of what is exchanged; raised in the class that a family of methods shares whenever a client and a server of
            two versions could not work together.
        setup_actions: exchanges before round 1 that the method answers, the last of which makes the client ready.
        actions: exchanges of a round that it answers; each is a method ``action(round, payload) -> payload``.
        ends: the action after which the client is scored and its state is saved.
        protects_rows: whether training rows have an effect through local training alone, so that `row_privacy` covers all.
    """

    version: ClassVar[int] = 1
    protects_rows: ClassVar[bool] = False
    setup_actions: ClassVar[tuple[str, ...]] = ("describe", "welcome")
    actions: tuple[str, ...] = ("train",)
    ends: ClassVar[str] = "train"

    def __init__(self, context: ClientContext, settings: Any) -> None:
        self.context, self.settings = context, settings

    def check(self) -> None:  # noqa: B027
        """Raise MethodError if the method cannot run on this client; before anything is trained or written."""

    @classmethod
    def planned_bytes(cls, experiment: Experiment, settings: Any, shape: ModelShape) -> PlannedBytes:
        """What a client will send and receive, from shapes alone."""
        return PlannedBytes()

    @classmethod
    def leaves(cls, experiment: Experiment | None, settings: Any) -> list[Sent]:
        """All that the method lets leave a client, but for what the engine sends (`h2tune.methods.leaving`).

        Without an experiment: what can leave under these settings.
        """
        return []

    @classmethod
    def stands_on(cls, settings: Any) -> tuple[Method, Settings] | None:
        """The method that this one wraps, whose version counts, too."""
        return None

    def introduction(self) -> dict[str, Any]:
        """What the server may know of this client's model: sizes, family, identity of the base; no private data."""
        return {}

    @abstractmethod
    def join(self, fresh: bool = True) -> Payload:
        """Attach what is trained and introduce oneself. ``fresh`` is false where `load_state` will follow."""

    def describe(self, payload: Payload) -> Payload:
        """Answer to the server's question before the start, for example the bases of the anchors."""
        return Payload()

    def welcome(self, payload: Payload, fresh: bool = True) -> Payload:
        """Take what the server has set up. ``fresh`` is false where `load_state` will follow."""
        return Payload()

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
    """The server's half.

    A round that fails starts again from the last committed state: the server makes a new object and calls `load`. So
    nothing but `state`, `plain_state` and `fixed` outlives a round, and `download` changes nothing.

    Attributes:
        needs: what an introduction must hold (`h2tune.protocol.schemas.Introduction`); else the client is excluded.
        least: clients that must answer in a round, whatever quorum the experiment asks for.
        excluded: clients that the run has excluded so far; the server keeps it.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    least: int = 0
    excluded: int = 0

    def __init__(self, experiment: Experiment, settings: Any) -> None:
        self.experiment, self.settings = experiment, settings

    @classmethod  # noqa: B027 - most methods suit everybody
    def suits(cls, experiment: Experiment, introductions: Mapping[str, Mapping[str, Any]]) -> None:
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

    @classmethod
    def fewest(cls, settings: Any) -> int:
        """Clients without whom the method means nothing under these settings."""
        return 1

    def check_introduction(self, name: str, payload: Payload) -> None:
        """Raise ProtocolError if a client's introduction lacks what the method needs, or holds what cannot be."""
        if missing := [key for key in self.needs if key not in payload.meta]:
            raise ProtocolError(f"its introduction lacks {', '.join(missing)}")

    def setup(self, ask: Ask, joined: dict[str, Payload]) -> None:
        """Set up what is shared with clients that have joined; called again for those that join later.

        Args:
            joined: introductions, by client.
        """
        joined, described = self._descriptions(ask, joined)
        if joined:
            ask("welcome", self.open(joined, described))

    def _descriptions(self, ask: Ask, joined: dict[str, Payload]) -> tuple[dict[str, Payload], dict[str, Payload]]:
        """Descriptions from the clients whom the method asks; where one cannot be used, others are asked instead."""
        described: dict[str, Payload] = {}
        asked: set[str] = set()
        while True:
            joined = {name: payload for name, payload in joined.items() if ask.takes_part(name)}
            wanted = [name for name in self.describers(joined) if name not in asked] if joined else []
            if not wanted:
                return joined, described
            asked |= set(wanted)
            described |= ask("describe", dict.fromkeys(wanted, Payload()))
            for name, reason in self.misfits(joined, described).items():
                ask.exclude(name, reason)
                del described[name]

    def describers(self, joined: dict[str, Payload]) -> list[str]:
        """Clients whose `describe` is wanted before the start."""
        return []

    def misfits(self, joined: dict[str, Payload], described: dict[str, Payload]) -> dict[str, str]:
        """Clients whose description cannot be used, with the reason; they are excluded before `open`."""
        return {}

    def open(self, joined: dict[str, Payload], described: dict[str, Payload]) -> dict[str, Payload]:
        """Set up what is shared; the welcome for each client. Also called with late joiners only.

        Raises:
            MethodError: the clients do not fit together.
        """
        return {name: Payload() for name in joined}

    @abstractmethod
    def run_round(self, ask: Ask, number: int, selected: list[str]) -> None:
        """One round: any number of exchanges, and what follows from them for what is shared."""

    @abstractmethod
    def download(self, client: str) -> Payload:
        """What a client gets of what is shared; it changes nothing."""

    def refuses_round(self) -> str | None:
        """Why no further round may start; None if one may."""
        return None

    def found(self) -> str:
        """What the set-up found out about the clients together, in words; empty if nothing is worth saying."""
        return ""

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
        """Plain values to commit beside them: what `load` needs."""
        return {}

    def fixed(self) -> dict[str, Tensor]:
        """Tensors that never change once they are there; written when clients join that bring some."""
        return {}

    @abstractmethod
    def load(self, tensors: dict[str, Tensor], plain: dict[str, Any], fixed: dict[str, Tensor]) -> None:
        """Stand where `state`, `plain_state` and `fixed` were taken."""

    def rejoin(self, client: str) -> Payload:
        """The welcome of a client that restarted, less anything that it keeps itself."""
        return Payload()

    def weight(self, reply: Reply) -> int:
        """A reply's weight in a mean: its training examples, or 1 (``weights: uniform``)."""
        return reply.examples if self.experiment.weights == "examples" else 1

    def rank_of(self, client: str) -> int:
        """Rank of what a client shares, for the report."""
        return self.experiment.rank

    def report(self) -> dict[str, Any]:
        """Figures worth showing; plain values."""
        return {}


class OneExchange(ServerMethod):
    """A server that sends, lets train and combines: one exchange a round."""

    def run_round(self, ask: Ask, number: int, selected: list[str]) -> None:
        self.start_round(number, selected)
        ask("train", {name: self.download(name) for name in selected}, self.add)
        self.finish_round()

    def start_round(self, number: int, selected: list[str]) -> None:
        """Forget the sums of the last round."""

    @abstractmethod
    def add(self, reply: Reply) -> None:
        """Fold one update in. Raises ProtocolError if the client may not send it; then nothing has changed."""

    @abstractmethod
    def finish_round(self) -> None:
        """Make the round's result what is shared."""


class Method:
    """A method's name, settings and halves, as found in the registry.

    Attributes:
        says: what it is, in a line.
        source: the paper; a rule that could not be read in it is labelled a reconstruction in the method's file.
        version: that of the client's half, unless the method counts its own.
        one_architecture: whether it only averages between clients of equal models.
        variant_of: the method whose settings it takes over when it runs as a baseline beside it.
        averages: whether what clients send is combined; a variant that does not tells what combining is worth.
        heading: what its column is called where it is a baseline.
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
        source: str = "",
        version: int | None = None,
        one_architecture: bool = False,
        variant_of: str = "",
        averages: bool = True,
        heading: str = "",
    ) -> None:
        self.name, self.settings, self.client, self.server, self.says = name, settings, client, server, says
        self.source, self.version, self.one_architecture = source, version or client.version, one_architecture
        self.variant_of, self.averages, self.heading = variant_of, averages, heading or name
        self.registry[name] = self

    @property
    def sends(self) -> str:
        """What leaves a client, in words, under the method's default settings."""
        return "; ".join(sent.says for sent in self.client.leaves(None, self.settings())) or "nothing"

    def actions(self, settings: Any) -> dict[str, Any]:
        """What client and server must have in common, as the server tells it when clients join."""
        own = {
            "name": self.name,
            "version": self.version,
            "actions": list(self.client.actions),
            "ends": self.client.ends,
        }
        host = self.client.stands_on(settings)
        return own | ({"host": host[0].actions(host[1])} if host else {})

    def versions(self, settings: Any) -> dict[str, int]:
        """Its version, and that of the method that it wraps, by name."""
        host = self.client.stands_on(settings)
        return {self.name: self.version} | (host[0].versions(host[1]) if host else {})

    def check_peer(self, wanted: object, settings: Any) -> None:
        """Raise ProtocolError unless the server runs what this client has."""
        if wanted != self.actions(settings):
            raise ProtocolError(
                f"the server runs {_in_words(wanted)}, this client has {_in_words(self.actions(settings))}; install the"
                " same version on both sides"
            )


def _in_words(method: object) -> str:
    if not isinstance(method, dict):
        return "an h2tune that does not say which method it runs"
    actions = ", ".join(map(str, method.get("actions") or []))
    host = f" on {_in_words(method['host'])}" if "host" in method else ""
    return f"{method.get('name')} version {method.get('version')} (actions {actions}){host}"
