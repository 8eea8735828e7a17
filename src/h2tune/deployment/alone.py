"""A client by itself, after the rounds: the same model, data, seeds and updates, and nothing is exchanged.

Over a network `baseline: local` is carried out at each client, on its own machine, and its figures stay there.
"""

from __future__ import annotations

from typing import Any

from h2tune.config import Experiment, Wire
from h2tune.deployment.kits import Kit
from h2tune.federation import run
from h2tune.store import ClientStore

FINAL, FOLDER = "final.json", "alone"  # under the kit's state/


def alone(experiment: Experiment) -> Experiment:
    """The same client's part of the experiment without a federation."""
    return experiment.model_copy(
        update={
            "method": "local",
            "baseline": "none",
            "wire": Wire(),
            "privacy": None,
            "secure_aggregation": None,
            "quorum": 1,
            "participation": 1.0,
        }
    )


def asked_for(kit: Kit, own: dict[str, Any]) -> bool:
    """Whether the federation's file asks for this, and it was not done yet."""
    done = (kit.folder / "state" / FOLDER / "metrics.json").is_file()
    return not done and "local" in kit.experiment(own).baselines


def train_alone(kit: Kit, own: dict[str, Any]) -> str:
    """Train alone, or go on with it; returns what federation was worth to this client, in words.

    Raises:
        StoreError: the folder holds a run with other settings.
    """
    store = ClientStore(kit.folder / "state")
    metrics = run(alone(kit.experiment(own)), store.folder / FOLDER, resume=True)
    mine = metrics["clients"][kit.about.name]["final"]["metric"]
    shared = (store.read_json(FINAL) or {}).get("metric")
    beside = "" if shared is None else f", in the federation {shared:.1%}"
    return f"{kit.about.name}: on its test rows alone {mine:.1%}{beside}. The run alone is in {store.folder / FOLDER}"
