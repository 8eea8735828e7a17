"""Planted tables: Gaussian classes whose columns are split over parties."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from h2tune.vertical.config import VerticalConfig, parse_vertical

Frames = dict[str, tuple[pd.DataFrame, pd.DataFrame | None]]
PARTIES = ("bank", "clinic", "shop")


def planted(seed: int = 0, classes: int = 4, aligned: int = 80, alone: int = 120, tests: int = 100, width: int = 4,
            unseen: int | None = None, spread: float = 0.6) -> Frames:  # fmt: skip
    """Tables of three parties; `clinic` alone labels rows of an unseen class (column `code`)."""
    rng = np.random.default_rng(seed)
    centres = {name: rng.normal(size=(classes, width)) * 1.5 for name in PARTIES}

    def people(n: int, prefix: str, without: int | None) -> tuple[list[str], np.ndarray]:
        allowed = [c for c in range(classes) if c != without]
        return [f"{prefix}{i:05d}" for i in range(n)], rng.choice(allowed, n)

    def table(name: str, ids: list[str], labels: np.ndarray) -> pd.DataFrame:
        x = centres[name][labels] + spread * rng.normal(size=(len(ids), width))
        frame = pd.DataFrame({f"x{j}": x[:, j] for j in range(width)})
        frame.insert(0, "id", ids)
        return frame

    shared, test = people(aligned, "a", unseen), people(tests, "t", None)
    frames: Frames = {}
    for name in PARTIES:
        own = people(alone, f"{name}-", unseen if name == "bank" else None)
        ids, labels = shared[0] + own[0], np.concatenate([shared[1], own[1]])
        train, probe = table(name, ids, labels), table(name, *test)
        if name == "bank":
            train["kind"], probe["kind"] = [f"class-{c}" for c in labels], [f"class-{c}" for c in test[1]]
        if name == "clinic" and unseen is not None:
            train["code"] = [f"class-{unseen}" if c == unseen and i >= aligned else None for i, c in enumerate(labels)]
        frames[name] = (train, probe)
    return frames


def config(classes: int = 4, unseen: int | None = None, **changes: Any) -> VerticalConfig:
    """A small federation over `planted`; nested keys are given as mappings."""
    parties: list[dict[str, Any]] = [{"name": name, "train": "-", "test": "-"} for name in PARTIES]
    if unseen is not None:
        parties[1]["labels"] = "code"
    data: dict[str, Any] = {
        "rounds": 6,
        "label": {"party": "bank", "column": "kind", "classes": [f"class-{c}" for c in range(classes)]},
        "parties": parties,
        "method": {"warmup": 2},
        "training": {"dim": 8, "hidden": 16, "batch": 32, "steps": 4, "local_steps": 4},
        "evaluation": {"every": 3},
    }
    for key, value in changes.items():
        data[key] = data[key] | value if isinstance(value, dict) and isinstance(data.get(key), dict) else value
    return parse_vertical(data)


def changed(name: str, edit) -> dict:
    """The planted tables, with one party's training rows edited."""
    frames = planted()
    train = frames[name][0].copy()
    return frames | {name: (edit(train), frames[name][1])}
