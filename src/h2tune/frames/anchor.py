"""Frames from anchor text: regression on latent coordinates that all models share on public sentences.

    U_i = leading left singular vectors of client i's activations, words x p      (`h2tune.frames.bases`)
    G   = top-R left singular vectors of [U_1 ... U_N], the consensus               (`h2tune.frames.consensus`)
    A_i = ridge regression X_i -> G_in,   B_i = least squares G_out -> Y_i

Only U leaves a client, once; it is a function of public text and base weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from h2tune.config import Experiment
from h2tune.core.client_core import CoreShape
from h2tune.core.slots import INPUTS, Layout
from h2tune.declared import ModelShape, Sent
from h2tune.errors import ProtocolError
from h2tune.frames import bases
from h2tune.frames.anchor_text import anchor_batch
from h2tune.frames.base import ClientFrames, FrameKind, FrameSettings, ServerFrames
from h2tune.participant.context import ClientContext
from h2tune.protocol.codec import Payload


def describe_anchors(
    context: ClientContext, directions: int, most: int | None = None, layout: Layout | None = None
) -> bases.Bases:
    """Factors of a client's activations on the anchors, or on ``most`` of them; clients on one base share them.

    ``layout`` says of which maps, by default of all that are adapted.
    """
    layout = layout or context.layout
    anchors: Sequence[str] = context.anchors
    if most:
        anchors = anchors[:: -(-len(anchors) // most)]
    base, key = context.base, ("bases", directions, hash(tuple(anchors)), layout.first, tuple(layout.targets))
    if key not in base.cache:
        batch = anchor_batch(anchors, context.tokenizer, base.context, base.causal)
        with base.untouched() as model:
            base.cache[key] = bases.describe(model, layout, batch, directions)
    found: bases.Bases = base.cache[key]
    return found


class AnchorClient(ClientFrames):
    described: bases.Bases | None = None

    def introduction(self, fresh: bool) -> dict[str, Any]:
        if not fresh:
            return {}
        directions = self.settings.directions * self.context.rank
        self.described = describe_anchors(self.context, directions, layout=self.layout)
        return {"digest": self.described.digest}

    def describe(self) -> Payload:
        return Payload(self._described().tensors())

    def _described(self) -> bases.Bases:
        if self.described is None:
            raise ProtocolError("the server asks for anchors that this client has not described")
        return self.described

    def set_up(self, payload: Payload, shape: CoreShape, relation: Tensor) -> Tensor:
        described = self._described()
        try:
            frames = bases.Frames.from_tensors(payload.tensors, shape)
        except ValueError as error:
            raise ProtocolError(f"the server's frames cannot be read: {error}") from None
        if missing := described.lacks(frames):
            raise ProtocolError(f"the server's frames lack {', '.join(missing)}")
        self._take(described.regress(frames, relation))
        self.described = None  # it is large, and was of use once
        return relation

    def _take(self, factors: list[tuple[Tensor, Tensor]]) -> None:
        """The leading r_i of the common coordinates."""
        name, rank = self.context.adapter, self.adapter.shared_rank
        with torch.no_grad():
            for layer, (a, b) in zip(self.layers, factors, strict=True):
                own_a, own_b = layer.trilora_A[name], layer.trilora_B[name]
                own_a[:rank] = a[:rank].to(own_a)
                own_b[:, :rank] = b[:, :rank].to(own_b)


class AnchorServer(ServerFrames):
    frames: bases.Frames | None = None

    def check_introduction(self, payload: Payload) -> None:
        super().check_introduction(payload)
        payload.said("digest", str)

    def describers(self, joined: dict[str, Payload]) -> list[str]:
        """One client for each distinct set of bases: clients on one model would send the same bytes."""
        if self.frames is not None:
            return []  # late joiners regress on the coordinates that there are
        return list({payload.meta["digest"]: name for name, payload in reversed(joined.items())}.values())[::-1]

    def misfits(self, joined: dict[str, Payload], described: dict[str, Payload]) -> dict[str, str]:
        sent = {name: payload.tensors for name, payload in described.items()}
        said = {name: (joined[name].meta["depth"], joined[name].meta["slots"]) for name in sent}
        rank = self.experiment.rank
        return bases.misfits(sent, said, rank, self.settings.directions * rank)

    def agree(self, described: dict[str, Payload], shape: CoreShape) -> None:
        sent = {name: payload.tensors for name, payload in described.items()}
        self.frames = bases.agree(sent, shape)
        self.agreement = self.frames.agreement

    def tensors(self) -> dict[str, Tensor]:
        return self.frames.tensors() if self.frames else {}

    def load(self, tensors: dict[str, Tensor], shape: CoreShape, agreement: dict[str, Any] | None) -> None:
        super().load(tensors, shape, agreement)
        self.frames = bases.Frames.from_tensors(tensors, shape)


class AnchorKind(FrameKind):
    def leaves(self, settings: FrameSettings) -> list[Sent]:
        says = "left factors of the base model's activations on the public anchor text; they depend on no private row"
        digest = Sent(
            "join", ("digest",), "a digest of the base model's activations on the public anchor text", "once"
        )
        return [digest, Sent("describe", ("in.*", "out.*"), says, "once, from one client of each base model")]

    def setup_bytes(self, experiment: Experiment, settings: FrameSettings, shape: ModelShape) -> tuple[int, int]:
        most = settings.directions * experiment.rank
        columns = sum(min(most, size) for size in (*shape.inputs, *shape.parts))
        kinds = len(INPUTS) + len(shape.all_slots)
        up = 2 * shape.anchor_words * shape.blocks * columns
        return up, 2 * shape.anchor_words * experiment.rank * shape.depth * kinds


ANCHOR = AnchorKind(
    "anchor",
    "regression on coordinates that all models share on public text",
    AnchorClient,
    AnchorServer,
    reads_anchors=True,
)
