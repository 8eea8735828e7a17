"""The way of a core's update, between a client's S and the server's sum: what H2Tune itself need not know.

A client sends S itself, or, where `wire` asks for smaller messages, the update S_i - S in the code of
`h2tune.core.compress`, with what the code lost in earlier rounds added; where `privacy` is asked for the update is
clipped before. The server reads an update, judges it, and folds it into the round's mean: the exact streaming sum
(`h2tune.core.client_core.CoreSum`), a robust rule that keeps them all (`h2tune.aggregation.robust`), or the noisy mean of
differential privacy (`h2tune.aggregation.private`), which clips once more: nothing received is trusted.
"""

from __future__ import annotations

import os
from math import comb
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from h2tune.aggregation.private import INSTALL, PrivateMean, clipped, epsilon, has_accountant
from h2tune.aggregation.robust import SUBSETS, RobustMean, Rule, rule_of
from h2tune.aggregation.secret_sharing import ClientSecrets, SecureError
from h2tune.aggregation.secure_mean import MaskedMean, against_secrecy, masked_tensors, threshold_of
from h2tune.core.client_core import CoreShape, CoreSum
from h2tune.core.compress import Code, decode_update, encode_update
from h2tune.core.packing import pack_core, unpack_core
from h2tune.core.relation import depth_relation, nearest_relation
from h2tune.methods.base import MethodError, ServerMethod
from h2tune.protocol.codec import Payload, ProtocolError

if TYPE_CHECKING:
    from h2tune.config import Experiment
    from h2tune.methods.h2tune_settings import H2TuneSettings

DOWNLOADS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def code_of(experiment: Experiment) -> Code | None:
    """The code of uploads; None where S itself travels."""
    wire = experiment.wire
    code = Code(wire.dtype, wire.top_k)
    # A download that was rounded makes S_i itself wrong by as much: then only the update says what was learnt.
    whole = code.lossless and wire.download == "float32" and experiment.privacy is None
    return None if whole else code


def robust_rule(experiment: Experiment, settings: H2TuneSettings) -> Rule | None:
    """The robust rule that the settings ask for; None is the mean."""
    if settings.aggregate == "mean":
        return None
    count = experiment.clients_per_round
    return rule_of(settings.aggregate, settings.trim, settings.faulty, settings.radius, count)


def check_updates(experiment: Experiment, settings: H2TuneSettings) -> None:
    """Raise MethodError if the experiment's options exclude each other; needs no client."""
    problems: list[str] = []
    rule, count = robust_rule(experiment, settings), experiment.clients_per_round
    if settings.share and rule is not None and count < rule.needs:
        survives = f" to survive {rule.faulty} bad ones" if rule.name in ("krum", "multi-krum", "closest") else ""
        problems.append(
            f"method.aggregate: {rule.name} needs {rule.needs} clients in a round{survives}; there are {count}"
        )
    if rule is not None and rule.name == "closest" and comb(count, rule.faulty) > SUBSETS:
        problems.append(f"method.aggregate: closest would compare {comb(count, rule.faulty):,} sets; lower `faulty`")
    if experiment.secure_aggregation:
        problems += [f"secure_aggregation: {text}" for text in against_secrecy(experiment, settings)]
    if experiment.privacy:
        problems += [f"privacy: {text}" for text in _against_privacy(experiment, settings)]
    if problems:
        raise MethodError("\n".join(problems))


def _against_privacy(experiment: Experiment, settings: H2TuneSettings) -> list[str]:
    """What would break the proof in `h2tune.aggregation.private`, or leave nothing to prove."""
    privacy = experiment.privacy
    assert privacy is not None
    masked = settings.mask == "entries" and any(c.keep != 1 for c in experiment.clients)
    found = {
        "needs weights: uniform (a client's weight must not depend on its data)": experiment.weights != "uniform",
        "needs aggregate: mean (the noise is made for a sum)": settings.aggregate != "mean",
        "excludes mask: entries with keep below 1 (which entries are kept is learnt from private data)": masked,
        "excludes relation: similarity (coverage must be known from sizes alone)": settings.relation == "similarity",
        "excludes share: false (nothing is shared, so there is nothing to protect)": not settings.share,
        "excludes patience (validation figures are not protected, and when they end a run they tell)": (
            experiment.patience is not None
        ),
        f"delta must be below 1 / {len(experiment.clients)} clients": privacy.delta * len(experiment.clients) >= 1,
        INSTALL: not has_accountant(),
    }
    problems = [text for text, wrong in found.items() if wrong]
    if has_accountant() and privacy.epsilon and epsilon([privacy.noise], privacy.delta) > privacy.epsilon:
        problems.append(f"the budget epsilon {privacy.epsilon:g} does not last for one round; use more noise")
    return problems


class ClientUpdates:
    """The client's half: what is sent for a trained S."""

    def __init__(self, experiment: Experiment, core: Tensor) -> None:
        self.code = code_of(experiment)
        self.clip = experiment.privacy.clip if experiment.privacy else None
        self.rank, self.secret = experiment.rank, experiment.secure_aggregation is not None
        self.secrets: tuple[ClientSecrets, dict[str, str], int] | None = None
        self.received, self.lost = torch.zeros(core.shape), torch.zeros(core.shape)

    def receive(self, core: Tensor) -> None:
        """Remember the server's S as it arrived: updates start there."""
        self.received = core.detach().cpu().clone()

    def pack(self, core: Tensor, coverage: Tensor, *, masked: bool) -> dict[str, Tensor]:
        """Tensors to send; once per round, since what the code loses is remembered."""
        if self.secret:
            return self._masked(core, coverage)
        if self.code is None:
            return pack_core(core, coverage, masked=masked)
        update = core.detach().cpu() - self.received + self.lost
        if self.clip is not None:
            update = clipped(update, coverage, self.clip)  # what is cut off is not remembered: it would pile up
        tensors, decoded = encode_update(update, coverage, self.code, masked=masked)
        self.lost = torch.where(coverage, update - decoded, self.lost)
        return tensors

    def _masked(self, core: Tensor, coverage: Tensor) -> dict[str, Tensor]:
        if self.secrets is None:  # whatever the server asks for, nothing leaves without masks
            raise SecureError("secure aggregation was agreed on, and the server asks for a core without masks")
        (secrets, sealed, weight), self.secrets = self.secrets, None
        return masked_tensors(core, coverage, self.rank, weight, secrets, sealed)

    def state(self) -> dict[str, Tensor]:
        """What a restart needs: private, as S is before it is sent."""
        return {} if self.code is None or self.code.lossless else {"wire.lost": self.lost.clone()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.lost = state.get("wire.lost", self.lost).clone()


class CoreServer(ServerMethod):
    """The server's half, for methods that share one core: a round's updates on their way into it.

    A method adds how the core is set up and sent: ``shape``, ``S``, and by client ``ranks``, ``masked``, slots ``held``
    and number of ``blocks``.

    Attributes:
        randomness: source of the noise of privacy; tests may put another in its place, nothing else does.
    """

    randomness = staticmethod(os.urandom)

    shape: CoreShape
    S: Tensor
    ranks: dict[str, int]
    masked: dict[str, bool]
    held: dict[str, list[str]]
    blocks: dict[str, int]

    def __init__(self, experiment: Experiment, settings: H2TuneSettings) -> None:
        super().__init__(experiment, settings)
        self.rule, self.code = robust_rule(experiment, settings), code_of(experiment)
        self.told: list[str] = []
        self.spent: list[float] = []  # noise multiplier of every round that was published
        self.selected: list[str] = []

    @classmethod
    def allows(cls, experiment: Experiment, settings: H2TuneSettings) -> None:
        check_updates(experiment, settings)

    def check_introduction(self, name: str, payload: Payload) -> None:
        super().check_introduction(name, payload)
        if payload.meta["rank"] > self.experiment.rank:
            raise ProtocolError(f"its rank {payload.meta['rank']} is above the core's, {self.experiment.rank}")
        depth = self.experiment.depth or payload.meta["depth"]
        room = depth * len(payload.meta["slots"]) * self.experiment.rank**2 * 4
        if room > self.experiment.network.largest:
            raise ProtocolError(f"a core of its depth {depth} would take {room:,} bytes, more than network.limit")

    def reached(self, client: str) -> Tensor:
        """Entries of S (L x slots x R x R) that are sent to a client: all depths of its slots, to its rank."""
        r, whole = self.ranks[client], self.shape.zeros().bool()
        whole[:, [self.shape.slots.index(s) for s in self.held[client]], :r, :r] = True
        return whole

    def covers(self, client: str) -> Tensor:
        """Entries that a client sends, from what is public: its slots, its rank, and how many blocks it has."""
        start = nearest_relation if self.settings.relation == "nearest" else depth_relation
        reads = (start(self.shape.depth, self.blocks[client]) > 0).any(1)
        return self.reached(client) & reads[:, None, None, None]

    def download(self, client: str) -> Payload:
        if not self.settings.share:
            return Payload()
        r, width = self.ranks[client], DOWNLOADS[self.experiment.wire.download]
        coverage = self.reached(client)[..., :r, :r]
        return Payload(pack_core(self.S[..., :r, :r], coverage, masked=False, dtype=width))

    def expect(self, selected: list[str]) -> None:
        self.selected = selected

    def start_round(self) -> None:
        self.robust = RobustMean(self.shape, self.rule) if self.rule else None
        self.sum, self.private = CoreSum(self.shape), None
        self.masked_mean: MaskedMean | None = None
        if privacy := self.experiment.privacy:
            covers = {name: self.covers(name) for name in self.selected}
            self.private = PrivateMean(self.shape, privacy.clip, privacy.noise, covers, self.randomness)

    def add(self, client: str, payload: Payload, weight: int) -> None:
        if not self.settings.share:
            return
        if self.masked_mean:
            self._add_masked(client, payload.tensors, weight)
            return
        core, coverage = self._read(client, payload.tensors)
        if self.private:
            self._add_privately(client, core, coverage)
        elif self.robust:
            self.robust.add(client, core, coverage)
        else:
            self.sum.add(core, coverage, weight)

    def expect_masked(self, publics: dict[str, tuple[str, str]], context: bytes) -> None:
        self.masked_mean = MaskedMean(self.shape, publics, context)

    def _add_masked(self, client: str, tensors: dict[str, Tensor], weight: int) -> None:
        try:
            self.masked_mean.add(client, tensors, self.covers(client), weight)
        except ValueError as error:
            raise ProtocolError(f"the update of {client} is refused: {error}") from None

    def unmask(self, members: list[str], revealed: dict[str, dict[str, str]]) -> None:
        self.S = self.masked_mean.mean(self.S, members, revealed, threshold_of(self.experiment))

    def _read(self, client: str, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """S_i and its coverage; raises ProtocolError if it is not what this client may send."""
        rank, masked = self.ranks[client], self.masked[client]
        try:
            if self.code is not None:
                update, coverage = decode_update(tensors, self.shape, rank, self.code, masked=masked)
                return self.S[..., :rank, :rank].double() + update.double(), coverage
            if tensors.keys() != {"values", "pairs"} | ({"mask"} if masked else set()):
                raise ValueError("it holds other tensors than it may send")
            return unpack_core(tensors, self.shape, rank)
        except (ValueError, RuntimeError) as error:
            raise ProtocolError(f"the update of {client} is malformed: {error}") from None

    def _add_privately(self, client: str, core: Tensor, coverage: Tensor) -> None:
        r = core.shape[-1]
        try:
            self.private.add(client, core - self.S[..., :r, :r].double(), coverage)
        except ValueError as error:
            raise ProtocolError(f"the update of {client} is refused: {error}") from None

    def finish_round(self) -> None:
        if not self.settings.share:
            return
        if self.masked_mean:
            return  # the mean was made when the sum was revealed
        if self.private:
            self.S = self.private.mean(self.S)
            self.spent.append(self.private.noise)
        elif self.robust:
            self.S, instead = self.robust.mean(self.S, self.excluded)
            self.told += [instead] if instead else []
        else:
            self.S = self.sum.mean(self.S)

    def notices(self) -> list[str]:
        told, self.told = self.told, []
        return told

    def privacy(self) -> dict[str, Any]:
        """What is spent after so many rounds; empty without privacy."""
        privacy = self.experiment.privacy
        if privacy is None:
            return {}
        spent = epsilon(self.spent, privacy.delta)
        return {"epsilon": spent, "delta": privacy.delta, "budget": privacy.epsilon, "rounds": len(self.spent)}

    def refuses_round(self) -> str | None:
        privacy = self.experiment.privacy
        if privacy is None or privacy.epsilon is None:
            return None
        after = epsilon([*self.spent, privacy.noise], privacy.delta)
        if after <= privacy.epsilon:
            return None
        return f"one more round would spend epsilon {after:.2f} of a budget of {privacy.epsilon:g}"
