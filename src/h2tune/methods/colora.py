"""Co-LoRA, the adapter and alignment of FedMosaic (Seo et al., arXiv 2506.11024): the strongest known rival of H2Tune.

    adapter     y = W x + B (P A x + q),   P (R x R) and q (R) start at 0; here P is the adapter's T, q its shift
    alignment   on public text, at K anchor blocks l = k floor(L / K) - 1, ..., L - 1, the i-th of one model to the
                i-th of another; one model is the pivot:
                A'  <- argmin ||X' A'^T - X A^T||^2 + 0.5 ||A' A'^T - I||^2, then the nearest row-orthonormal matrix
                B'  <- S33^(1/2) V U^T S11^(-1/2) B,  U, V from the CCA of the two models' outputs (ridge gamma)
    sharing     P and q of the anchor blocks with everyone; all other factors only between clients of equal models
    mixture     P_k <- sum_i w_ki P_i,   w_k = softmax_i( cos(g_k, g_i) / 0.5 ),
                g: sketch of the gradient of a small common model on the client's data

Differences to FedMosaic, which has two adapters (own and global) and a learned gate between them: one adapter, and so the
client itself is part of its mixture (with similarity 1). The sketch, a function of private gradients, leaves a
client once; ``relevance: uniform`` does without. Everything else private stays.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from h2tune.config import Experiment
from h2tune.core.slots import input_kind
from h2tune.errors import ProtocolError
from h2tune.frames.anchor import describe_anchors
from h2tune.methods.adapter_client import AdapterClient
from h2tune.methods.base import Method, ModelShape, PlannedBytes, Sent
from h2tune.methods.colora_align import align_reader, align_writer, anchor_blocks, guide_bytes, whitened
from h2tune.methods.colora_server import CoLoraServer
from h2tune.methods.colora_settings import CoLoraSettings
from h2tune.methods.colora_sketch import SKETCH, gradient_sketch
from h2tune.protocol.codec import Payload, Size
from h2tune.utils.seeds import derive


class CoLoraClient(AdapterClient):
    """Attributes:
    twins: whether another client that takes part has the same base; the server says so in every round.
    """

    version = 2  # every round says whether a client has a twin
    settings: CoLoraSettings
    twins = False

    @classmethod
    def planned_bytes(cls, experiment: Experiment, settings: Any, shape: ModelShape) -> PlannedBytes:
        """P and q of the anchor blocks, between twins all else; once the sketch, and the guide from the pivot to other bases."""
        joins = {client.name: client.joins for client in experiment.clients}
        begin = [other for name, other in shape.company.items() if joins[name] == 1] or [shape]
        count = min(settings.blocks, *(other.blocks for other in begin))
        anchored = anchor_blocks(shape.blocks, count)
        modules, size = len(shape.maps) // shape.blocks, 0
        for index, (d_in, d_out, parts) in enumerate(shape.maps):
            at_anchor, twins = index // modules in anchored, len(shape.peers) > 1
            size += 4 * parts * (shape.rank**2 + shape.rank) if at_anchor or twins else 0
            size += 4 * shape.rank * (d_in + d_out) if twins else 0
        pivot = min(begin, key=lambda other: (-other.blocks, other.client))
        guide = guide_bytes(
            pivot, min(settings.blocks, pivot.blocks), settings.directions * experiment.rank, settings.sentences
        )
        up = (4 * SKETCH if settings.relevance == "sketch" else 0) + (guide if shape.client == pivot.client else 0)
        return PlannedBytes(size, size, up, guide if shape.base != pivot.base else 0)

    @classmethod
    def leaves(cls, experiment: Experiment | None, settings: Any) -> list[Sent]:
        sketch = f"{SKETCH} numbers made from the gradient of a small common model on private rows"
        guide = "what A reads and B writes on the public anchor text"
        twins = (
            "A and B of all maps, and P and q away from the anchor blocks, if another client has the same base model"
        )
        found = [Sent("join", ("sketch",), sketch, "once")] if settings.relevance == "sketch" else []
        return [
            *found,
            Sent("describe", ("read.*", "rows.*", "write.*"), guide, "once, from the client with the deepest model"),
            Sent("train", ("T.*", "q.*"), "P (R x R) and q (R) of every slot of the anchor blocks"),
            Sent("train", ("own.*",), twins),
        ]

    def join(self, fresh: bool = True) -> Payload:
        self.attach(self.adapter_rank, residual=False, shift=True)
        name = self.context.adapter
        self.shifts: list[nn.Parameter] = [layer.trilora_q[name] for layer in self.layers]
        if fresh:
            self._orthonormal_start()
        sketch = {}
        if fresh and self.settings.relevance == "sketch":
            sketch = {"sketch": gradient_sketch(self.context, self.settings.common)}
        return Payload(sketch, self.introduction())

    def _orthonormal_start(self) -> None:
        """The same in all clients on one base, whatever their names."""
        with torch.no_grad():
            for index, layer in enumerate(self.layers):
                seed = derive(self.context.seed, "colora", self.context.base.fingerprint, index)
                generator = torch.Generator().manual_seed(seed)
                for matrix in (layer.trilora_A[self.context.adapter].T, layer.trilora_B[self.context.adapter]):
                    random = torch.randn(matrix.shape, generator=generator)
                    matrix.copy_(torch.linalg.qr(random)[0])

    def describe(self, payload: Payload) -> Payload:
        """As the pivot: what A reads and B writes on the public text at the anchor blocks."""
        tensors = {}
        bases = describe_anchors(self.context, self.settings.directions * self.context.rank, self.settings.sentences)
        for place, block in enumerate(anchor_blocks(self.context.layout.depth, self._count())):
            for slot, (a, b) in self._factors_of(block).items():
                x, y = bases.inputs[block][input_kind(slot)], bases.outputs[block][slot]
                rows, deviation = whitened(y, self.settings.gamma)
                tensors[f"read.{place}.{slot}"] = ((x.u * x.s) @ (x.v.T @ a.T)).half()
                tensors[f"rows.{place}.{slot}"] = rows.half()
                tensors[f"write.{place}.{slot}"] = ((y.v.double().T @ b.double()) / deviation[:, None]).float()
        return Payload(tensors)

    def _count(self) -> int:
        return min(self.settings.blocks, self.context.layout.depth)

    def _factors_of(self, block: int) -> dict[str, tuple[Tensor, Tensor]]:
        """A and the slot's rows of B, for every slot of a block, on the CPU, where anchors are described."""
        layout, name = self.context.layout, self.context.adapter
        found = {}
        for slot, ref in layout.slots.items():
            layer = self.layers[block * len(layout.modules) + layout.modules.index(ref.module)]
            parts = layer.trilora_rows[name].split(layer.trilora_B[name].detach())
            found[slot] = layer.trilora_A[name].detach().cpu(), parts[ref.part].cpu()
        return found

    def welcome(self, payload: Payload, fresh: bool = True) -> Payload:
        self.blocks = anchor_blocks(self.context.layout.depth, payload.said("blocks", Size))
        if fresh:
            if payload.tensors:
                self._align(payload.tensors)
            self.warm_head()
        context, updates = self.context, self.updates
        own = [*self.factors, *self.head]
        self.groups = {
            "factors": self.group(own, context.learning_rate, updates),
            "shared": self.group([*self.middles, *self.shifts], context.training.core_learning_rate, updates),
        }
        return Payload()

    def _align(self, pivot: dict[str, Tensor]) -> None:
        layout, name = self.context.layout, self.context.adapter
        bases = describe_anchors(self.context, self.settings.directions * self.context.rank, self.settings.sentences)
        with torch.no_grad():
            for place, block in enumerate(self.blocks):
                for module_index, module in enumerate(layout.modules):
                    layer = self.layers[block * len(layout.modules) + module_index]
                    slots = sorted((ref.part, slot) for slot, ref in layout.slots.items() if ref.module == module)
                    known = [slot for _, slot in slots if f"read.{place}.{slot}" in pivot]
                    if not known:
                        continue  # the pivot's family lacks this slot: nothing to align with
                    with torch.enable_grad():
                        x = bases.inputs[block][input_kind(slots[0][1])]
                        a = align_reader(x, pivot[f"read.{place}.{known[0]}"].float())
                    layer.trilora_A[name].copy_(a)
                    parts = layer.trilora_rows[name].split(layer.trilora_B[name])
                    for part, slot in slots:
                        if slot in known:
                            y, key = bases.outputs[block][slot], f"{place}.{slot}"
                            b = align_writer(y, pivot[f"rows.{key}"], pivot[f"write.{key}"], self.settings.gamma)
                            parts[part] = b.to(parts[part])
                    layer.trilora_B[name].copy_(layer.trilora_rows[name].join(parts))

    def train(self, round: int, payload: Payload) -> Payload:
        self.twins = payload.said("twins", bool)
        self.receive(payload)
        self.train_groups(list(self.groups.values()), self.context.batches(round), "joint")
        return Payload(self.pack())

    def _shared_places(self) -> dict[str, tuple[Tensor, Tensor]]:
        """``0.q`` and so on: (T, q) of every slot at every anchor block, as views of the parameters."""
        layout = self.context.layout
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for place, block in enumerate(self.blocks):
            for slot, ref in layout.slots.items():
                index = block * len(layout.modules) + layout.modules.index(ref.module)
                found[f"{place}.{slot}"] = self.middles[index].data[ref.part], self.shifts[index].data[ref.part]
        return found

    def _group_tensors(self) -> dict[str, Tensor]:
        """What only fits between equal models: all A and B, and T and q away from the anchor blocks."""
        modules = len(self.context.layout.modules)
        found: dict[str, Tensor] = {}
        for index, layer in enumerate(self.layers):
            name = self.context.adapter
            found |= {f"{index}.A": layer.trilora_A[name].data, f"{index}.B": layer.trilora_B[name].data}
            if index // modules not in self.blocks:
                found |= {f"{index}.T": self.middles[index].data, f"{index}.q": self.shifts[index].data}
        return found

    def pack(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for key, (t, q) in self._shared_places().items():
            tensors |= {f"T.{key}": t.clone(), f"q.{key}": q.clone()}
        if self.twins:
            tensors |= {f"own.{k}": t.clone() for k, t in self._group_tensors().items()}
        return tensors

    def receive(self, payload: Payload) -> None:
        places, own = self._shared_places(), self._group_tensors()
        for name, tensor in payload.tensors.items():
            kind, _, key = name.partition(".")
            target = own.get(key) if kind == "own" else (places.get(key) or (None, None))[kind == "q"]
            if target is None or target.shape != tensor.shape:
                raise ProtocolError(f"the server sent {name!r} of shape {tuple(tensor.shape)}")
            target.copy_(tensor)


Method(
    "colora",
    CoLoraSettings,
    CoLoraClient,
    CoLoraServer,
    "P and q at aligned anchor blocks, mixed by relevance",
    source="Seo et al., arXiv 2506.11024 (FedMosaic)",
)
