"""A federation of three different models, for the tests of methods."""

from __future__ import annotations

from typing import Any

from federations import small


def trio(**changes: Any) -> Any:
    settings = {
        "rounds": 2,
        "training": {"steps": 3, "batch_size": 4, "learning_rate": 0.01},
        "evaluation": {"every": 9},
    }
    return small(clients=3, **(settings | changes))


def spec(name: str) -> Any:
    return {"name": name, "sentences": 6} if name == "fedmkt" else name
