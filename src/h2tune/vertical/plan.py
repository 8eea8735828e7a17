"""What a vertical federation will need and send, before anything is trained."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from h2tune.vertical.align import FORMS, as_keys, looser, normalise
from h2tune.vertical.config import VerticalConfig
from h2tune.vertical.exchange import Direct
from h2tune.vertical.federation import Frames, load_parties, salt_of
from h2tune.vertical.meeting import meet
from h2tune.vertical.methods import method_named
from h2tune.vertical.parties import PartyData
from h2tune.vertical.passive import Passive

MANY = 200_000  # rows above which ids are not compared in looser forms
HEADER = 530  # bytes of a message beside its tensors


def near_ids(mine: list[str], theirs: list[str]) -> tuple[str, int] | None:
    """The looser form in which most further ids would be common, and how many; None for large tables or none."""
    if max(len(mine), len(theirs)) > MANY:
        return None
    matched = {normalise(i) for i in mine} & {normalise(i) for i in theirs}
    rest = [[i for i in map(normalise, ids) if i not in matched] for ids in (mine, theirs)]
    found = {form: len(_common(rest[0], rest[1], form)) for form in FORMS}
    best = max(found, key=found.__getitem__)
    return (best, found[best]) if found[best] else None


def _common(mine: list[str], theirs: list[str], form: str) -> set[str]:
    """What ids have in common in a looser form; by digits alone only where one of the two has nothing else."""
    first, second = ({looser(i, form) for i in ids} for ids in (mine, theirs))
    if form == FORMS[0]:
        return (first & second) - {""}
    plain = [{looser(i, form) for i in ids if i.isdigit()} for ids in (mine, theirs)]
    return ((plain[0] & second) | (first & plain[1])) - {""}


def _check(config: VerticalConfig, data: dict[str, PartyData]) -> None:
    """Match people and classes as a run would, so that its mistakes show here."""
    # Whoever is shared does not depend on how it is found out, and hashes are faster.
    hashed = config.model_copy(update={"align": config.align.model_copy(update={"how": "hmac"})})
    parties = {p.name: Passive(hashed, data[p.name], salt_of(config, p.name)) for p in config.passive}
    active = data[config.label.party]
    meet(hashed, active, salt_of(config, active.name), Direct(dict(parties)))


def _labels_among(columns: dict[str, list[str]], classes: set[str]) -> list[str]:
    """Columns whose values are names of classes, if empty cells are left out."""
    return [name for name, values in columns.items() if (found := {*values} - {""}) and found <= classes]


@dataclass(frozen=True)
class PartyPlan:
    """One party: its rows and columns, and the bytes of a round."""

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


@dataclass(frozen=True)
class VerticalPlan:
    """All parties, and what deserves attention."""

    parties: list[PartyPlan]
    aligned: int
    classes: int
    warnings: list[str]

    def plain(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def make_plan(config: VerticalConfig, frames: Frames | None = None) -> VerticalPlan:
    """Read the parties' files and match them here, as `run` would.

    Raises:
        ConfigError, TableError, AlignmentError: for mistakes in the file or the data.
    """
    method_named(config.method.name)
    data = load_parties(config, frames)
    active = data[config.label.party]
    mine = as_keys(active.train.keys)
    shared = {n: np.isin(mine, as_keys(d.train.keys)) for n, d in data.items()}
    any_other = (
        np.any([shared[p.name] for p in config.passive], axis=0) if config.passive else np.ones(len(mine), bool)
    )
    _check(config, data)
    names = set(config.label.classes or (v for v in active.train.labels if v is not None))
    classes = len(names)
    training = config.training
    batch = min(training.batch, int(any_other.sum())) * training.dim * 4
    prototypes, shares = 2 * classes * training.dim * 4, classes * 4
    plans = []
    for name, party in data.items():
        is_active = name == config.label.party
        aligned = int((shared[name] & any_other).sum())
        up = training.steps * (batch + HEADER) + prototypes + 2 * shares + HEADER
        down = training.steps * (batch + HEADER) + prototypes + shares + HEADER
        tests = len(party.test) if party.test else 0
        columns = len(party.columns.numeric) + len(party.columns.categorical) + (party.config.encoder.kind == "text")
        labelled = sum(label is not None for label in party.train.labels)
        plans.append(PartyPlan(name, "active" if is_active else "passive", len(party.train), columns, party.width, aligned,
                               labelled, *((0, 0, 0) if is_active else (up, down, 16 * (len(party.train) + tests)))))  # fmt: skip
    return VerticalPlan(plans, int(any_other.sum()), classes, _warnings(config, data, plans, names))


def _warnings(
    config: VerticalConfig, data: dict[str, PartyData], plans: list[PartyPlan], names: set[str]
) -> list[str]:
    """What deserves attention before anything is trained."""
    active, classes, found = data[config.label.party], len(names), []
    for plan, (name, party) in zip(plans, data.items(), strict=True):
        passive = name != active.name
        found += [
            f"{name}: column {column!r} mostly holds numbers, but also {cell!r}, so that each value is a category of its"
            " own; empty cells are missing numbers"
            for column, cell in party.columns.odd.items()
        ]
        if party.test and (known := len(set(party.train.ids) & set(party.test.ids))):
            found.append(f"{name}: {known:,} of {len(party.test):,} test people are also in its training table")
        if not passive:
            continue
        if near := near_ids(active.train.ids, party.train.ids):
            found.append(f"{name}: {near[1]:,} more ids would be shared with {active.name} if compared {near[0]}")
        found += [
            f"{name}: the values of column {column!r} are names of classes; if they are labels, declare it"
            f" (`labels: {column}`)"
            for column in _labels_among(party.columns.categorical, names)
        ]
        if plan.aligned < 2 * classes:
            found.append(f"{name} shares only {plan.aligned} people with {active.name}; there are {classes} classes")
    if config.method.warmup > config.rounds and any(plan.aligned < plan.rows for plan in plans):
        found.append(
            f"rows that are not aligned are never used: that begins with round {config.method.warmup} (method.warmup), after"
            f" the last, {config.rounds}"
        )
    if config.exposure.label_dp is None and config.passive:
        found.append("gradients give the labels of aligned people away to the passive parties; see exposure.label_dp")
    return found
