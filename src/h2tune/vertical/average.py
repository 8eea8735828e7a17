"""Running averages of weights over rounds (Polyak and Juditsky, 1992): they predict, and nothing in the training reads them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

Key = TypeVar("Key")


def weights(parts: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Copies of all trained weights by name; buffers are not among them."""
    return {
        f"{name}.{key}": value.detach().clone()
        for name, part in parts.items()
        for key, value in part.named_parameters()
    }


def moved(average: dict[Key, Tensor], now: dict[Key, Tensor], keep: float, round: int) -> dict[Key, Tensor]:
    """The average after one more round.

    Args:
        average: that of the rounds before, empty in the first.
        now: the weights after the round.
        keep: share of the old average that stays; in the first rounds all count alike.
        round: the round's number, from 1.
    """
    share = max(1 - keep, 1 / round)
    return {name: average[name].lerp(value, share) if average else value for name, value in now.items()}


def averaged(part: nn.Module, name: str, average: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a part with the average as its weights; the part itself where there is no average."""
    if not average:
        return part
    found = copy.deepcopy(part)
    set_weights(found.named_parameters(), name, average)
    return found


def set_weights(parameters: Iterable[tuple[str, Tensor]], name: str, average: Mapping[str, Tensor]) -> None:
    """Set weights by name to those of an average."""
    with torch.no_grad():
        for key, parameter in parameters:
            parameter.copy_(average[f"{name}.{key}"])
