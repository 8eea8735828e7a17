"""What the methods that exchange LoRA factors share: groups of equal models, checks, who has which version.

Factors A (r x d_in) and B (d_out x r) only fit between clients with the same base model, so the federation is
divided into groups of equal bases and each method's rule is applied within a group. A client that is alone in its
group trains locally and sends nothing, until one with the same base joins; a federation of nothing but lone clients is
refused.

A method is then one formula, `FactorServer.combine`, for one adapted map:

    pairs = [(A_1, B_1), ...], weights p_k with sum 1   ->   the pair that the group shares

Baselines keep a round's updates until it ends, in the order of the clients' names: their memory grows with the number of
clients, which the exact streaming sum of H2Tune avoids.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from h2tune.config import Experiment
from h2tune.core.masks import kept_rank
from h2tune.errors import ProtocolError
from h2tune.methods.adapter_client import AdapterClient
from h2tune.methods.base import MethodError, ModelShape, OneExchange, PlannedBytes, Sent
from h2tune.participant.trainer import Penalty, with_penalty
from h2tune.protocol.codec import Payload
from h2tune.protocol.exchange import Ask, Reply
from h2tune.utils.seeds import derive

Pair = tuple[Tensor, Tensor]
"""A (r x d_in) and B (d_out x r) of one map."""


def mean(matrices: list[Tensor], weights: list[float]) -> Tensor:
    """``sum_k p_k M_k`` in double precision; exactly M where all are equal to M."""
    first = matrices[0].double()
    total = sum(w * (m.double() - first) for m, w in zip(matrices, weights, strict=True))
    return (first + total).to(matrices[0].dtype)


def stack(pairs: list[Pair], weights: list[float]) -> Pair:
    """One pair whose product is ``sum_k p_k B_k A_k`` exactly, of rank ``sum_k r_k``."""
    return torch.cat([a for a, _ in pairs]), torch.cat(
        [w * b for (_, b), w in zip(pairs, weights, strict=True)], dim=1
    )


class FactorClient(AdapterClient):
    """A client with a plain LoRA (TriLoRA with rho = 1 and T = 0) whose factors travel.

    Attributes:
        sends, trains: which of A and B.
        any_rank: whether ``keep`` may give clients different ranks.
        offset: whether the server's answers are also written into a frozen dense part.
        shared: whether another client that takes part has the same base; the server says so in every round.
    """

    version = 2  # every round says whether others share the base
    protects_rows = True
    sends: ClassVar[tuple[str, ...]] = ("A", "B")
    trains: ClassVar[tuple[str, ...]] = ("A", "B")
    any_rank: ClassVar[bool] = False
    offset: ClassVar[bool] = False
    hosts = True
    shared = True

    @classmethod
    def planned_bytes(cls, experiment: Experiment, settings: Any, shape: ModelShape) -> PlannedBytes:
        """If another client has the same base, or may have for all that is known here; else nothing."""
        if len(shape.peers) < 2 and len(shape.company) == len(experiment.clients):
            return PlannedBytes(0, 0)
        sizes = (d_in * ("A" in cls.sends) + d_out * ("B" in cls.sends) for d_in, d_out, _ in shape.maps)
        size = 4 * shape.rank * sum(sizes)
        return PlannedBytes(size, size)

    @classmethod
    def leaves(cls, experiment: Experiment | None, settings: Any) -> list[Sent]:
        what = " and ".join(cls.sends)
        says = f"the LoRA factors {what} of every adapted map, if another client has the same base model"
        return [Sent("train", tuple(f"*.{kind}" for kind in cls.sends), says)]

    @property
    def adapter_rank(self) -> int:
        return kept_rank(self.context.keep, self.context.rank) if self.any_rank else self.context.rank

    def join(self, fresh: bool = True) -> Payload:
        self.attach(self.adapter_rank, residual=True, offset=self.offset)
        self.common_start(0)
        if fresh:
            self.warm_head()
        for leaf in self.middles:
            leaf.requires_grad_(False)
        self.make_groups()
        return Payload(meta=self.introduction())

    def common_start(self, round: int) -> None:
        """The same A in all clients of a group (a smaller rank has the leading rows), B = 0."""
        with torch.no_grad():
            for index, layer in enumerate(self.layers):
                a = layer.trilora_A[self.context.adapter]
                generator = torch.Generator().manual_seed(derive(self.context.seed, "factors", round, index))
                bound = a.shape[1] ** -0.5
                whole = torch.empty(self.context.rank, a.shape[1]).uniform_(-bound, bound, generator=generator)
                a.copy_(whole[: a.shape[0]])
                layer.trilora_B[self.context.adapter].zero_()

    def factors_of(self, kinds: tuple[str, ...]) -> list[torch.nn.Parameter]:
        return [getattr(layer, f"trilora_{kind}")[self.context.adapter] for layer in self.layers for kind in kinds]

    def make_groups(self) -> None:
        for parameter in self.factors:
            parameter.requires_grad_(False)
        trained = [*self.factors_of(self.trains), *self.head]
        self.groups = {"adapter": self.group(trained, self.context.learning_rate, self.updates)}

    def penalty(self) -> Penalty | None:
        """What is added to the loss; called when the shared factors have been received."""
        return None

    def train(self, round: int, payload: Payload) -> Payload:
        self.take(payload)
        loss = with_penalty(self.penalty())
        steps = self.steps - self.left_out
        self.train_groups([self.groups["adapter"]], self.context.batches(round), "local", loss, steps)
        self.finish_training()
        return Payload(self.pack())

    def pack(self) -> dict[str, Tensor]:
        """What is sent: the method's factors, ``0.A`` and so on; nothing where nobody else has this base."""
        if not self.shared:
            return {}
        return {
            f"{i}.{kind}": getattr(layer, f"trilora_{kind}")[self.context.adapter].detach().clone()
            for i, layer in enumerate(self.layers)
            for kind in self.sends
        }

    def welcome(self, payload: Payload, fresh: bool = True) -> Payload:
        self.shared = payload.said("shared", bool)
        return Payload()

    def take(self, payload: Payload) -> None:
        """What a round begins with: whether others share this base, and what they share."""
        if "shared" in payload.meta:  # a method with a server of its own need not say it
            self.shared = payload.said("shared", bool)
        self.receive(payload)

    def receive(self, payload: Payload) -> None:
        with torch.no_grad():
            for name, tensor in payload.tensors.items():
                index, _, kind = name.partition(".")
                own = getattr(self.layers[int(index)], f"trilora_{kind}")[self.context.adapter]
                if own.shape != tensor.shape:
                    raise ProtocolError(f"the server sent {name!r} of shape {tuple(tensor.shape)}")
                own.copy_(tensor)

    def fold_in(self, factors: dict[str, Tensor]) -> None:
        """Add the product of each map's pair (``0.A``, ``0.B``, ...; any rank) to the adapter's frozen offset."""
        with torch.no_grad():
            for index, layer in enumerate(self.layers):
                a, b = factors[f"{index}.A"], factors[f"{index}.B"]
                offset = layer.trilora_offset[self.context.adapter]
                if (b.shape[0], a.shape[1]) != offset.shape or a.shape[0] != b.shape[1]:
                    raise ProtocolError(f"the server sent factors that do not fit map {index}")
                offset += (b @ a).to(offset)


class FactorServer(OneExchange):
    """Groups, checks and versions; a method adds `combine`.

    Attributes:
        client: the method's other half, which knows what is sent.
        whole_rounds: whether every round changes the clients' base weights, so that nobody may miss one.
        known: introductions. gone: who was excluded when the round began. factors: what each group shares, ``base/0.A`` and so on. version: of every shared tensor.
        given: by client, the version of each tensor that it has. current: the last round that each client took part in.
    """

    needs = ("fingerprint", "maps", "rank")
    client: ClassVar[type[FactorClient]] = FactorClient
    whole_rounds: ClassVar[bool] = False

    def __init__(self, experiment: Experiment, settings: Any) -> None:
        super().__init__(experiment, settings)
        self.known: dict[str, dict[str, Any]] = {}
        self.gone: list[str] = []
        self.group_of: dict[str, str] = {}
        self.factors: dict[str, Tensor] = {}
        self.version: dict[str, int] = {}
        self.given: dict[str, dict[str, int]] = {}
        self.current: dict[str, int] = {}
        self.round = 0

    def check_introduction(self, name: str, payload: Payload) -> None:
        super().check_introduction(name, payload)
        whole = next(c for c in self.experiment.clients if c.name == name).keep == 1
        if whole and payload.meta["rank"] != self.experiment.rank:
            raise ProtocolError(f"its rank {payload.meta['rank']} is not the experiment's, {self.experiment.rank}")

    @classmethod
    def groups_of(cls, introductions: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
        """Clients by base model, in the order of their names."""
        groups: dict[str, list[str]] = {}
        for name in sorted(introductions):
            groups.setdefault(introductions[name]["fingerprint"], []).append(name)
        return groups

    @classmethod
    def suits(cls, experiment: Experiment, introductions: Mapping[str, Mapping[str, Any]]) -> None:
        groups = cls.groups_of(introductions)
        late = [c.name for c in experiment.clients if c.joins > 1]
        if cls.whole_rounds and (late or experiment.participation < 1):
            raise MethodError(
                "this method rewrites the clients' base weights in every round, so nobody may miss one:"
                + (f" {', '.join(late)} join late" if late else " participation is below 1")
            )
        to_come = set(late) - introductions.keys()
        if not to_come and all(len(names) == 1 for names in groups.values()):
            raise MethodError(
                "this method averages LoRA factors, which only fit between equal base models, and each of"
                f" {', '.join(sorted(introductions))} has another: it would be local training"
            )
        for names in groups.values():
            ranks = {name: introductions[name]["rank"] for name in names}
            if not cls.client.any_rank and len(set(ranks.values())) > 1:
                raise MethodError(f"this method needs one rank within a group, but there are {ranks}")

    def open(self, joined: dict[str, Payload], described: dict[str, Payload]) -> dict[str, Payload]:
        known = self.known | {name: dict(p.meta) for name, p in joined.items()}
        self.suits(self.experiment, known)  # a client that is refused must leave nothing behind
        self.known = known
        self.current |= dict.fromkeys(joined, self.round)
        for name in joined:  # whoever joins anew has nothing of what it was given before
            self.given.pop(name, None)
        self._form_groups()
        return {name: self.rejoin(name) for name in joined}

    def rejoin(self, client: str) -> Payload:
        return Payload(meta=self._standing(client))

    def _standing(self, client: str) -> dict[str, Any]:
        """Whether a client shares; told in every round, since who joins late may be the first twin of a lone one."""
        return {"shared": client in self.group_of}

    def _groups(self) -> dict[str, list[str]]:
        return self.groups_of({name: known for name, known in self.known.items() if name not in self.gone})

    def _form_groups(self) -> None:
        groups = self._groups()
        self.group_of = {n: base for base, names in groups.items() if len(names) > 1 for n in names}

    def shapes(self, client: str, rank: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what a client with so many rows of A may send."""
        shapes: dict[str, tuple[int, ...]] = {}
        for index, (d_in, d_out) in enumerate(self.known[client]["maps"]):
            shapes |= {f"{index}.{k}": ((rank, d_in) if k == "A" else (d_out, rank)) for k in self.client.sends}
        return shapes

    def run_round(self, ask: Ask, number: int, selected: list[str]) -> None:
        if self.whole_rounds:
            selected = self._without_gaps(ask, number, selected)
        # Here and not in the middle of a round: an update is judged by what its sender was told when the round began.
        self.gone = ask.excluded()
        self._form_groups()
        super().run_round(ask, number, selected)

    def _without_gaps(self, ask: Ask, number: int, selected: list[str]) -> list[str]:
        """The clients that took part in every round; the base weights of the others are not the group's any more."""
        for name in selected:
            if (missed := self.current[name] + 1) < number:
                reason = f"it missed round {missed}, in which the others' base weights changed; it cannot catch up"
                ask.exclude(name, f"{reason} with this method")
        return [name for name in selected if ask.takes_part(name)]

    def start_round(self, number: int, selected: list[str]) -> None:
        self.round = number
        self.updates: dict[str, dict[str, Tensor]] = {}
        self.weights: dict[str, int] = {}
        self.took_part: list[str] = []

    def add(self, reply: Reply) -> None:
        client = reply.client
        if client in self.group_of:
            self.updates[client] = self.check(client, reply.payload)
            self.weights[client] = self.weight(reply)
        elif reply.payload.tensors:
            raise ProtocolError(f"{client} has no peer on its base model and may not send factors")
        self.took_part.append(client)

    def check(self, client: str, payload: Payload) -> dict[str, Tensor]:
        """The factors of an update; raises ProtocolError if they are not what this client may send."""
        rank = self.known[client]["rank"]
        got, wanted = {k: tuple(t.shape) for k, t in payload.tensors.items()}, self.shapes(client, rank)
        if got != wanted:
            odd = sorted(got.items() ^ wanted.items())[:1]
            raise ProtocolError(f"the update of {client} does not hold the factors that it should: {odd}")
        if not all(t.is_floating_point() for t in payload.tensors.values()):
            raise ProtocolError(f"the update of {client} holds something other than numbers")
        return payload.tensors

    def finish_round(self) -> None:
        for client in self.took_part:  # what they were sent is now in the state that they keep
            self.given[client] = {key: self.version.get(key, 0) for key in self._keys(client)}
            self.current[client] = self.round
        for base in sorted(set(self.group_of.values())):
            names = sorted(n for n in self.updates if self.group_of[n] == base)
            if names:
                total = sum(self.weights[n] for n in names)
                self.combine_group(base, names, [self.weights[n] / total for n in names])
        if (
            self.whole_rounds
        ):  # what these send is added to the base: it must not reach a client again that is alone by now
            shared = set(self.group_of.values())
            self.factors = {key: t for key, t in self.factors.items() if key.partition("/")[0] in shared}
        self.updates = {}

    def combine_group(self, base: str, names: list[str], weights: list[float]) -> None:
        """Apply the rule to every map of a group, and count a new version of whatever was sent."""
        for index in range(len(self.known[names[0]]["maps"])):
            pairs = [tuple(self.updates[n].get(f"{index}.{kind}") for kind in "AB") for n in names]
            result = self.combine(pairs, weights)  # type: ignore[arg-type]
            for kind, tensor in zip("AB", result, strict=True):
                if tensor is not None:
                    key = f"{base}/{index}.{kind}"
                    self.factors[key], self.version[key] = tensor, self.version.get(key, 0) + 1

    def combine(self, pairs: list[Pair], weights: list[float]) -> Pair:
        """The method's rule for one map; a factor that is not sent is None."""
        raise TypeError(f"{type(self).__name__} has no rule")

    def _keys(self, client: str) -> list[str]:
        """Names of the tensors that a client's group shares, or has shared last."""
        base = self.known[client]["fingerprint"]
        return [key for key in self.factors if key.startswith(f"{base}/")]

    def download(self, client: str) -> Payload:
        """The group's factors, cut to the client's rank; only those that it does not have yet."""
        rank, given, tensors = self.known[client]["rank"], self.given.get(client, {}), {}
        for key in self._keys(client):
            if given.get(key) != self.version[key]:
                name, tensor = key.partition("/")[2], self.factors[key]
                tensors[name] = tensor[:rank] if name.endswith("A") else tensor[:, :rank]
        return Payload(tensors, self._standing(client))

    def everything(self, client: str) -> Payload:
        """All of the group's tensors: for methods whose rounds nobody may miss."""
        tensors = {key.partition("/")[2]: self.factors[key] for key in self._keys(client)}
        return Payload(tensors, self._standing(client))

    def state(self) -> dict[str, Tensor]:
        return dict(self.factors)

    def plain_state(self) -> dict[str, Any]:
        counts = {"version": self.version, "given": self.given, "current": self.current, "round": self.round}
        return {"known": self.known} | counts

    def load(self, tensors: dict[str, Tensor], plain: dict[str, Any], fixed: dict[str, Tensor]) -> None:
        self.factors = {k: v.clone() for k, v in tensors.items()}
        self.known, self.version, self.given = plain["known"], plain["version"], plain["given"]
        self.current, self.round = plain["current"], plain["round"]
        self._form_groups()

    def report(self) -> dict[str, Any]:
        groups = sorted(map(sorted, self._groups().values()))
        return {"groups": groups, "alone": sorted(names[0] for names in groups if len(names) == 1)}
