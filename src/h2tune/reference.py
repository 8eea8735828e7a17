"""The configuration reference, generated from the typed config.

Run as: python -m h2tune.reference > docs/configuration.md
"""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from h2tune.config import Budget, ClientConfig, Evaluation, Experiment, Training
from h2tune.methods import Method

_SECTIONS: list[tuple[str, str, type[BaseModel]]] = [
    ("The file", "The keys at the top of the YAML.", Experiment),
    ("clients", "Each entry of `clients:`.", ClientConfig),
    ("clients: budget", "With `keep: auto`.", Budget),
    ("training", "The keys under `training:`.", Training),
    ("evaluation", "The keys under `evaluation:`.", Evaluation),
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
        "# Configuration\n\nGenerated from the typed config by `python -m h2tune.reference`; do not edit by hand."
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


if __name__ == "__main__":
    print(reference(), end="")
