"""Bases of a whole model on the anchors, and the frames that several models agree on.

One level above `frames`, which knows single matrices: here they are kept by depth and slot, and turned into the
tensors that travel.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from h2tune.adapter.layer import Rows
from h2tune.core.client_core import CoreShape
from h2tune.core.slots import INPUTS, Layout, input_kind
from h2tune.frames import consensus as fr
from h2tune.frames.activations import record
from h2tune.frames.anchor_text import AnchorBatch

_TOLERANCE = 0.05  # of the length of a column that was rounded to half precision


@dataclass
class Bases:
    """Factors of one model's inputs and outputs on the anchors, by block.

    Attributes:
        inputs: for each block, kind of input (`INPUTS`) -> factor. outputs: for each block, slot -> factor.
        digest: identity of the left factors; models with the same weights have the same.
    """

    layout: Layout
    inputs: list[dict[str, fr.Factor]]
    outputs: list[dict[str, fr.Factor]]
    digest: str = ""

    def tensors(self) -> dict[str, Tensor]:
        """The left factors U in half precision: all that is ever sent of the activations."""
        sent: dict[str, Tensor] = {}
        for side, blocks in (("in", self.inputs), ("out", self.outputs)):
            for block, factors in enumerate(blocks):
                # A unit column of n rows has entries near n ** -0.5, which half precision would round coarsely.
                sent |= {f"{side}.{block}.{k}": (f.u * f.u.shape[0] ** 0.5).half() for k, f in factors.items()}
        return sent

    def regress(self, frames: Frames, relation: Tensor) -> list[tuple[Tensor, Tensor]]:
        """A and B for every map, block by block in the order of `Layout.modules`.

        Args:
            relation: L x L_i; a block's target is the mixture of the depths' coordinates that it reads.
        """
        found = []
        for block in range(self.layout.depth):
            reads = {
                kind: fr.read_matrix(factor, _mixture(frames.inputs[kind], relation[:, block]))
                for kind, factor in self.inputs[block].items()
            }
            writes = {
                slot: fr.write_matrix(factor, _mixture(frames.outputs[slot], relation[:, block]))
                for slot, factor in self.outputs[block].items()
            }
            for module in self.layout.modules:
                refs = sorted((ref.part, slot) for slot, ref in self.layout.slots.items() if ref.module == module)
                b = self._join(module, [writes[slot] for _, slot in refs])
                found.append((reads[input_kind(refs[0][1])], b))
        return found

    def lacks(self, frames: Frames) -> list[str]:
        """Inputs and slots of this model for which there are no frames."""
        reads, writes = self.inputs[0].keys() - frames.inputs.keys(), self.outputs[0].keys() - frames.outputs.keys()
        return sorted(reads | writes)

    def _join(self, module: str, parts: list[Tensor]) -> Tensor:
        return Rows(**self.layout.parts[module]).join(parts) if module in self.layout.parts else parts[0]


def _mixture(frames: Tensor, weights: Tensor) -> Tensor:
    return torch.einsum("g,gnr->nr", weights.to(frames), frames)


def describe(model: PreTrainedModel, layout: Layout, batch: AnchorBatch, directions: int) -> Bases:
    """Factorise what every block of a model reads and writes on the anchors, one block at a time."""
    inputs: list[dict[str, fr.Factor]] = [{} for _ in range(layout.depth)]
    outputs: list[dict[str, fr.Factor]] = [{} for _ in range(layout.depth)]

    def keep(block: int, reads: dict[str, Tensor], writes: dict[str, Tensor]) -> None:
        inputs[block] = {input_kind(slot): fr.factorise(x, directions) for slot, x in reads.items()}
        outputs[block] = {slot: fr.factorise(y, directions) for slot, y in writes.items()}

    record(model, layout, batch, keep)
    bases = Bases(layout, inputs, outputs)
    digest = hashlib.sha256()
    for name, tensor in sorted(bases.tensors().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    bases.digest = digest.hexdigest()
    return bases


@dataclass
class Frames:
    """The coordinates that all clients share.

    Attributes:
        inputs: kind of input -> L x n x R. outputs: slot -> L x n x R. Unit variance, ordered by agreement.
        agreement: mean correlation between clients on held-out rows, by side, depth and name; None if received.
    """

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    agreement: dict[str, Any] | None = None

    def tensors(self) -> dict[str, Tensor]:
        return {f"in.{k}": g.half() for k, g in self.inputs.items()} | {
            f"out.{k}": g.half() for k, g in self.outputs.items()
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], shape: CoreShape) -> Frames:
        """Frames as received; raises ValueError if they do not fit the core."""
        sides: dict[str, dict[str, Tensor]] = {"in": {}, "out": {}}
        for name, tensor in tensors.items():
            side, _, key = name.partition(".")
            if side not in sides or key not in (INPUTS if side == "in" else shape.slots):
                raise ValueError(f"{name!r} is no part of a set of frames")
            if tensor.ndim != 3 or tensor.shape[0] != shape.depth or tensor.shape[2] != shape.rank:
                raise ValueError(f"the frame {name!r} has shape {tuple(tensor.shape)}")
            sides[side][key] = tensor.float()
        return cls(sides["in"], sides["out"])


def misfits(described: Mapping[str, Mapping[str, Tensor]], said: Mapping[str, tuple[int, list[str]]], rank: int, most: int
            ) -> dict[str, str]:  # fmt: skip
    """Models whose tensors cannot be theirs, with the reason: malformed, too loud, or of other rows than most have.

    Args:
        said: depth and slots of each model, from its introduction.
        rank: columns that all models together must have. most: columns that one may have.
    """
    found: dict[str, str] = {}
    rows: dict[str, int] = {}
    widths: dict[str, int] = {}
    for name, tensors in described.items():
        try:
            parsed = _parse(name, tensors)
            _check_shapes(parsed, *said[name], most)
            (rows[name],) = {u.shape[0] for u in parsed.values()}
            widths[name] = min(u.shape[1] for u in parsed.values())
            if max(float(u.norm(dim=0).max()) for u in parsed.values()) > 1 + _TOLERANCE:
                found[name] = "its bases have columns longer than those of left factors"
        except ValueError as error:
            found[name] = f"its bases cannot be read: {error}"
    usual = Counter(rows.values()).most_common(1)[0][0] if rows else 0
    wide = any(width >= rank for width in widths.values())
    for name, n in rows.items():
        if n != usual:
            found[name] = f"it did not use the same anchors: {n} rows, where most have {usual}"
        elif wide and widths[name] < rank:
            found[name] = f"its bases span {widths[name]} directions, where others' span {rank}"
    return found


def _check_shapes(parsed: dict[tuple[str, str, int], Tensor], depth: int, slots: list[str], most: int) -> None:
    wanted = {("in", input_kind(s), block) for s in slots for block in range(depth)}
    wanted |= {("out", s, block) for s in slots for block in range(depth)}
    if parsed.keys() != wanted:
        raise ValueError(f"they are not those of {depth} blocks with the slots {', '.join(slots)}")
    if any(not 1 <= u.shape[1] <= most for u in parsed.values()):
        raise ValueError(f"a basis has no column, or more than {most}")


def agree(described: Mapping[str, Mapping[str, Tensor]], shape: CoreShape) -> Frames:
    """Frames from the left factors of several models (the server's part).

    Neighbouring depths' coordinates are turned onto each other, since P mixes them.

    Args:
        described: for each model `Bases.tensors`.

    Raises:
        ValueError: if the models do not have the same anchor rows, or span too few directions.
    """
    models = [_parse(name, tensors) for name, tensors in described.items()]
    rows = {u.shape[0] for model in models for u in model.values()}
    if len(rows) != 1:
        raise ValueError(f"the clients did not use the same anchors: they have {sorted(rows)} rows")
    sides: dict[str, dict[str, Tensor]] = {"in": {}, "out": {}}
    scores: dict[str, list[list[float]]] = {"in": [], "out": []}
    # Where every client's `slots:` leaves some out, nobody reads or writes them.
    held = {key[:2] for model in models for key in model}
    names = {"in": list(INPUTS), "out": list(shape.slots)}
    names = {side: [key for key in keys if (side, key) in held] for side, keys in names.items()}
    for side, keys in names.items():
        for key in keys:
            per_depth = [_matching(models, side, key, depth, shape.depth) for depth in range(shape.depth)]
            frames = torch.stack([fr.consensus(bases, shape.rank) for bases in per_depth])
            sides[side][key] = fr.along_depth(frames)
            scores[side].append([fr.agreement(bases, shape.rank) for bases in per_depth])
    agreement = {side: torch.tensor(values).T.tolist() for side, values in scores.items()}
    return Frames(sides["in"], sides["out"], agreement | {"inputs": names["in"], "slots": names["out"]})


def _parse(name: str, tensors: Mapping[str, Tensor]) -> dict[tuple[str, str, int], Tensor]:
    found = {}
    for key, tensor in tensors.items():
        side, block, kind = key.split(".")
        if tensor.ndim != 2 or tensor.shape[0] < tensor.shape[1] or side not in ("in", "out") or not block.isdigit():
            raise ValueError(f"the bases of {name} hold a malformed {key!r}")
        found[side, kind, int(block)] = tensor.float() / tensor.shape[0] ** 0.5
    return found


def _matching(
    models: list[dict[tuple[str, str, int], Tensor]], side: str, key: str, depth: int, depths: int
) -> list[Tensor]:
    """The models' bases for one depth and slot: of each, the block at the nearest relative depth."""
    found = []
    for model in models:
        blocks = 1 + max(block for _, _, block in model)
        block = round(depth / (depths - 1) * (blocks - 1)) if depths > 1 else (blocks - 1) // 2
        if (side, key, block) in model:
            found.append(model[side, key, block])
    return found
