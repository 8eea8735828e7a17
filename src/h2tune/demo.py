"""The demo's federation: one trade, three organisations, three models, three answer formats.

Each client has a few word problems in its own format; all use the same eighteen trade words, which no base model has
met. What a word means can be learnt from anybody's examples, so this is a case in which sharing can help; whether
it does, and whether frames alone would have done it, the demo measures against two baselines.
"""

from __future__ import annotations

from typing import Any

from h2tune.config import Experiment, parse_config

FORMATS = {"fill": "zoo:llama", "choice": "zoo:gpt2", "program": "zoo:qwen"}


def demo_experiment(seed: int = 0, **changes: Any) -> Experiment:
    """The demo as an experiment; ``changes`` override its keys."""
    clients = [
        {
            "name": name,
            "model": model,
            "task": f"demo-{name}",
            "train": f"demo:{name}?split=train&n=60&seed={seed}",
            "validation": f"demo:{name}?split=validation&n=60&seed={seed}",
            "test": f"demo:{name}?split=test&n=300&seed={seed}",
        }
        for name, model in FORMATS.items()
    ]
    data: dict[str, Any] = {
        "name": "demo",
        "seed": seed,
        "rounds": 8,
        "method": "h2tune",
        "rank": 16,
        "anchors": "demo",
        "clients": clients,
        "training": {"steps": 30, "batch_size": 16},
        "evaluation": {"every": 2},
        "baseline": ["local", "h2tune-unshared"],
        "device": "cpu",
    }
    return parse_config(data | changes)
