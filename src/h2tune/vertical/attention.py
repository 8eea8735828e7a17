"""What deserves its owner's attention in tables that can be used: `plan` and `run` say it before anything is trained."""

from __future__ import annotations

import numpy as np

from h2tune.vertical.align import DECIMALS, FORMS, as_keys, looser
from h2tune.vertical.config import VerticalConfig
from h2tune.vertical.parties import PartyData
from h2tune.vertical.spelling import alike, normalise
from h2tune.vertical.table import CATEGORIES

MANY = 200_000  # rows above which ids are not compared in looser forms


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
    if form in (FORMS[0], DECIMALS):
        return (first & second) - {""}
    plain = [{looser(i, form) for i in ids if i.isdigit()} for ids in (mine, theirs)]
    return ((plain[0] & second) | (first & plain[1])) - {""}


def _labels_among(columns: dict[str, list[str]], classes: set[str]) -> list[str]:
    """Columns whose values are names of classes, if empty cells are left out."""
    return [name for name, values in columns.items() if (found := {*values} - {""}) and found <= classes]


def class_names(config: VerticalConfig, active: PartyData) -> set[str]:
    """Names of the classes as far as the active party knows them."""
    return set(config.label.classes or (label for label in active.train.labels if label is not None))


def about_tables(config: VerticalConfig, data: dict[str, PartyData]) -> list[str]:
    """Warnings about the tables of all parties in ``data``, the active party among them, a line each."""
    active, found = data[config.label.party], list[str]()
    for name, party in data.items():
        found += about_columns(name, party)
        if party.test and (known := len({*map(normalise, party.train.ids)} & {*map(normalise, party.test.ids)})):
            found.append(f"{name}: {known:,} of {len(party.test):,} test people are also in its training table")
        if name != active.name:
            found += _about_passive(config, active, party)
    found += _about_validation(config, active, data)
    if twins := alike(sorted(class_names(config, active))):
        found.append(
            f"{active.name}: {twins[0]!r} and {twins[1]!r} are two classes, though they differ by case, spaces or forms of a"
            " character only; if one is meant, write them alike"
        )
    if active.test and all(label is None for label in active.test.labels):
        found.append(f"{active.name}: no test person has a label in {config.label.column!r}, so nothing is scored")
    return found


def _about_validation(config: VerticalConfig, active: PartyData, data: dict[str, PartyData]) -> list[str]:
    """A word where too few rows are kept for validation to choose a round by."""
    others = [as_keys(party.train.keys) for name, party in data.items() if name != active.name]
    shared = (
        np.isin(as_keys(active.train.keys), np.concatenate(others)) if others else np.ones(len(active.train), bool)
    )
    aligned, classes = int(shared.sum()), len(class_names(config, active))
    if not 0 < (kept := config.evaluation.kept(aligned)) < classes:
        return []
    return [
        f"{kept} of {aligned:,} aligned people {'is' if kept == 1 else 'are'} kept for validation, and there are {classes}"
        " classes: the round that is best for so few may not be the best. Raise evaluation.validation; 0 keeps the last"
        " round"
    ]


def about_columns(name: str, party: PartyData) -> list[str]:
    """Warnings about columns whose numbers are not read as numbers."""
    return [
        f"{name}: column {column!r} mostly holds numbers, but also {cell!r}, so that each value is a category of its"
        " own; empty cells are missing numbers"
        for column, cell in party.columns.odd.items()
    ] + [
        f"{name}: column {column!r} holds many different values such as {cell!r}, of which {CATEGORIES} at most are told"
        " apart, as categories without order. If they are numbers, write them bare, with a point (61044, 34.3); leave codes"
        " and dates out (`columns: [...]`)"
        for column, cell in party.columns.coded.items()
    ]


def _about_passive(config: VerticalConfig, active: PartyData, party: PartyData) -> list[str]:
    name, names, found = party.name, class_names(config, active), list[str]()
    if near := near_ids(active.train.ids, party.train.ids):
        found.append(f"{name}: {near[1]:,} more ids would be shared with {active.name} if compared {near[0]}")
    found += [
        f"{name}: the values of column {column!r} are names of classes; if they are labels, declare it"
        f" (`labels: {column}`)"
        for column in _labels_among(party.columns.categorical, names)
    ]
    shared = int(np.isin(as_keys(active.train.keys), as_keys(party.train.keys)).sum())
    if shared < 2 * len(names):
        found.append(f"{name} shares only {shared} people with {active.name}; there are {len(names)} classes")
    return found
