"""The demo's federation: one trade, three organisations, three models, three answer formats.

Each client has 24 word problems in its own format; all use the same eighteen trade words, which no base model has met.
What a word means can be learnt from anybody's examples, so this is a case in which sharing can help; whether it
does, and whether frames alone would have done it, the demo measures against two baselines. The frames are those by
glossary: the list of trade words is public, what they mean is not.
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
            "train": f"demo:{name}?split=train&n=24&seed={seed}",
            "validation": f"demo:{name}?split=validation&n=60&seed={seed}",
            "test": f"demo:{name}?split=test&n=300&seed={seed}",
            "practice": f"demo:{name}?split=practice&n=8000&seed={seed}",
        }
        for name, model in FORMATS.items()
    ]
    method = {"name": "h2tune", "frames": "glossary", "slots": ["o", "up", "down"], "train_factors": False}
    data: dict[str, Any] = {
        "name": "demo",
        "seed": seed,
        "rounds": 20,
        "method": method,
        "rank": 32,
        "anchors": "demo",
        "clients": clients,
        # The rate of local LoRA was chosen for it among 5e-4 to 5e-3.
        "training": {"steps": 10, "batch_size": 16, "learning_rate": 1e-3, "core_learning_rate": 1e-2},
        "evaluation": {"every": 10, "n_validation": 60},
        "baseline": ["local", "h2tune-unshared"],
        "device": "cpu",
    }
    return parse_config(data | changes)
