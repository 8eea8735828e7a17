"""What all participants of a run must hold alike. A kit keeps what it was made with, whatever the coordinator changes later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from h2tune.config import Experiment
from h2tune.errors import ProtocolError

# What a client acts by. Rows, tasks and machines are its own; weights, quorum and participation are the server's.
COMMON = (
    "seed",
    "rounds",
    "rank",
    "depth",
    "blocks",
    "public",
    "training",
    "wire",
    "secure_aggregation",
    "privacy",
)
MOST = 8  # keys that are named
_FILE = "(a file)"


def agreed(experiment: Experiment, settings: Any) -> dict[str, Any]:
    """The values by which every client acts, as the server tells them when clients join; plain values, without paths.

    Args:
        settings: of the method, with its defaults.
    """
    plain = experiment.model_dump(mode="json", include=set(COMMON))
    told: dict[str, Any] = _without_paths(plain | {"method": settings.model_dump(mode="json")})
    return told


def check_agreed(ours: dict[str, Any], theirs: object) -> None:
    """Raise ProtocolError unless server and client hold the same values. An older server tells none."""
    if not isinstance(theirs, dict):
        return
    if keys := changed(theirs, ours):
        shown = ", ".join(keys[:MOST]) + (" and others" if len(keys) > MOST else "")
        raise ProtocolError(
            f"its kit and the server's hold different settings: {shown}; `h2tune provision` names the kits that are out of"
            " date, and makes them again with --renew NAME"
        )


def changed(old: Any, new: Any, path: str = "") -> list[str]:
    """Keys with other values, of those that both know: another version has other keys. Of files nothing is compared."""
    if isinstance(old, dict) and isinstance(new, dict):
        both = [key for key in old if key in new]
        return [found for k in both for found in changed(old[k], new[k], f"{path}.{k}" if path else str(k))]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [found for a, b in zip(old, new, strict=True) for found in changed(a, b, path)]
    return [] if old == new or (_is_file(old) and _is_file(new)) else [path]


def _without_paths(value: Any) -> Any:
    """Where a file lies on one machine is nobody else's business."""
    if isinstance(value, dict):
        return {key: _without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_paths(inner) for inner in value]
    return _FILE if _is_file(value) else value


def _is_file(value: Any) -> bool:
    """Whether it is a file of the coordinator's machine, or one of a kit's folder `public`."""
    return isinstance(value, str) and (value.startswith("public/") or Path(value).is_absolute())
