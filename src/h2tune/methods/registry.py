"""Finds a method by its name: the package's own, one of another package, or one in a file of the user's own.

method: fedit                        # the package's own, or of a package with the entry point ``h2tune.methods``
method: my_methods:AGREEING          # a `Method` in a module: beside the YAML file, or on Python's path
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from functools import cache, partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from h2tune.config import Experiment, in_lines, in_words
from h2tune.errors import MethodError
from h2tune.methods.base import Method, Settings

__all__ = [
    "Method",
    "MethodError",
    "check_other_methods",
    "known_methods",
    "method_of",
    "resolve_method",
    "spec_beside",
]

OWN = (
    "bias", "celora", "colora", "crosslora", "fedex", "fedit", "fedmkt", "fedprox", "fedsa", "fedsb", "ffa", "flexlora", "flora", "h2tune", "hetlora",
    "local", "lora_fair", "pfedlora", "published", "rolora", "unshared",
)  # fmt: skip


ABOVE = ("h2tune.distill.method",)  # methods that wrap others: they stand above this room and are found as plugins are


@cache
def _load_own() -> None:
    for module in (*(f"h2tune.methods.{name}" for name in OWN), *ABOVE):
        importlib.import_module(module)


def known_methods() -> dict[str, Method]:
    """All methods that a config can name, by name: the package's own first, then those of entry points."""
    _load_own()
    for entry in entry_points(group="h2tune.methods"):
        if entry.name not in Method.registry:
            _as_method(entry.load(), f"the entry point {entry.name!r} of h2tune.methods")
    return Method.registry


def method_of(experiment: Experiment) -> tuple[Method, Settings]:
    """The experiment's method with its settings, after a check that the experiment's options suit each other.

    Raises:
        MethodError: for what `resolve_method` refuses, and for options that exclude each other.
    """
    method, settings = resolve_method(experiment.method)
    method.server.allows(experiment, settings)
    return method, settings


def check_other_methods(experiment: Experiment) -> None:
    """Raise MethodError, with all of them, if ``baseline:`` or ``methods:`` names methods or settings that there are not."""
    found: list[str] = []
    for key, names in (("baseline", experiment.baselines), ("methods", experiment.methods)):
        for name in names:
            try:
                resolve_method(name if key == "baseline" else spec_beside(experiment, name))
            except MethodError as error:
                for line in str(error).splitlines():
                    setting = line.removeprefix("method.")
                    found.append(
                        f"{key}.{name}.{setting}" if setting != line else f"{key}: {line.removeprefix('method: ')}"
                    )
    if found:
        raise MethodError("\n".join(found))


def spec_beside(experiment: Experiment, name: str) -> dict[str, Any]:
    """What `compare` runs a method with: the file's own settings if it is the file's or a variant of it, then ``methods:``."""
    own = (
        {"name": experiment.method} if isinstance(experiment.method, str) else {"name": "h2tune", **experiment.method}
    )
    changes = experiment.methods.get(name)
    same = _family_of(name) == _family_of(str(own["name"]))
    return (own if same else {}) | ((changes and changes.model_extra) or {}) | {"name": name}


def _family_of(name: str) -> str:
    """The method itself, or the one that it is a variant of: these have the same settings."""
    return resolve_method(name)[0].variant_of or name


def resolve_method(spec: str | Mapping[str, Any]) -> tuple[Method, Settings]:
    """The method that ``method:`` in a config names, with its settings.

    Raises:
        MethodError: for an unknown name or setting, naming the nearest; for a module that cannot be imported.
    """
    options = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = str(options.pop("name", "h2tune"))
    method = import_method(name) if ":" in name else _named(name)
    try:
        return method, method.settings(**options)
    except ValidationError as error:
        lines = in_lines(error.errors(), options, partial(_explain, method))
        raise MethodError("\n".join(lines)) from None


def _named(name: str) -> Method:
    _load_own()
    # What is known already comes first in any case; looking for entry points reads all installed packages' files.
    known = Method.registry if name in Method.registry else known_methods()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, 1, 0.4)
    hint = f"Did you mean `{near[0]}`?" if near else f"Known: {', '.join(sorted(known))}."
    raise MethodError(f"method: there is no method {name!r}. {hint} A method of your own is named as `module:METHOD`.")


def import_method(name: str) -> Method:
    """The method ``module:ATTRIBUTE``, or ``path/to/file.py:ATTRIBUTE`` as a config with its folder says it.

    Raises:
        MethodError: the module cannot be imported or has no such method; says what was looked for and where.
    """
    source, _, attribute = name.rpartition(":")
    try:
        module = _import_file(Path(source)) if source.endswith(".py") else importlib.import_module(source)
    except FileNotFoundError:
        raise MethodError(f"method: there is no file {source}") from None
    except ModuleNotFoundError as error:
        if error.name != source.partition(".")[0]:
            raise MethodError(f"method: {source} cannot be imported: {error}") from error
        raise MethodError(
            f"method: there is no module {source!r}: neither {source.replace('.', '/')}.py beside the config file, nor"
            f" on Python's path ({', '.join(p or '.' for p in sys.path[:4])}, ...)"
        ) from None
    except Exception as error:  # whatever the user's own file does wrong when it runs
        raise MethodError(f"method: {source} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, attribute, None)
    if found is None:
        there = [key for key, value in vars(module).items() if isinstance(value, Method)]
        raise MethodError(f"method: {source} has no {attribute!r}; methods in it: {', '.join(there) or 'none'}")
    return _as_method(found, f"{attribute!r} in {source}")


def _as_method(found: object, where: str) -> Method:
    if not isinstance(found, Method):
        raise MethodError(f"method: {where} is a {type(found).__name__}, not an h2tune.methods.base.Method")
    return found


@cache
def _import_file(path: Path) -> Any:
    """A module from a file, under its own name, so that files beside it can be imported by theirs."""
    if not path.is_file():
        raise FileNotFoundError(path)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    if path.stem in sys.modules:
        return sys.modules[path.stem]
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # a .py file always has both
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
    return module


def _explain(method: Method, error: Any, key: str) -> str:
    if error["type"] == "extra_forbidden":
        known = method.settings.model_fields
        near = difflib.get_close_matches(key, known, 1, 0.5)
        hint = f"Did you mean `{near[0]}`?" if near else f"Known: {', '.join(known) or 'none'}."
        return f"method.{key}: {method.name} has no such setting. {hint}"
    return f"method{f'.{key}' if error['loc'] else ''}: {in_words(error, method.settings.model_fields.get(key))}"
