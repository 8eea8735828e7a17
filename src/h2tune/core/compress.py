"""Smaller updates: D = S_i - S in 16 or 8 bits, and of D only the largest entries; what was not sent is sent later.

    bfloat16    8 significant bits
    int8        nearest of 255 levels, one scale for each (depth, slot) matrix     (Seide et al. 2014, Interspeech)
    top-k       the share k of all covered entries that is largest                 (Stich et al. 2018, arXiv 1809.07599)
    feedback    D + e is encoded, and e <- D + e - decoded, private to the client  (Karimireddy et al. 2019, 1901.09847)

Rounding is to nearest, not stochastic: what it loses is carried in e, and equal runs send equal bytes. Which entries
were sent travels as 32-bit indices or as one bit per covered entry, whichever is shorter.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from h2tune.core.client_core import CoreShape
from h2tune.core.packing import pack_bits, pack_coverage, unpack_bits, unpack_coverage

LEVELS = 127
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


@dataclass(frozen=True)
class Code:
    """How an update is written.

    Attributes:
        dtype: ``float32``, ``bfloat16`` or ``int8``.
        share: of the covered entries that is sent, in (0, 1]; None is all.
    """

    dtype: str = "float32"
    share: float | None = None

    @property
    def lossless(self) -> bool:
        return self.dtype == "float32" and self.share is None

    def sent(self, count: int) -> int:
        """Entries sent of so many covered ones: at least one."""
        return count if self.share is None else min(count, max(1, round(self.share * count)))

    def indexed(self, count: int) -> bool:
        """Whether indices are shorter than a bit for each of ``count`` entries."""
        return 4 * self.sent(count) < -(-count // 8)

    def size(self, pairs: int, count: int) -> int:
        """Bytes of an update that covers so many (depth, slot) pairs and entries, without what says which those are."""
        sent = self.sent(count)
        places = 0 if self.share is None else min(4 * sent, -(-count // 8))
        return sent * _DTYPES[self.dtype].itemsize + places + (4 * pairs if self.dtype == "int8" else 0)


def _owners(coverage: Tensor) -> Tensor:
    """For each covered entry, in order, the number of its pair among the covered pairs."""
    counts = coverage.flatten(2).sum(-1).flatten()
    counts = counts[counts > 0]
    return torch.repeat_interleave(torch.arange(len(counts)), counts)


def encode_update(update: Tensor, coverage: Tensor, code: Code, *, masked: bool) -> tuple[dict[str, Tensor], Tensor]:
    """Tensors of an update (depth x slots x r x r) on its covered entries, and the update that they will be read as."""
    values = update[coverage].float()
    tensors = pack_coverage(coverage, masked=masked)
    chosen = torch.arange(len(values))
    if code.share is not None:
        largest = values.abs().argsort(descending=True, stable=True)
        chosen = largest[: code.sent(len(values))].sort().values
        tensors |= _places(chosen, len(values), code)
    sent = values[chosen]
    if code.dtype == "int8":
        tensors["scales"] = _scales(sent, _owners(coverage)[chosen], int(coverage.flatten(2).any(-1).sum()))
        levels = sent / tensors["scales"][_owners(coverage)[chosen]]
        tensors["values"] = levels.round().clamp(-LEVELS, LEVELS).to(torch.int8)
    else:
        tensors["values"] = sent.to(_DTYPES[code.dtype])
    decoded = torch.zeros(update.shape)
    decoded[coverage] = _read(tensors, chosen, coverage)
    return tensors, decoded


def _places(chosen: Tensor, count: int, code: Code) -> dict[str, Tensor]:
    if code.indexed(count):
        return {"indices": chosen.to(torch.int32)}
    return {"sent": pack_bits(torch.zeros(count, dtype=torch.bool).index_fill_(0, chosen, True))}


def _scales(values: Tensor, owners: Tensor, pairs: int) -> Tensor:
    """The step between levels of each pair; 1 where nothing but zeros (or less than a float can divide) is sent.

    A value that is not a number makes its scale one, too, and the message is refused.
    """
    largest = torch.zeros(pairs).scatter_reduce_(0, owners, values.abs(), "amax")
    scales = largest / LEVELS
    return torch.where(scales <= torch.finfo(torch.float32).tiny, 1.0, scales)


def _read(tensors: dict[str, Tensor], chosen: Tensor, coverage: Tensor) -> Tensor:
    """The covered entries that the tensors say, zero where nothing was sent."""
    values = tensors["values"].float()
    if "scales" in tensors:
        values = values * tensors["scales"][_owners(coverage)[chosen]]
    return torch.zeros(int(coverage.sum())).index_copy_(0, chosen, values)


def decode_update(
    tensors: dict[str, Tensor], shape: CoreShape, rank: int, code: Code, *, masked: bool
) -> tuple[Tensor, Tensor]:
    """Update and its coverage (depth x slots x rank x rank) from `encode_update`'s tensors.

    Raises:
        ValueError: if they are not exactly what this code writes for a core of this shape; nothing larger than that
            core is allocated before.
    """
    coverage = unpack_coverage({k: t for k, t in tensors.items() if k in ("pairs", "mask")}, shape, rank)
    count = int(coverage.sum())
    place = [] if code.share is None else ["indices" if code.indexed(count) else "sent"]
    wanted = {"pairs", "values", *place} | ({"mask"} if masked else set())
    wanted |= {"scales"} if code.dtype == "int8" else set()
    if tensors.keys() != wanted:
        raise ValueError(f"an update is {sorted(wanted)}, not {sorted(tensors)}.")
    values = tensors["values"]
    if values.dtype != _DTYPES[code.dtype] or values.shape != (code.sent(count),):
        raise ValueError(f"{tuple(values.shape)} values of {values.dtype} are not the {code.sent(count)} to be sent.")
    if code.dtype == "int8":
        _judge_scales(tensors["scales"], int(coverage.flatten(2).any(-1).sum()))
    update = torch.zeros(coverage.shape)
    update[coverage] = _read(tensors, _chosen(tensors, count, code), coverage)
    if not bool(torch.isfinite(update).all()):
        raise ValueError("its values are not finite.")
    return update, coverage


def _judge_scales(scales: Tensor, pairs: int) -> None:
    if scales.dtype != torch.float32 or scales.shape != (pairs,):
        raise ValueError(f"{tuple(scales.shape)} scales do not fit {pairs} matrices.")
    if not bool(((scales > 0) & torch.isfinite(scales)).all()):
        raise ValueError("a scale is not a positive number.")


def _chosen(tensors: dict[str, Tensor], count: int, code: Code) -> Tensor:
    """Which covered entries were sent, ascending."""
    if code.share is None:
        return torch.arange(count)
    if not code.indexed(count):
        chosen = unpack_bits(tensors["sent"], (count,)).nonzero()[:, 0]
        if len(chosen) != code.sent(count):
            raise ValueError(f"{len(chosen)} entries are marked as sent, {code.sent(count)} have a value.")
        return chosen
    chosen = tensors["indices"]
    if chosen.dtype != torch.int32 or chosen.shape != (code.sent(count),):
        raise ValueError(f"{tuple(chosen.shape)} indices do not fit {code.sent(count)} values.")
    chosen = chosen.long()
    if bool((chosen < 0).any()) or bool((chosen >= count).any()) or bool((chosen.diff() <= 0).any()):
        raise ValueError("indices must ascend, each once, within the covered entries.")
    return chosen
