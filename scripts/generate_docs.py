"""Three pages of the documentation, generated: both kinds of configuration from their types, the methods from their files.

Run as: python scripts/generate_docs.py
"""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from h2tune.config import Experiment
from h2tune.frames.registry import OWN
from h2tune.methods.base import Method, Settings
from h2tune.methods.h2tune_settings import AlternatingSettings, H2TuneSettings
from h2tune.methods.registry import known_methods
from h2tune.vertical.config import VerticalConfig

_TITLES = {
    "clients": "Each entry of `clients:`. Paths are relative to the file.",
    "budget": "With `keep: auto`, under `budget:` of a client. The share of the core follows from these limits.",
    "training": "Local training, the same for every client unless it says otherwise.",
    "evaluation": "When and on how much data clients are scored.",
    "network": "Where the server is found, and how long it waits. Of these keys `h2tune run` heeds `limit` alone;"
    " [run it for real](network.md) explains them.",
    "wire": "For H2Tune and the methods that share a core like it: [smaller messages](messages.md).",
    "secure_aggregation": "By default none; `secure_aggregation: {}` turns it on."
    " [What leaves your machine](privacy.md#secure-aggregation) says what it promises.",
    "privacy": "By default none. [What leaves your machine](privacy.md#differential-privacy-of-clients) says what it promises.",
}


def nested(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model inside an annotation such as ``list[Model]`` or ``Model | None``, if there is one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := nested(part))), None)


def sections(model: type[BaseModel] = Experiment) -> dict[str, type[BaseModel]]:
    """Every key that holds keys of its own, with its type, in the order of the file; each gets a table."""
    found: dict[str, type[BaseModel]] = {}
    for name, field in model.model_fields.items():
        if inner := nested(field.annotation):
            found[name] = inner
            found |= sections(inner)
    return found


def _type(annotation: Any) -> str:
    if annotation is None or annotation is type(None):
        return "nothing"
    arguments = get_args(annotation)
    if not arguments:
        name = getattr(annotation, "__name__", str(annotation))
        return {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}.get(name, name)
    origin = getattr(annotation, "__origin__", None)
    if origin in (list, tuple):
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return "mapping"
    parts = [f"`{a}`" if isinstance(a, (str, int)) and not isinstance(a, type) else _type(a) for a in arguments]
    parts = [p for p in parts if not p.startswith("FieldInfo")]
    return " or ".join(dict.fromkeys(parts))


def _default(field: Any) -> str:
    if field.default is PydanticUndefined:
        return "required"
    if isinstance(field.default, BaseModel):
        return "as below"
    if field.default is None:
        return "nothing"
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


def _row(name: str, field: Any) -> str:
    inner = nested(field.annotation)
    value = _type(field.annotation)
    if inner:
        value = ("list of " if "list" in str(field.annotation) else "") + f"[keys](#{name})"
    return f"| `{name}` | {value} | {_default(field)} | {field.description or ''} |"


def table(model: type[BaseModel], beside: type[BaseModel] | None = None) -> str:
    """A Markdown table of a model's fields; with ``beside`` only of those that differ from that model's."""
    theirs = beside.model_fields if beside else {}
    rows = [
        _row(name, field)
        for name, field in model.model_fields.items()
        if name not in theirs or _row(name, field) != _row(name, theirs[name])
    ]
    return "\n".join(["| key | value | default | meaning |", "|---|---|---|---|", *rows])


def reference() -> str:
    """The page of all keys."""
    parts = [
        "# Configuration\n\nGenerated from the typed config by `python scripts/generate_docs.py`; do not edit by hand.\n\n"
        "A federation is one YAML file. Unknown keys are errors, and paths are relative to the file."
        " `h2tune plan FILE` shows every mistake at once. Words in the tables that are new to you are in the"
        " [glossary](glossary.md).",
        f"## The file\n\nThe keys at the top of the YAML.\n\n{table(Experiment)}",
    ]
    for name, model in sections().items():
        title = _TITLES.get(name) or inspect.cleandoc(model.__doc__ or "").splitlines()[0]
        parts.append(f"## {name}\n\n{title}\n\n{table(model)}")
    parts.append(
        "## method\n\n`method:` is a name, or a mapping: `{name: ..., and its own settings}`. [Methods](methods.md) has the"
        " rule of each."
    )
    for name, method in _known():
        says = method.says[0].upper() + method.says[1:]
        keys, model = _relative(name, method.settings)
        parts.append(f"### {name}\n\n{says}.{keys}" + (f"\n\n{model}" if model else ""))
    return "\n\n".join(parts) + "\n"


def vertical() -> str:
    """The page of all keys of a vertical federation."""
    parts = [
        "# Configuration of a vertical federation\n\nGenerated from the typed config by `python scripts/generate_docs.py`; do"
        " not edit by hand.\n\nA YAML file with `parties:` describes a [vertical federation](vertical.md). Unknown keys are"
        " errors, and paths are relative to the file. `h2tune plan FILE` shows every mistake at once.",
        f"## The file\n\nThe keys at the top of the YAML.\n\n{table(VerticalConfig)}",
    ]
    for name, model in sections(VerticalConfig).items():
        title = _TITLES["network"] if name == "network" else inspect.cleandoc(model.__doc__ or "").splitlines()[0]
        parts.append(f"## {name}\n\n{title}\n\n{table(model)}")
    return "\n\n".join(parts) + "\n"


def _known() -> list[tuple[str, Method]]:
    return [(name, method) for name, method in sorted(known_methods().items()) if not name.startswith("toy")]


def _relative(name: str, settings: type[BaseModel]) -> tuple[str, str]:
    """A sentence about a method's settings, and their table; those inherited from another method are not repeated."""
    if not settings.model_fields:
        return " No settings.", ""
    for other, method in _known():
        parent = method.settings
        above = AlternatingSettings if parent is H2TuneSettings else parent  # the same keys with other defaults
        if other != name and parent not in (settings, Settings) and above in settings.__mro__:
            return f" The keys of [{other}](#{other}), except:", table(settings, parent)
    return _suited() if settings is H2TuneSettings else "", table(settings)


def _suited() -> str:
    """What holds with a kind of frames where a file says nothing else."""
    told = [
        f" Where the file says nothing else, `frames: {name}` means "
        + ", ".join(f"`{key}: {json.dumps(value).strip(chr(34))}`" for key, value in kind.suited.items()) + "."
        for name, kind in OWN.items() if kind.suited
    ]  # fmt: skip
    return "".join(told)


def methods() -> str:
    """The page of methods: a table, then the rule of each as it stands at the head of its file."""
    known = [method for _, method in _known()]
    rows = [
        f"| [{m.name}](#{m.name}) | {'equal models' if m.one_architecture else 'any models'} | {m.says} | {m.sends} |"
        f" {m.source} |"
        for m in known
    ]
    parts = [
        "# Methods\n\nGenerated from the methods' files by `python scripts/generate_docs.py`; do not edit by hand.\n\n"
        "Choose one with `method: NAME` in the file, or compare several with `h2tune compare FILE --methods NAME,NAME`."
        " `h2tune plan FILE` shows what your choice sends.\n\n"
        "- Methods for **any models** work between clients with different base models.\n"
        "- Methods for **equal models** average LoRA factors, which only fit between clients with the same base model. They run within"
        " each group of such clients. A client without a [twin](glossary.md#twin) trains alone. A federation in which nobody has a"
        " twin is refused before training.\n\n"
        "In the formulas k is a client and p_k its share of all examples; A, B, T, S, P and C are in the [glossary](glossary.md)."
        " [Configuration](configuration.md#method) has the settings of each method.\n\n"
        + "\n".join(["| method | for | what it is | sent each round | source |", "|---|---|---|---|---|", *rows])
    ]
    for module in dict.fromkeys(inspect.getmodule(_home(m)) for m in known):
        names = [m.name for m in known if inspect.getmodule(_home(m)) is module]
        text = inspect.cleandoc(module.__doc__ or "") if module else ""
        # A heading of one name is its own link target.
        anchors = "".join(f'<a id="{name}"></a>' for name in names) + "\n\n" if len(names) > 1 else ""
        leaves = "".join(_leaves(m) for m in known if m.name in names)
        parts.append(f"## {', '.join(names)}\n\n{anchors}```text\n{text}\n```\n\n{leaves}".rstrip())
    return "\n\n".join(parts) + "\n\n" + _OWN


def _leaves(method: Method) -> str:
    """What a method lets leave a client, as it declares it itself, with its default settings."""
    rows = [f"- {sent.when}: {sent.says}" for sent in method.client.leaves(None, method.settings())]
    return f"What `{method.name}` lets leave a client" + (":\n\n" + "\n".join(rows) if rows else ": nothing.") + "\n\n"


def _home(method: Method) -> type:
    """The class whose file describes the method: of client, server and settings the one with the least shared file."""
    users: dict[Any, int] = {}
    for other in known_methods().values():
        for part in {inspect.getmodule(c) for c in (other.client, other.server, other.settings)}:
            users[part] = users.get(part, 0) + 1
    generic = {f"h2tune.methods.{name}" for name in ("base", "factors", "adapted", "h2tune_settings")}
    generic |= {"h2tune.distill.server", "h2tune.distill.client"}
    candidates = [c for c in (method.client, method.server, method.settings) if c.__module__ not in generic]
    return min(candidates, key=lambda c: users[inspect.getmodule(c)])


_OWN = """## A method of your own

A method is one file with two halves. The client's half says what is trained and sent, the server's half how it is combined. [How a round works](rounds.md#in-code) has the
background.

This one averages only the factors B, and only entries whose sign is the same at all clients. It is a whole method. Save it as `my_methods.py` beside your `federation.yaml`:

```python
from h2tune.methods.base import Method, Settings
from h2tune.methods.factors import FactorClient, FactorServer, Pair, mean


class AgreeingClient(FactorClient):
    sends = trains = ("B",)  # A is common and frozen, as in FFA-LoRA


class AgreeingServer(FactorServer):
    client = AgreeingClient

    def combine(self, pairs: list[Pair], weights: list[float]) -> Pair:
        signs = sum(b.sign() for _, b in pairs).abs() == len(pairs)
        return None, mean([b for _, b in pairs], weights) * signs


AGREEING = Method(
    "agreeing",
    Settings,
    AgreeingClient,
    AgreeingServer,
    "mean of B where all agree in sign",
    source="an example",
    one_architecture=True,
)
```

Then name the module and the method in the file:

```yaml
method: my_methods:AGREEING
```

A package can offer its methods under a plain name, with an entry point in the group `h2tune.methods`.

**What you get without writing it:** groups of equal bases, checks of everything that arrives, private state over restarts, curves, the report, a place in every comparison, and a line in `h2tune plan` that says what
leaves a client.

**Where to go from here:**

- A method for different models subclasses `AdapterClient` (`src/h2tune/methods/adapter_client.py`) and `OneExchange`; `src/h2tune/methods/pfedlora.py` is a short one.
- A method with several exchanges in a round implements `run_round` and declares its `actions`; `tests/exchange_methods.py` has one that exchanges texts and one with many small tensors.
- Settings of its own are fields of a `Settings` class; `src/h2tune/methods/fedprox.py` has one.

**What to test.** State the rule in a few lines of NumPy and compare. Then plant the defects that published code has had, and see that the test notices: the mean keeps one client only; weights are applied twice; A and B are
turned by unrelated bases; a snapshot from before training is sent; what the server sends is never loaded.
"""


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs")
    (folder / "configuration.md").write_text(reference(), encoding="utf-8")
    (folder / "vertical-configuration.md").write_text(vertical(), encoding="utf-8")
    (folder / "methods.md").write_text(methods(), encoding="utf-8")
