"""What a vertical federation will need and send, before anything is trained."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from h2tune.config import ConfigError
from h2tune.errors import H2TuneError
from h2tune.protocol.codec import Payload
from h2tune.vertical import psi
from h2tune.vertical.align import DIGEST, as_keys
from h2tune.vertical.attention import about_tables, class_names
from h2tune.vertical.config import MethodConfig, VerticalConfig, load_past_mistakes
from h2tune.vertical.exchange import Direct
from h2tune.vertical.federation import load_parties, salt_of
from h2tune.vertical.fingerprint import Frames
from h2tune.vertical.meeting import meet
from h2tune.vertical.methods import method_named, prepare
from h2tune.vertical.parties import PartyData
from h2tune.vertical.passive import Passive
from h2tune.vertical.unused import unused

HEADER = 530  # bytes of a message beside its tensors


class _Counted(Direct):
    """Parties in this process, and how large their messages would be."""

    def ask(self, kind: str, payloads: dict[str, Payload]) -> dict[str, Payload]:
        """As in `Direct`."""
        answers = super().ask(kind, payloads)
        for ways, messages in ((self.sent, payloads), (self.received, answers)):
            for name, payload in messages.items():
                size = sum(tensor.nbytes for tensor in payload.tensors.values()) + HEADER
                size += len(json.dumps(list(payload.texts.values())))
                ways[name][kind] = ways[name].get(kind, 0) + size
        return answers


def _meet(config: VerticalConfig, data: dict[str, PartyData]) -> dict[str, tuple[int, int]]:
    """Match people and classes as a run would, so that its mistakes show here; the bytes of that, up and down."""
    if config.passive:
        psi.check_package(config.align.how)
    # Whoever is shared does not depend on how it is found out, and hashes are faster.
    hashed = config.model_copy(update={"align": config.align.model_copy(update={"how": "hmac"})})
    parties = {p.name: Passive(hashed, data[p.name], salt_of(config, p.name)) for p in config.passive}
    active = data[config.label.party]
    exchange = _Counted(dict(parties))
    meet(hashed, active, salt_of(config, active.name), exchange)
    once = {}
    for name in parties:
        up, down = (sum(ways[name].values()) for ways in (exchange.received, exchange.sent))
        for mine, theirs in ((active.train, data[name].train), (active.test, data[name].test)):
            if config.align.how == "psi" and mine is not None:
                blinded = psi.bytes_of(len(mine), len(theirs or ()))
                down += blinded[1]
                up += blinded[0] if theirs else 0
            if config.align.how == "psi" and theirs is not None:  # in place of the hashes that were counted
                up -= DIGEST * len(theirs)
        once[name] = up, down
    return once


@dataclass(frozen=True)
class PartyPlan:
    """One party: its rows and columns, the bytes of a round, and those before the first."""

    name: str
    role: str
    rows: int
    columns: int
    numbers: int
    aligned: int
    labelled: int
    bytes_up: int
    bytes_down: int
    once_up: int
    once_down: int


@dataclass(frozen=True)
class VerticalPlan:
    """All parties, what deserves attention, and what is wrong: then there are no parties."""

    parties: list[PartyPlan]
    aligned: int
    classes: int
    warnings: list[str]
    problems: list[str] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def make_plan(config: VerticalConfig, frames: Frames | None = None) -> VerticalPlan:
    """Read the parties' files and match them here, as `run` would.

    Raises:
        ConfigError, TableError, AlignmentError: for mistakes in the file or the data.
    """
    given, config = config, prepare(config)
    data = load_parties(config, frames)
    active = data[config.label.party]
    mine = as_keys(active.train.keys)
    shared = {n: np.isin(mine, as_keys(d.train.keys)) for n, d in data.items()}
    any_other = (
        np.any([shared[p.name] for p in config.passive], axis=0) if config.passive else np.ones(len(mine), bool)
    )
    once = _meet(config, data)
    classes = len(class_names(config, active))
    training = config.training
    batch = min(training.batch, int(any_other.sum())) * training.dim * 4
    prototypes, shares = 2 * classes * training.dim * 4, classes * 4
    plans = []
    for name, party in data.items():
        is_active = name == config.label.party
        aligned = int((shared[name] & any_other).sum())
        up = training.steps * (batch + HEADER) + prototypes + 2 * shares + HEADER
        down = training.steps * (batch + HEADER) + prototypes + shares + HEADER
        columns = len(party.columns.numeric) + len(party.columns.categorical) + (party.config.encoder.kind == "text")
        labelled = sum(label is not None for label in party.train.labels)
        plans.append(PartyPlan(name, "active" if is_active else "passive", len(party.train), columns, party.width, aligned,
                               labelled, *((0, 0, 0, 0) if is_active else (up, down, *once[name]))))  # fmt: skip
    return VerticalPlan(plans, int(any_other.sum()), classes, _warnings(config, given, data, plans))


def plan_of_file(path: str | Path) -> VerticalPlan:
    """The plan of a YAML file. Keys that are wrong hide no mistake in the data: whoever mends the file learns of all at once.

    Raises:
        ConfigError: with every mistake in the file, and what `make_plan` says without the keys that are wrong.
        TableError, AlignmentError: if nothing is wrong but the data.
    """
    config, mistakes = load_past_mistakes(path)
    if config is None:
        raise ConfigError(mistakes)
    try:
        prepare(config)
    except ConfigError as error:
        mistakes += error.problems
        config = config.model_copy(update={"method": config.method.model_copy(update={"name": MethodConfig().name})})
    try:
        found = make_plan(config)
    except H2TuneError as error:
        if not mistakes:
            raise
        mistakes.append(str(error))
    if mistakes:  # figures without the keys that are wrong would be another federation's
        raise ConfigError(mistakes)
    return found


def _warnings(
    config: VerticalConfig, given: VerticalConfig, data: dict[str, PartyData], plans: list[PartyPlan]
) -> list[str]:
    """What deserves attention before anything is trained: in the tables, as `run` says it, too, and in the settings."""
    found = unused(given, method_named(given.method.name)) + about_tables(config, data)
    if config.method.warmup > config.rounds and any(plan.aligned < plan.rows for plan in plans):
        found.append(
            f"rows that are not aligned are never used: that begins with round {config.method.warmup} (method.warmup), after"
            f" the last, {config.rounds}"
        )
    if config.exposure.label_dp is None and config.passive:
        found.append("gradients give the labels of aligned people away to the passive parties; see exposure.label_dp")
    return found
