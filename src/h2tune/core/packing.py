"""The core on the wire: only covered entries travel.

Bytes of an update = covered (depth, slot) pairs x kept entries x width, one bit per entry where the mask is learned,
one bit per (depth, slot) pair, and the header.
"""

from __future__ import annotations

import torch
from torch import Tensor

from h2tune.core.client_core import CoreShape


def pack_bits(flags: Tensor) -> Tensor:
    """Booleans (any shape) as bytes, eight to one."""
    flat = flags.reshape(-1).to(torch.uint8)
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % 8)).view(-1, 8)
    return (padded << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.int64).to(torch.uint8)


def unpack_bits(data: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Inverse of `pack_bits`; raises ValueError if the length does not fit."""
    count = int(torch.tensor(shape).prod())
    if data.dtype != torch.uint8 or data.shape != (-(-count // 8),):
        raise ValueError(f"{tuple(data.shape)} bytes cannot be the bits of shape {shape}.")
    bits = (data[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1
    return bits.reshape(-1)[:count].view(shape).bool()


def pack_core(
    core: Tensor, coverage: Tensor, *, masked: bool, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Tensors of the covered entries of S (depth x slots x r x r); ``masked`` says that single entries are dropped."""
    return {"values": core.detach().cpu()[coverage].to(dtype)} | pack_coverage(coverage, masked=masked)


def pack_coverage(coverage: Tensor, *, masked: bool) -> dict[str, Tensor]:
    """Which (depth, slot) pairs are covered, and where ``masked`` which of their entries."""
    pairs = coverage.flatten(2).any(-1)
    return {"pairs": pack_bits(pairs)} | ({"mask": pack_bits(coverage[pairs])} if masked else {})


def unpack_coverage(tensors: dict[str, Tensor], shape: CoreShape, rank: int) -> Tensor:
    """Coverage (depth x slots x rank x rank) from `pack_coverage`'s tensors; raises ValueError if they do not fit."""
    if not 1 <= rank <= shape.rank:
        raise ValueError(f"rank {rank} does not fit a core of rank {shape.rank}.")
    if tensors.keys() - {"mask"} != {"pairs"}:
        raise ValueError(f"coverage is pairs and perhaps a mask, not {sorted(tensors)}.")
    pairs = unpack_bits(tensors["pairs"], (shape.depth, len(shape.slots)))
    coverage = pairs[..., None, None].expand(*pairs.shape, rank, rank).clone()
    if "mask" in tensors:
        coverage[pairs] = unpack_bits(tensors["mask"], (int(pairs.sum()), rank, rank))
    return coverage


def unpack_core(tensors: dict[str, Tensor], shape: CoreShape, rank: int) -> tuple[Tensor, Tensor]:
    """S and its coverage (depth x slots x rank x rank) from `pack_core`'s tensors.

    Raises:
        ValueError: if they do not describe a core of this shape.
    """
    if tensors.keys() - {"mask"} != {"values", "pairs"}:
        raise ValueError(f"a core is values, pairs and perhaps a mask, not {sorted(tensors)}.")
    coverage = unpack_coverage({k: t for k, t in tensors.items() if k != "values"}, shape, rank)
    values = tensors["values"]
    if values.shape != (int(coverage.sum()),) or not values.is_floating_point():
        raise ValueError(f"{tuple(values.shape)} values do not fill the {int(coverage.sum())} covered entries.")
    core = torch.zeros(coverage.shape)
    core[coverage] = values.float()
    return core, coverage
