"""Keys of a file that change nothing, though they stand there: `plan`, `run`, `provision` and `compare` name them."""

from __future__ import annotations

from h2tune.vertical.config import MethodConfig, VerticalConfig
from h2tune.vertical.methods.base import Method, configure


def unused(config: VerticalConfig, method: Method) -> list[str]:
    """What is to be said of a file's keys under a method, a line each.

    Args:
        config: as the file has it, before the method has set anything.
    """
    found = _overridden(config, method)
    return found + ([] if method.train else _together(configure(config, method).method))


def _overridden(config: VerticalConfig, method: Method) -> list[str]:
    """Keys that the file sets, to other values than the method's own, which count."""
    found = []
    for section, values in (method.options or {}).items():
        given = getattr(config, section)
        for key, own in values.items():
            if key in given.model_fields_set and getattr(given, key) != own:
                found.append(f"{section}.{key}: {_word(getattr(given, key))} ({_word(own)})")
    if not found:
        return []
    shown = ", ".join(found)
    return [f"{method.name} has values of its own (in brackets) in place of those of the file: {shown}"]


def _together(method: MethodConfig) -> list[str]:
    """Options that are without effect beside another."""
    idle = []
    if method.combine == "probabilities":
        if method.top != "linear":
            idle.append((f"top: {method.top}", "combine: probabilities", "no network over all embeddings is asked"))
        if method.gate != "mean":
            idle.append((f"gate: {method.gate}", "combine: probabilities", "views that know a class count alike"))
    if method.select == "all" and method.agree:
        idle.append(("agree: true", "select: all", "all rows are trained on"))
    return [f"method.{key} is without effect beside method.{other}: {why}" for key, other, why in idle]


def _word(value: object) -> str:
    """A value as YAML has it."""
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
