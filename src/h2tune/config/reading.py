"""Reading a config: YAML to checked data, paths as their writer meant them, and a line for every mistake."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from h2tune.config.conflicts import checked
from h2tune.config.hints import unknown_key
from h2tune.config.mistakes import in_words
from h2tune.config.schema import Experiment
from h2tune.errors import H2TuneError


class ConfigError(H2TuneError, ValueError):
    """One or more mistakes in a config; ``problems`` holds a line for each."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))

    def __reduce__(self) -> tuple[Any, ...]:  # as it comes from a worker's process
        return type(self), (self.problems,)


class UniqueKeyLoader(yaml.SafeLoader):
    """YAML's safe loader, which would take the last of two equal keys without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} stands twice in one mapping", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> Any:
    """The plain data of a YAML file.

    Raises:
        ConfigError: there is no such file, or it is not valid YAML.
    """
    path = Path(path)
    if not path.is_file():
        what = (
            f"{path} is a folder; name the YAML file in it." if path.is_dir() else f"There is no config file {path}."
        )
        raise ConfigError([what])
    try:
        return yaml.load(path.read_text(encoding="utf-8-sig"), UniqueKeyLoader)
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8"]) from None
    except (yaml.YAMLError, ValueError) as error:  # a ValueError: a date that no calendar has
        raise ConfigError([f"{path} is not valid YAML: {error}"]) from None


def load_config(path: str | Path, seed: int | None = None) -> Experiment:
    """Read a YAML file; paths in it are relative to the file, and ``seed`` overrides its seed.

    Raises:
        ConfigError: with every mistake at once.
    """
    data = read_yaml(path)
    if empty := _empty(Path(path)):
        raise ConfigError(load_past_mistakes(path)[1] or empty)
    return parse_config(data, Path(path).parent, seed)


def _empty(path: Path) -> list[str]:
    """A line for each promise with nothing after the colon; whoever means none writes `null`, as files written by h2tune do."""
    cures = {
        "secure_aggregation": "write `secure_aggregation: {}` to have it",
        "privacy": "name `clip` and `noise`",
    }  # whoever writes the key wants it
    node = yaml.compose(path.read_text(encoding="utf-8-sig"), yaml.SafeLoader)
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    empty = [key.value for key, value in pairs if key.value in cures and value.value == ""]
    return [f"{key}: nothing stands after the colon: {cures[key]}, or leave the key out" for key in empty]


def parse_config(data: Any, folder: Path | None = None, seed: int | None = None) -> Experiment:
    """Validate plain data; relative paths of clients' files are taken from ``folder``.

    ``{seed}`` in a source (data, practice, anchors, public questions) stands for the experiment's seed.
    """
    found, problems = checked(Experiment, _as_meant(data, folder, seed), _explain)
    if problems or found is None:
        raise ConfigError(problems)
    return found


def load_past_mistakes(path: str | Path) -> tuple[Experiment | None, list[str]]:
    """As `load_config`, but mistakes are returned: with the experiment less the keys that are wrong, if that is one.

    So models and data can be checked, too, and whoever mends a file learns of everything in one go.
    """
    try:
        data = _as_meant(read_yaml(path), Path(path).parent)
    except ConfigError as error:
        return None, error.problems
    found, problems = checked(Experiment, data, _explain)
    return found, _empty(Path(path)) + problems


def _as_meant(data: Any, folder: Path | None, seed: int | None = None) -> dict[str, Any]:
    """Plain data with the seed filled in, and paths as they were meant."""
    if not isinstance(data, dict):
        raise ConfigError(["The config must be a mapping with the key `clients`."])
    if seed is not None:
        data = data | {"seed": seed}
    data = _fill_in_seed(data)
    return data if folder is None else _resolve_paths(data, folder)


SOURCES = ("train", "test", "validation", "practice")
PUBLIC_SOURCES = ("anchors", "anchor_words")


def _fill_in_seed(data: dict[str, Any]) -> dict[str, Any]:
    """Plain data with the seed in the place of ``{seed}``, in every key that names a source."""
    seed = str(data.get("seed", 0))

    def fill(owner: Any, keys: Sequence[str]) -> Any:
        if not isinstance(owner, dict):
            return owner
        named = {k: owner[k].replace("{seed}", seed) for k in keys if isinstance(owner.get(k), str)}
        return owner | named

    data = fill(data, PUBLIC_SOURCES)
    data |= {key: fill(data[key], [name]) for key, name in (("public", "source"), ("method", "codes")) if key in data}
    if isinstance(methods := data.get("methods"), dict):
        data |= {"methods": {name: fill(changes, ["codes"]) for name, changes in methods.items()}}
    clients = data.get("clients")
    return data | {"clients": [fill(c, SOURCES) for c in clients]} if isinstance(clients, list) else data


def _resolve_paths(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Paths as they were meant where they were written: from the config's own folder, ``~`` from its writer's home."""
    clients = data.get("clients")
    if isinstance(clients, list):
        keys = ("model", *SOURCES)
        clients = [
            {k: meant_path(v, folder, k == "model") if k in keys else v for k, v in c.items()}
            if isinstance(c, dict)
            else c
            for c in clients
        ]
    data = data | {"clients": clients}
    data |= {k: meant_path(data[k], folder) for k in PUBLIC_SOURCES if k in data}
    if isinstance(data.get("public"), dict) and "source" in data["public"]:
        data["public"] = data["public"] | {"source": meant_path(data["public"]["source"], folder)}
    if "method" in data:
        data["method"] = _resolve_method(data["method"], folder)
    if isinstance(methods := data.get("methods"), dict):
        data["methods"] = {name: _resolve_method(changes, folder) for name, changes in methods.items()}
    return data


def _resolve_method(spec: Any, folder: Path) -> Any:
    """``module:NAME`` with the file that it stands for, where that lies beside the config; paths among its settings."""
    if isinstance(spec, dict):
        named = {"name": _resolve_method(spec["name"], folder)} if "name" in spec else {}
        codes = {"codes": meant_path(spec["codes"], folder)} if "codes" in spec else {}
        return spec | named | codes
    if not isinstance(spec, str) or ":" not in spec:
        return spec
    module, _, name = spec.rpartition(":")
    file = folder / f"{module.removesuffix('.py').replace('.', '/')}.py"
    return f"{file.resolve()}:{name}" if file.is_file() else spec


_NAMES = ("builtin", "demo", "-")


def meant_path(value: Any, folder: Path, model: bool = False) -> Any:
    """A path as it was written in ``folder``, or by whoever stands there; what names no file of this machine as it is."""
    # Kits put what only the client knows in brackets.
    if not isinstance(value, str) or value in _NAMES or value.startswith(("zoo:", "hub:", "demo:", "(")):
        return value
    if model and not value.startswith((".", "/", "~")) and not (folder / value).exists():
        return value  # a name on the Hub
    return str((folder / Path(value).expanduser()).resolve())


def _explain(error: Any, where: str) -> str:
    """One line for one pydantic error, in the words of the YAML file."""
    return unknown_key(error["loc"], where) if error["type"] == "extra_forbidden" else f"{where}: {in_words(error)}"
