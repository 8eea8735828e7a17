"""Reading what Transformers reports after loading: weights that are new are an error, unless they are a trained head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from h2tune.participant.errors import ModelError

_PEFT_HEADS = ("classifier", "score")
_PREFIXES = {
    "_orig_mod.": "saved from a compiled model; save `model._orig_mod`",
    "module.": "saved from a wrapped model (DataParallel); save `model.module`",
    "base_model.model.": "saved with an adapter around it; merge the adapter first (merge_and_unload)",
}
# Tables that old checkpoints hold and new models work out.
_TABLES = ("inv_freq", "position_ids", ".attn.bias", "masked_bias")


@dataclass(frozen=True)
class NewHead:
    """What of a task head no checkpoint holds.

    Attributes:
        modules: those that are new beside `classifier` and `score`, which PEFT saves anyway.
        weights: full names of its new weights; the others are a trained head's.
    """

    modules: tuple[str, ...] = ()
    weights: frozenset[str] = frozenset()


def check_report(source: str, model: Any, info: Mapping[str, Any], blocks: str, *, classifies: bool) -> NewHead:
    """What of a task head is new.

    Args:
        model: as loaded. info: its loading report. blocks: name of its list of blocks.
        classifies: whether a new head is what is asked for.

    Raises:
        ModelError: if other weights would be random, or blocks of the checkpoint have no place in the model.
    """
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    shapes = {str(item[0]): item[1:] for item in sorted(info["mismatched_keys"], key=str)}
    prefix = str(model.base_model_prefix)
    new = [name for name in (*missing, *shapes) if not (classifies and _of_head(name, prefix))]
    if new:
        total = sum(1 for _ in model.named_parameters(remove_duplicate=False))
        raise ModelError(_explained(source, new, unexpected, shapes, total))
    lost = [name for name in unexpected if name.startswith(f"{blocks}.") and not name.endswith(_TABLES)]
    if lost:
        raise ModelError(
            f"{source}: the model has no place for {len(lost)} of the checkpoint's weights (first: {lost[0]}); its"
            " config.json does not fit them. Use the config that was saved with the weights."
        )
    heads = {_head_module(name, prefix) for name in (*missing, *shapes)}
    return NewHead(tuple(sorted(heads - set(_PEFT_HEADS))), frozenset((*missing, *shapes)))


def _of_head(name: str, prefix: str) -> bool:
    return not name.startswith(f"{prefix}.") or ".pooler." in name


def _head_module(name: str, prefix: str) -> str:
    """``classifier`` of ``classifier.dense.weight``, ``pooler`` of ``bert.pooler.dense.weight``."""
    return name.removeprefix(f"{prefix}.").split(".")[0]


def _explained(source: str, new: list[str], unexpected: list[str], shapes: Mapping[str, Any], total: int) -> str:
    first = new[0]
    pairs = ((other, name) for name in new for other in unexpected if other.endswith(f".{name}"))
    if pair := next(pairs, None):
        other, prefix = pair[0], pair[0].removesuffix(pair[1])
        why = _PREFIXES.get(prefix, "take the prefix off the names")
        return (
            f"{source}: {len(new)} of the model's {total} weights would be random, because the files call them"
            f" {other} and so on, with the prefix {prefix!r}: {why}."
        )
    if first in shapes:
        there, wanted = (tuple(shape) for shape in shapes[first][:2])
        return f"{source}: {first} is {there} in the files and {wanted} by config.json: they do not belong together."
    held = f"; the files hold {unexpected[0]} and {len(unexpected) - 1} others instead" if unexpected else ""
    return (
        f"{source}: {len(new)} of the model's {total} weights are not in its files and would be random"
        f" (first: {first}{held}). Use a checkpoint that is whole."
    )


def renew_head(model: nn.Module, adapter: str, new: frozenset[str]) -> None:
    """What is new of an adapter's classification head must not depend on who attached before.

    Matrices get small random numbers, gains of norms 1, all else 0. Weights that the checkpoint holds stay.

    Args:
        new: names that the weights have without adapters.
    """
    copied = f"modules_to_save.{adapter}"
    for name, module in model.named_modules():
        if f"{copied}." not in f"{name}.":
            continue
        plain = f"{name}.".replace(f"{copied}.", "")
        for key, parameter in module.named_parameters(recurse=False):
            if plain + key not in new:
                continue
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)
            elif key == "weight":
                nn.init.ones_(parameter)
            else:
                nn.init.zeros_(parameter)
