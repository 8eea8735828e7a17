"""h2tune: federated fine-tuning for organisations whose models, tasks and machines all differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from h2tune.version import __version__

if TYPE_CHECKING:
    from h2tune.adapter import TriLoraConfig, save_lora
    from h2tune.config import Experiment, load_config
    from h2tune.federation import run

__all__ = ["Experiment", "TriLoraConfig", "__version__", "load_config", "run", "save_lora"]

_HOMES = {
    "Experiment": "h2tune.config",
    "load_config": "h2tune.config",
    "run": "h2tune.federation",
    "TriLoraConfig": "h2tune.adapter",
    "save_lora": "h2tune.adapter",
}


def __getattr__(name: str) -> Any:
    """Import the public names on first use: the command line must not wait for torch."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'h2tune' has no attribute {name!r}")
