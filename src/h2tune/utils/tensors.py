"""Many tensors at once between devices; plain values as a tensor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

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


def as_bytes(value: Any) -> Tensor:
    """Plain values as a tensor of the bytes of their JSON: the header of a safetensors file has a limit, its body has none.

    Raises:
        ValueError: a number among them is not finite.
    """
    return torch.frombuffer(bytearray(json.dumps(value, allow_nan=False).encode()), dtype=torch.uint8)


def from_bytes(tensor: Tensor) -> Any:
    """The values of which `as_bytes` made the tensor."""
    return json.loads(tensor.numpy().tobytes())
