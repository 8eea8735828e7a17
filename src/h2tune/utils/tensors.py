"""Many tensors at once between devices."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, detached; those that lie on another device come over together, in one copy per number format.

    An adapter has hundreds of small tensors, and every copy from a GPU waits until the GPU has nothing left to do.
    """
    found = {name: tensor.detach() for name, tensor in tensors.items()}
    groups: dict[tuple[torch.device, torch.dtype], list[str]] = {}
    for name, tensor in found.items():
        if tensor.device.type != "cpu":
            groups.setdefault((tensor.device, tensor.dtype), []).append(name)
    for names in groups.values():
        found |= together(names, [found[name] for name in names])
    return found


def together(names: list[str], tensors: list[Tensor]) -> dict[str, Tensor]:
    """Tensors of one device and number format, brought to the CPU in one copy."""
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors]).cpu()
    parts = flat.split([tensor.numel() for tensor in tensors])
    # Each in memory of its own: where a tensor lies must not decide how a sum over it is rounded.
    return {n: part.clone().view(t.shape) for n, part, t in zip(names, parts, tensors, strict=True)}
