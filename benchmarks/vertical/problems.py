"""Real tables as vertical problems: fresh splits, few aligned rows, long tails in another class order at each party.

Every seed pools the rows of train and test and splits them anew: a fifth for the test, `aligned` rows with all columns,
the rest dealt out to the parties, each of which keeps a long tail of it in a class order of its own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

DATA = Path(__file__).parents[2] / ".." / "shared" / "data"
Frames = dict[str, tuple[pd.DataFrame, pd.DataFrame | None]]


@dataclass(frozen=True)
class Setting:
    """One cell of the grid.

    Attributes:
        table: which data set.
        aligned: rows that all parties have.
        tail: how many times the commonest class of a party outnumbers its rarest.
        aligned_tail: the same for the aligned rows.
        unseen: whether one class (which one: the seed) has no aligned row and none at the active party.
        labelled: rows of the unseen class that each passive party labels; None for all.
    """

    table: str
    aligned: int = 100
    tail: int = 20
    aligned_tail: int = 1
    unseen: bool = False
    labelled: int | None = None


@dataclass(frozen=True, eq=False)
class Problem:
    """Tables of all parties for training, validation (for tuning only) and test; and all columns, for an upper bound."""

    label: str
    classes: list[str]
    active: str
    frames: Frames
    pooled: tuple[pd.DataFrame, pd.DataFrame]
    unseen: int | None

    def config(self, seed: int, **changes: Any) -> dict[str, Any]:
        """The federation's config as plain values."""
        parties = [{"name": name, "train": "-", "test": "-"} | self._labels(name) for name in self.frames]
        data: dict[str, Any] = {
            "seed": seed,
            "label": {"party": self.active, "column": self.label, "classes": self.classes},
            "parties": parties,
            "evaluation": {"every": 1000},
        }
        for key, value in changes.items():
            data[key] = data.get(key, {}) | value if isinstance(value, dict) else value
        return data

    def _labels(self, name: str) -> dict[str, str]:
        return {"labels": "code"} if "code" in self.frames[name][0] else {}


def load(table: str) -> tuple[pd.DataFrame, dict[str, list[str]], str]:
    """All rows of a table, the columns of each party, and the label column."""
    folder = DATA / f"tabular_{table}"
    about = json.loads((folder / "parties.json").read_text())
    frame = pd.concat([pd.read_csv(folder / f"{part}.csv") for part in ("train", "test")], ignore_index=True)
    frame[about["label"]] = frame[about["label"]].astype(str)
    return frame, about["parties"], about["label"]


def long_tail(rows: np.ndarray, labels: np.ndarray, tail: int, rng: np.random.Generator) -> np.ndarray:
    """Some of the rows, so that class sizes fall from the largest possible to that divided by `tail`."""
    classes = rng.permutation(np.unique(labels[rows]))
    available = np.array([(labels[rows] == c).sum() for c in classes])
    wanted = tail ** -(np.arange(len(classes)) / max(len(classes) - 1, 1))
    size = (available / wanted).min()
    kept = [
        rng.choice(rows[labels[rows] == c], max(1, int(size * w)), replace=False)
        for c, w in zip(classes, wanted, strict=True)
    ]
    return np.concatenate(kept)


def build(setting: Setting, seed: int, *, tuning: bool = False) -> Problem:
    """The problem of a setting and seed.

    Two fifths of the rows, always the same ones, are those that tests are drawn from. With ``tuning`` the problem is
    made of the other three fifths alone: what was chosen on it has seen no test row of any seed.
    """
    frame, parties, label = load(setting.table)
    fixed = np.random.default_rng(20261126).permutation(len(frame))
    held = fixed[: 2 * len(frame) // 5]
    if tuning:
        frame = frame.loc[fixed[len(held) :]].reset_index(drop=True)
    rng = np.random.default_rng([seed, 7 if tuning else 3])
    labels = frame[label].to_numpy()
    classes = sorted(frame[label].unique())
    source = np.arange(len(frame)) if tuning else held
    test = rng.permutation(source)[: len(frame) // 5]
    rest = rng.permutation(np.setdiff1d(np.arange(len(frame)), test))
    unseen = seed % len(classes) if setting.unseen else None
    name_of = classes[unseen] if unseen is not None else None
    allowed = rest[labels[rest] != name_of]
    aligned = _aligned(allowed, labels, setting, rng)
    free = np.setdiff1d(rest, aligned)
    parts = np.array_split(rng.permutation(free), len(parties))
    frames: Frames = {}
    ids = np.array([f"p{i:06d}" for i in range(len(frame))])
    names = list(parties)
    for index, (name, part) in enumerate(zip(names, parts, strict=True)):
        if index == 0:
            part = part[labels[part] != name_of]
        own = np.concatenate([aligned, long_tail(part, labels, setting.tail, rng)])
        train, probe = frame.loc[own, parties[name]].copy(), frame.loc[test, parties[name]].copy()
        train.insert(0, "id", ids[own])
        probe.insert(0, "id", ids[test])
        if index == 0:
            train[label], probe[label] = labels[own], labels[test]
        elif name_of is not None:
            train["code"] = _codes(labels[own], len(aligned), name_of, setting.labelled)
        frames[name] = (train.reset_index(drop=True), probe.reset_index(drop=True))
    # The upper bound has every column and the label of every row that any party has.
    held = np.unique(np.concatenate([np.searchsorted(ids, f[0]["id"].to_numpy()) for f in frames.values()]))
    columns = [c for own in parties.values() for c in own] + [label]
    return Problem(label, classes, names[0], frames, (frame.loc[held, columns], frame.loc[test, columns]), unseen)


def _aligned(rows: np.ndarray, labels: np.ndarray, setting: Setting, rng: np.random.Generator) -> np.ndarray:
    """`aligned` rows: in equal class sizes, or in a long tail."""
    classes = rng.permutation(np.unique(labels[rows]))
    shape = setting.aligned_tail ** -(np.arange(len(classes)) / max(len(classes) - 1, 1))
    sizes = np.maximum(np.floor(setting.aligned * shape / shape.sum()).astype(int), 1)
    for index in range(setting.aligned - sizes.sum()):
        sizes[index % len(sizes)] += 1
    chosen = [
        rng.choice(rows[labels[rows] == c], min(n, (labels[rows] == c).sum()), replace=False)
        for c, n in zip(classes, sizes, strict=True)
    ]
    return np.concatenate(chosen)


def _codes(labels: np.ndarray, aligned: int, name: str, most: int | None) -> list[str | None]:
    rows = np.flatnonzero((labels == name) & (np.arange(len(labels)) >= aligned))[:most]
    codes: list[str | None] = [None] * len(labels)
    for row in rows:
        codes[row] = name
    return codes
