"""Kits that hold other settings than the federation's file: a kit keeps what it was made with, whatever is changed later."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from h2tune.agreed import MOST, changed
from h2tune.deployment.kits import Kit, KitError

OUTDATED = (
    "earlier kits hold other settings than the file: {}. A kit keeps what it was made with; to change that, make {} again"
    " with {}, before the run begins"
)


def outdated(out: Path, names: Iterable[str], concerns: Callable[[str], dict[str, Any]]) -> str:
    """What is to be said of kits in ``out`` that the file of today would make otherwise; empty if there are none.

    Args:
        names: of the participants.
        concerns: what the file of today says that a participant's kit holds.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        try:
            old = Kit(out / name).mapping("federation.yaml")
        except KitError:  # it was handed over, or is damaged: nothing can be said of it here
            continue
        if keys := changed(*_resolved(old, concerns(name))):
            found[name] = keys
    if not found:
        return ""
    keys = list(dict.fromkeys(key for each in found.values() for key in each))
    shown = ", ".join(keys[:MOST]) + (" and others" if len(keys) > MOST else "")
    return OUTDATED.format(shown, ", ".join(found), " ".join(f"--renew {name}" for name in found))


def _resolved(old: dict[str, Any], new: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both with the same keys of their methods, as what they come to: whoever wrote them may have left out other settings.

    Kits of vertical federations hold all settings already.
    """
    if "parties" in new or old.get("method") == new.get("method"):
        return old, new
    specs = [plain.get("method") for plain in (old, new)]
    chosen = [{"name": "h2tune", **spec} if isinstance(spec, dict) else {"name": spec} for spec in specs]
    same = chosen[0]["name"] == chosen[1]["name"]  # settings of another method are not worth a word
    keys = chosen[0] | chosen[1] if same else ["name"]
    effects = [_settings(each) for each in chosen]
    before, after = ({key: each.get(key) for key in keys} for each in (effects if all(effects) else chosen))
    return old | {"method": before}, new | {"method": after}


def _settings(chosen: dict[str, Any]) -> dict[str, Any]:
    """All settings of a method with these; nothing if it cannot be had here."""
    from h2tune.methods.registry import MethodError, resolve_method  # imports PyTorch

    try:
        method, settings = resolve_method(chosen)
    except (MethodError, TypeError):
        return {}
    return {"name": method.name, **settings.model_dump(mode="json")}
