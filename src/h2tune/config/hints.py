"""Where a key belongs that stands in the wrong place, or what was meant by one that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel

from h2tune.config.schema import ClientConfig, Experiment

Model = type[BaseModel]

OF_THE_METHOD = ("accept", "aggregate", "alternation", "core_loss", "core_rule", "frames", "private", "train_factors")
"""Settings of H2Tune that the pages speak of beside the file's own keys, so that they are easily written there."""


def unknown_key(steps: Sequence[Any], where: str) -> str:
    """One line for a key that there is not at this place.

    Args:
        steps: the place, as in ``ValidationError.errors()``. where: the same in words.
    """
    key, models = str(steps[-1]), _models(steps[:-1])
    owner = models[-1]
    if owner is Experiment and key in OF_THE_METHOD:
        return f"{where}: is a setting of the method; write it there: method: {{name: h2tune, {where}: ...}}"
    if there := _elsewhere(key, models, [str(step) for step in steps[:-1] if isinstance(step, str)]):
        return f"{where}: {there}"
    if owner is ClientConfig and (shared := _of_all(key)):
        return (
            f"{where}: unknown key here: `{shared}` is a key of the whole federation and cannot be set for one client"
        )
    near = difflib.get_close_matches(key, list(owner.model_fields), 1, 0.5)
    hint = f" Did you mean `{near[0]}`?" if near else f" Known keys: {', '.join(owner.model_fields)}."
    return f"{where}: unknown key.{hint}"


def _elsewhere(key: str, models: Sequence[Model], steps: Sequence[str]) -> str:
    """Where a key that exists elsewhere belongs: on its own level if it can, else on another one; empty if nowhere."""
    owner = models[-1]
    level = owner if owner in (Experiment, ClientConfig) else models[-2]  # a section stands on the level that it is in
    if found := [name for name in _sections_with(key, level) if level is owner or name != steps[-1]]:
        example = f"{found[0]}: {{{key}: ...}}"
        shown = " or ".join(f"`{name}`" for name in found)
        return f"unknown key here; it belongs to {shown}{': ' if len(found) == 1 else ', for example '}{example}"
    if level is not owner and key in level.model_fields:
        return f"unknown key here; it belongs beside `{steps[-1]}`, not in it"
    if level is ClientConfig and (shared := [f"`{name}`" for name in _sections_with(key, Experiment)]):
        return f"unknown key here: it belongs to {' or '.join(shared)} of the whole federation and cannot be set for one client"
    if level is Experiment:
        inner = [f"`{name}` of a client" for name in _sections_with(key, ClientConfig)]
        if found := ["each client"] * (key in ClientConfig.model_fields) + inner:
            return f"unknown key here; it belongs to {' or '.join(found)}"
    return ""


def _models(steps: Sequence[Any]) -> list[Model]:
    """The models on the way to a place, the whole file first."""
    found: list[Model] = [Experiment]
    for step in steps:
        field = found[-1].model_fields.get(str(step))
        if field is not None and (inner := _model_in(field.annotation)):
            found.append(inner)
    return found


def _model_in(annotation: Any) -> Model | None:
    """The model that a value is, may be, or holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)


def _sections_with(key: str, level: Model) -> list[str]:
    """Keys of a level whose values are mappings that know a key."""
    inner = {name: _model_in(field.annotation) for name, field in level.model_fields.items()}
    names = [name for name in inner if name not in ("clients", "methods")]  # lists of other things
    return [name for name in names if (model := inner[name]) is not None and key in model.model_fields]


def _of_all(key: str) -> str | None:
    """The key of a whole federation that is meant by one of a client, if no key of clients is nearer to it."""
    near = difflib.get_close_matches(key, {**ClientConfig.model_fields, **Experiment.model_fields}, 1, 0.5)
    here = {*ClientConfig.model_fields, "device"}  # a client of a network has its own device
    return near[0] if near and near[0] not in here else None
