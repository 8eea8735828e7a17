"""Run directories made of nothing but numbers, in the states that a report must cope with."""

from __future__ import annotations

from typing import Any

SLOTS = ["q", "k", "v", "o", "up", "down"]
MODELS = [("zoo:llama", "llama"), ("zoo:gemma", "gemma"), ("zoo:gpt2", "gpt2")]
TASKS = [("gsm8k", "generate"), ("aqua", "choice"), ("sst2", "classify")]


def client(index: int, rounds: int = 5, depth: int = 4, gain: float | None = None) -> dict[str, Any]:
    """One client's metrics; `gain` is federated minus alone."""
    model, family = MODELS[index % 3]
    task, kind = TASKS[index % 3]
    local = 0.5 + 0.03 * (index % 5)
    final = local + (0.02 * (index % 7) - 0.03 if gain is None else gain)
    return {
        "model": model, "family": family, "task": task, "kind": kind, "metric": "accuracy",
        "n_train": 180, "n_validation": 20, "n_test": 400, "keep": 0.5, "rank": 16,
        "base": {"metric": 0.11 + 0.05 * (index % 3), "nats": 3.21},
        "local": {"metric": local, "nats": 1.52, "validation": local + 0.01},
        "final": {"metric": final, "nats": 1.31, "validation": final + 0.02},
        "majority": 0.52, "unigram_nats": 2.4, "kept": "federated" if final >= local else "local", "status": "ok",
        "rounds": [_round(entry, rounds, final) for entry in range(1, rounds + 1)],
        "relation": [[0.7 if row == column else 0.3 / (depth - 1) for column in range(depth)] for row in range(depth)],
        "agreement": {
            "in": [[0.9 - 0.1 * block - 0.02 * slot for slot in range(6)] for block in range(depth)],
            "out": [[0.8 - 0.1 * block - 0.03 * slot for slot in range(6)] for block in range(depth)],
            "slots": SLOTS,
        },
        "anchor_coverage": {"words": 0.931, "missing": ["ledger", "ward"]},
        "setup_bytes": {"up": 912_345, "down": 64_210},
    }  # fmt: skip


def _round(entry: int, rounds: int, final: float) -> dict[str, Any]:
    reached = final * (1 - 0.5 ** (entry + 1))
    return {
        "round": entry,
        "loss": {"shared": 2.4 * 0.8**entry, "specific": 2.2 * 0.75**entry},
        "validation": {"metric": reached + 0.02, "nats": 2.0 * 0.9**entry},
        "test": {"metric": reached, "nats": 2.1 * 0.9**entry} if entry % 2 or entry == rounds else None,
        "bytes_up": 24_620,
        "bytes_down": 24_580,
        "seconds": 3.4,
    }


def metrics(clients: dict[str, dict[str, Any]], **changes: Any) -> dict[str, Any]:
    norms = [[0.5 + 0.3 * row + 0.1 * slot for slot in range(6)] for row in range(4)]
    return {
        "schema": 1, "name": "three-trades", "method": "h2tune", "seed": 0, "rounds": 5, "finished": True,
        "seconds": 131.2, "version": "0.1.0", "clients": clients,
        "mean": {"base": None, "local": None, "final": None},
        "core": {"depth": 4, "slots": SLOTS, "rank": 16, "norms": norms},
    } | changes  # fmt: skip


def three(**changes: Any) -> dict[str, Any]:
    clients = {"hospital": client(0, gain=0.14), "bank": client(1, gain=0.09), "factory": client(2, gain=0.12)}
    return metrics(clients, **changes)
