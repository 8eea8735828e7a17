"""The server's half of the methods that share one core: H2Tune and its kind.

The server reads an update, checks it, and hands it to the round's aggregator: the exact mean, a robust rule, the noisy
mean of differential privacy, or the sum of secure aggregation. Nothing received is trusted.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from math import comb
from typing import Any

import torch
from torch import Tensor

from h2tune.aggregation.base import Aggregator, Mean
from h2tune.aggregation.private import INSTALL, Private, epsilon, has_accountant
from h2tune.aggregation.robust import SUBSETS, Robust, Rule, rule_of
from h2tune.aggregation.secret_sharing import INSTALL as INSTALL_SECURE
from h2tune.aggregation.secret_sharing import is_available
from h2tune.aggregation.secure_mean import LEAST, SecureMean
from h2tune.config import Experiment, Wire
from h2tune.core.client_core import CoreShape
from h2tune.core.compress import Code, decode_update
from h2tune.core.packing import pack_core, unpack_core
from h2tune.core.relation import depth_relation, nearest_relation
from h2tune.errors import ProtocolError
from h2tune.methods.base import MethodError, OneExchange
from h2tune.methods.h2tune_settings import CoreSettings
from h2tune.protocol.codec import Payload
from h2tune.protocol.exchange import Ask, Reply

DOWNLOADS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def code_of(experiment: Experiment) -> Code | None:
    """The code of uploads; None where S itself travels."""
    wire = experiment.wire
    code = Code(wire.dtype, wire.top_k)
    # A download that was rounded makes S_i itself wrong by as much: then only the update says what was learnt.
    whole = code.lossless and wire.download == "float32" and experiment.privacy is None
    return None if whole else code


def robust_rule(experiment: Experiment, settings: CoreSettings) -> Rule | None:
    """The robust rule that the settings ask for; None is the mean."""
    if settings.aggregate == "mean":
        return None
    count = experiment.clients_per_round
    return rule_of(settings.aggregate, settings.trim, settings.faulty, settings.radius, count)


def check_options(experiment: Experiment, settings: CoreSettings) -> None:
    """Raise MethodError if the experiment's options exclude each other; needs no client."""
    problems = _against_rule(experiment, settings)
    if experiment.secure_aggregation:
        problems += [f"secure_aggregation: {text}" for text in _against_secrecy(experiment, settings)]
    if experiment.privacy:
        problems += [f"privacy: {text}" for text in _against_privacy(experiment, settings)]
    if problems:
        raise MethodError("\n".join(problems))


READ_BY = {"trim": ("trimmed",), "faulty": ("krum", "multi-krum", "closest"), "radius": ("bounded",)}
"""The rules that read a setting."""


def _against_rule(experiment: Experiment, settings: CoreSettings) -> list[str]:
    """What keeps a robust rule from meaning anything; warns of settings of other rules."""
    rule, count, problems = robust_rule(experiment, settings), experiment.clients_per_round, list[str]()
    for key, rules in READ_BY.items():
        if settings.aggregate not in rules and getattr(settings, key) != CoreSettings.model_fields[key].default:
            warnings.warn(
                f"method.{key} has no effect with aggregate: {settings.aggregate}; it belongs to {', '.join(rules)}",
                stacklevel=2,
            )
    if rule is not None and count < rule.needs:
        survives = f" to survive {rule.faulty} bad ones" if rule.name in ("krum", "multi-krum", "closest") else ""
        problems.append(
            f"method.aggregate: {rule.name} needs {rule.needs} clients in a round{survives}; there are {count}"
        )
    if rule is not None and experiment.wire.top_k is not None:
        problems.append(
            f"method.aggregate: {rule.name} compares clients entry by entry; with wire.top_k most entries of each are"
            " missing"
        )
    if rule is not None and rule.name == "closest" and comb(count, rule.faulty) > SUBSETS:
        problems.append(f"method.aggregate: closest would compare {comb(count, rule.faulty):,} sets; lower `faulty`")
    return problems


def _learned_masks(experiment: Experiment, settings: CoreSettings) -> bool:
    return settings.mask == "entries" and any(c.keep != 1 for c in experiment.clients)


def _against_privacy(experiment: Experiment, settings: CoreSettings) -> list[str]:
    """What would break the proof in `h2tune.aggregation.private`."""
    privacy = experiment.privacy
    assert privacy is not None
    found = {
        "needs weights: uniform (a client's weight must not depend on its data)": experiment.weights != "uniform",
        "needs aggregate: mean (the noise is made for a sum)": settings.aggregate != "mean",
        "excludes mask: entries with keep below 1 (which entries are kept is learnt from private data)": _learned_masks(
            experiment, settings
        ),
        "excludes patience (early stopping would leak unprotected scores)": experiment.patience is not None,
        f"delta must be below 1 / {len(experiment.clients)} clients": privacy.delta * len(experiment.clients) >= 1,
        INSTALL: not has_accountant(),
    }
    problems = [text for text, wrong in found.items() if wrong]
    if has_accountant() and privacy.epsilon and epsilon([privacy.noise], privacy.delta) > privacy.epsilon:
        problems.append(f"the budget epsilon {privacy.epsilon:g} does not last for one round; use more noise")
    return problems


def _against_secrecy(experiment: Experiment, settings: CoreSettings) -> list[str]:
    """What secure aggregation excludes, or lacks."""
    count, threshold = experiment.clients_per_round, experiment.secure_threshold
    assert threshold is not None
    found = {
        f"needs {LEAST} clients in a round, there are {count}: from a sum of two each knows the other's": count
        < LEAST,
        f"threshold {threshold} is below {LEAST}: from a sum of two each knows the other's": threshold < LEAST,
        f"threshold {threshold} can never be met by {count} clients": threshold > count,
        f"threshold {threshold} must be more than half of {count} clients": 2 * threshold <= count,
        "needs aggregate: mean (other rules must see every update)": settings.aggregate != "mean",
        "excludes wire: sums are of whole numbers of 64 bits": experiment.wire != Wire(),
        "excludes privacy: the server must clip every update once more": experiment.privacy is not None,
        "excludes mask: entries with keep below 1 (which entries are kept would have to be told)": _learned_masks(
            experiment, settings
        ),
        INSTALL_SECURE: not is_available(),
    }
    return [text for text, wrong in found.items() if wrong]


class CoreServer(OneExchange):
    """Holds the core, and a round's updates on their way into it.

    A method adds how the core is set up: ``shape``, ``S``, and by client ``ranks``, ``masked``, slots ``held`` and number
    of ``blocks``.

    Attributes:
        randomness: source of the noise of privacy; tests may put another in its place, nothing else does.
        spent: noise multiplier of every round that was published.
    """

    randomness = staticmethod(os.urandom)

    shape: CoreShape
    S: Tensor

    def __init__(self, experiment: Experiment, settings: CoreSettings) -> None:
        super().__init__(experiment, settings)
        self.code, self.least = code_of(experiment), experiment.secure_threshold or 0
        self.aggregator = self._aggregator()
        self.ranks: dict[str, int] = {}
        self.masked: dict[str, bool] = {}
        self.held: dict[str, list[str]] = {}
        self.blocks: dict[str, int] = {}
        self.fits: dict[str, bool] = {}
        self.spent: list[float] = []
        self.excluded = 0
        self.selected: list[str] = []  # clients of the round that is under way
        self.summed: Tensor | None = None  # entries of which a secure sum has been made; None if there was none

    def _aggregator(self) -> Aggregator:
        """The one place where it is decided how updates are combined."""
        experiment = self.experiment
        if experiment.secure_threshold is not None:
            return SecureMean(self.read, experiment.secure_threshold)
        if experiment.privacy is not None:
            mean = Mean(self.read)
            return Private(mean, experiment.privacy.clip, experiment.privacy.noise, lambda n: self.randomness(n))
        rule = robust_rule(experiment, self.settings)
        return Robust(self.read, rule) if rule else Mean(self.read)

    @classmethod
    def allows(cls, experiment: Experiment, settings: Any) -> None:
        check_options(experiment, settings)

    def check_introduction(self, name: str, payload: Payload) -> None:
        super().check_introduction(name, payload)
        if payload.meta["rank"] > self.experiment.rank:
            raise ProtocolError(f"its rank {payload.meta['rank']} is above the core's, {self.experiment.rank}")
        depth = self.experiment.depth or payload.meta["depth"]
        room = depth * len(payload.meta["slots"]) * self.experiment.rank**2 * 4
        if room > self.experiment.network.largest:
            raise ProtocolError(f"a core of its depth {depth} would take {room:,} bytes, more than network.limit")

    def rank_of(self, client: str) -> int:
        return self.ranks.get(client, self.experiment.rank)

    def reached(self, client: str) -> Tensor:
        """Entries of S (L x slots x R x R) that are sent to a client: all depths of its slots, to its rank.

        None to one that the frames do not fit.
        """
        r, whole = self.ranks[client], self.shape.zeros().bool()
        if self.fits.get(client, True):
            whole[:, [self.shape.slots.index(s) for s in self.held[client]], :r, :r] = True
        return whole

    def covers(self, client: str) -> Tensor:
        """Entries that a client sends, from what is public: its slots, its rank, its blocks, and whether frames fit it."""
        start = nearest_relation if self.settings.relation == "nearest" else depth_relation
        reads = (start(self.shape.depth, self.blocks[client]) > 0).any(1)
        return self.reached(client) & reads[:, None, None, None]

    def in_company(self) -> Tensor:
        """Entries that can be combined; under secure aggregation those that enough clients cover.

        Of the clients of a round under way, or else of all that are known.
        """
        if not self.least:
            return self.shape.zeros() == 0
        among = self.selected or list(self.ranks)
        return sum((self.covers(name).int() for name in among), self.shape.zeros()) >= LEAST

    def check_company(self) -> None:
        """Raise MethodError if there is nothing that could be combined."""
        if not self.in_company().any():
            raise MethodError(
                f"secure_aggregation: no entry of the core is covered by {LEAST} clients, so there is nothing to sum;"
                " it takes more clients of like models (depth, slots)"
            )

    def company_in_words(self) -> str:
        """Under secure aggregation, what share of the core is combined; else empty."""
        if not self.least:
            return ""
        covered = sum((self.covers(name).int() for name in self.ranks), self.shape.zeros()) > 0
        share = float(self.in_company().sum() / covered.sum())
        rest = "" if share == 1 else "; clients keep the rest to themselves"
        return f"{share:.0%} of the core's entries are covered by {LEAST} clients and summed{rest}"

    def download(self, client: str) -> Payload:
        return Payload(self.pack(self.S, client))

    def pack(self, core: Tensor, client: str) -> dict[str, Tensor]:
        """The part of a core that a client reads."""
        r, width = self.ranks[client], DOWNLOADS[self.experiment.wire.download]
        company = self.in_company() if self.selected or self.summed is None else self.summed
        coverage = (self.reached(client) & company)[..., :r, :r]
        whole = coverage.flatten(2).any(-1)[..., None, None] == coverage
        return pack_core(core[..., :r, :r], coverage, masked=not bool(whole.all()), dtype=width)

    def run_round(self, ask: Ask, number: int, selected: list[str]) -> None:
        self.start_round(number, selected)
        ask = self.aggregator.wrap(ask)
        ask("train", {name: self.download(name) for name in selected}, self.add)
        self.excluded = len(ask.excluded())
        self.finish_round()

    def start_round(self, number: int, selected: list[str]) -> None:
        self.selected = selected
        company = self.in_company()
        self.aggregator.start(self.S, {name: self.covers(name) & company for name in selected})

    def add(self, reply: Reply) -> None:
        self.aggregator.add(reply.client, reply.payload.tensors, self.weight(reply))

    def read(self, client: str, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """S_i and its coverage; raises ProtocolError if it is not what this client may send."""
        rank, masked = self.ranks[client], self.masked[client]
        try:
            if self.code is not None:
                update, coverage = decode_update(dict(tensors), self.shape, rank, self.code, masked=masked)
                core = self.S[..., :rank, :rank].double() + update.double()
            elif tensors.keys() != {"values", "pairs"} | ({"mask"} if masked else set()):
                raise ValueError("it holds other tensors than it may send")
            else:
                core, coverage = unpack_core(dict(tensors), self.shape, rank)
            if (coverage & ~self.covers(client)[..., :rank, :rank]).any():
                raise ValueError("it covers other entries than its depth, slots and rank say")
            return core, coverage
        except (ValueError, RuntimeError) as error:
            raise ProtocolError(f"the update of {client} is malformed: {error}") from None

    def finish_round(self) -> None:
        self.S = self.aggregator.result(self.excluded)
        self.spent += self.aggregator.spent
        if isinstance(self.aggregator, SecureMean):  # of what was never summed there is nothing to hand out at the end
            held = self.aggregator.weight > 0
            self.summed = held if self.summed is None else self.summed | held
        self.aggregator.spent, self.selected = [], []

    def notices(self) -> list[str]:
        told, self.aggregator.notices = self.aggregator.notices, []
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

    def state(self) -> dict[str, Tensor]:
        return {"S": self.S} | ({} if self.summed is None else {"summed": self.summed.to(torch.uint8)})

    def plain_state(self) -> dict[str, Any]:
        shape = {"depth": self.shape.depth, "rank": self.shape.rank, "slots": list(self.shape.slots)}
        clients = {"ranks": self.ranks, "masked": self.masked, "held": self.held, "blocks": self.blocks,
                   "fits": self.fits}  # fmt: skip
        return {"shape": shape, "spent": self.spent} | clients

    def load(self, tensors: dict[str, Tensor], plain: dict[str, Any], fixed: dict[str, Tensor]) -> None:
        shape = plain["shape"]
        self.shape, self.S = CoreShape(shape["depth"], shape["rank"], tuple(shape["slots"])), tensors["S"].clone()
        self.summed = tensors["summed"].bool() if "summed" in tensors else None
        self.ranks, self.masked, self.held = plain["ranks"], plain["masked"], plain["held"]
        self.blocks, self.spent, self.fits = plain["blocks"], plain["spent"], plain.get("fits", {})

    def rejoin(self, client: str) -> Payload:
        shape = {"depth": self.shape.depth, "slots": list(self.shape.slots)}
        return Payload(meta=shape | {"fits": self.fits.get(client, True)})
