"""Two pages of the documentation, generated: the configuration from its types, the methods from their files.

Run as: python scripts/generate_docs.py
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from h2tune.config import Budget, ClientConfig, Evaluation, Experiment, Privacy, Training, Wire
from h2tune.methods.registry import Method

_SECTIONS: list[tuple[str, str, type[BaseModel]]] = [
    ("The file", "The keys at the top of the YAML.", Experiment),
    ("clients", "Each entry of `clients:`.", ClientConfig),
    ("clients: budget", "With `keep: auto`.", Budget),
    ("training", "The keys under `training:`.", Training),
    ("evaluation", "The keys under `evaluation:`.", Evaluation),
    ("wire", "The keys under `wire:`, for H2Tune and the methods that share a core like it.", Wire),
    ("privacy", "The keys under `privacy:`; [what it promises](privacy.md).", Privacy),
]


def _type(annotation: Any) -> str:
    if annotation is None or annotation is type(None):
        return "nothing"
    arguments = get_args(annotation)
    if not arguments:
        return {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}.get(
            getattr(annotation, "__name__", str(annotation)), getattr(annotation, "__name__", str(annotation))
        )
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
        return "see below"
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


def table(model: type[BaseModel]) -> str:
    """A Markdown table of a model's fields."""
    rows = [
        f"| `{name}` | {_type(field.annotation)} | {_default(field)} | {field.description or ''} |"
        for name, field in model.model_fields.items()
    ]
    return "\n".join(["| key | value | default | |", "|---|---|---|---|", *rows])


def reference() -> str:
    """The whole page."""
    parts = [
        "# Configuration\n\nGenerated from the typed config by `python scripts/generate_docs.py`; do not edit by hand."
        " Unknown keys are errors. Paths are relative to the file. `h2tune plan FILE` shows every mistake at once."
    ]
    parts += [f"## {title}\n\n{text}\n\n{table(model)}" for title, text, model in _SECTIONS]
    parts.append("## method\n\n`method:` is a name, or a mapping `{name: ..., and settings}`.")
    for name, method in sorted(Method.registry.items()):
        if method.settings.model_fields and not name.startswith("toy"):
            parts.append(f"### {name}\n\n{method.says}.\n\n{table(method.settings)}")
        elif not name.startswith("toy"):
            parts.append(f"### {name}\n\n{method.says}. No settings.")
    return "\n\n".join(parts) + "\n"


def methods() -> str:
    """The page of methods: a table, then the rule of each as it stands at the head of its file."""
    known = [m for name, m in sorted(Method.registry.items()) if not name.startswith("toy")]
    rows = [
        f"| [{m.name}](#{m.name}) | {'equal models' if m.one_architecture else 'any models'} | {m.says} | {m.sends} |"
        f" {m.source} |"
        for m in known
    ]
    parts = [
        "# Methods\n\nGenerated from the methods' files by `python scripts/generate_docs.py`; do not edit by hand.\n\n"
        "`method: NAME` in the config, or `h2tune compare FILE --methods NAME,NAME`. Methods for *equal models* average LoRA"
        " factors, which only fit between clients with the same base: they run within groups of such clients, a client"
        " without a twin trains locally, and a federation of nothing else is refused before training.\n\n"
        + "\n".join(["| method | for | what it is | sent each round | source |", "|---|---|---|---|---|", *rows])
    ]
    for module in dict.fromkeys(inspect.getmodule(_home(m)) for m in known):
        names = [m.name for m in known if inspect.getmodule(_home(m)) is module]
        text = inspect.cleandoc(module.__doc__ or "") if module else ""
        anchors = "".join(f'<a id="{name}"></a>' for name in names)
        parts.append(f"## {', '.join(names)}\n\n{anchors}\n\n```\n{text}\n```")
    return "\n\n".join(parts) + "\n\n" + _OWN


def _home(method: Method) -> type:
    """The class whose file describes the method: of client, server and settings the one with the least shared file."""
    users: dict[Any, int] = {}
    for other in Method.registry.values():
        for part in {inspect.getmodule(c) for c in (other.client, other.server, other.settings)}:
            users[part] = users.get(part, 0) + 1
    generic = {f"h2tune.methods.{name}" for name in ("base", "factors", "adapted", "h2tune_settings")}
    candidates = [c for c in (method.server, method.client, method.settings) if c.__module__ not in generic]
    return min(candidates, key=lambda c: users[inspect.getmodule(c)])


_OWN = """## A method of your own

One file. Say what the client sends and how the server combines it, name the source, register it, and test the rule
against a few lines of NumPy. This one averages only the factors B whose clients agree in sign, entry by entry; it is a
whole method, and `tests/methods/test_worked_example.py` runs it:

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


Method(
    "agreeing",
    Settings,
    AgreeingClient,
    AgreeingServer,
    "mean of B where all agree in sign",
    sends="B",
    source="an example",
    one_architecture=True,
)
```

Import the file before `h2tune.run` or `h2tune.comparison.compare.compare` (a plain `import my_methods`), and `method: agreeing` works. What
it gets for nothing: groups of equal bases, checks of everything received, private state over restarts, curves, the report, and a
place in every comparison. A method for different models subclasses `AdapterClient` and `ServerMethod`; `methods/pfedlora.py`
is a short one. It need not share parameters at all: `tests/test_round_interface.py` exchanges texts, and embeddings.

What its tests should catch, from defects that were published: the mean keeps one client only; weights applied twice;
A and B turned by unrelated bases; a snapshot from before training is sent; what the server sends is never loaded.
"""


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs")
    (folder / "configuration.md").write_text(reference(), encoding="utf-8")
    (folder / "methods.md").write_text(methods(), encoding="utf-8")
