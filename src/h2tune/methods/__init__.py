"""Federated methods, one per file. Importing this package registers them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from h2tune.methods import (  # noqa: F401 - they register themselves
    celora,
    colora,
    fedex,
    fedit,
    fedmkt,
    fedprox,
    fedsa,
    fedsb,
    ffa,
    flexlora,
    flora,
    h2tune,
    hetlora,
    local,
    lora_fair,
    pfedlora,
    published,
    rolora,
)
from h2tune.methods.base import Method, MethodError, Settings

if TYPE_CHECKING:
    from h2tune.config import Experiment

__all__ = ["Method", "MethodError", "method_of", "resolve_method"]


def method_of(experiment: Experiment) -> tuple[Method, Settings]:
    """The experiment's method with its settings, after a check that the experiment's options suit each other.

    Raises:
        MethodError: for what `resolve_method` refuses, and for options that exclude each other.
    """
    method, settings = resolve_method(experiment.method)
    method.server.allows(experiment, settings)
    return method, settings


def resolve_method(spec: str | Mapping[str, Any]) -> tuple[Method, Settings]:
    """The method that ``method:`` in a config names, with its settings.

    Raises:
        MethodError: for an unknown name or setting, naming the nearest.
    """
    options = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = str(options.pop("name", "h2tune"))
    if name not in Method.registry:
        near = difflib.get_close_matches(name, Method.registry, 1, 0.4)
        hint = f"Did you mean `{near[0]}`?" if near else f"Known: {', '.join(sorted(Method.registry))}."
        raise MethodError(f"method: there is no method {name!r}. {hint}")
    method = Method.registry[name]
    try:
        return method, method.settings(**options)
    except ValidationError as error:
        raise MethodError("\n".join(_explain(method, e) for e in error.errors())) from None


def _explain(method: Method, error: Any) -> str:
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, method.settings.model_fields, 1, 0.5)
        hint = f"Did you mean `{near[0]}`?" if near else f"Known: {', '.join(method.settings.model_fields) or 'none'}."
        return f"method.{key}: {method.name} has no such setting. {hint}"
    return f"method.{key}: {error['msg']}"
