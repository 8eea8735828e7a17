"""Frames by effect, turned by a rotation that every client keeps to itself: an attempt to break what sharing gains.

Each client's core is as good as before, and the mean of cores means nothing. A gain that survives is not one of sharing.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from h2tune.core.client_core import CoreShape
from h2tune.frames.effect import EFFECT, EffectClient, EffectKind, EffectServer
from h2tune.frames.registry import OWN
from h2tune.protocol.codec import Payload


class TurnedClient(EffectClient):
    def set_up(self, payload: Payload, shape: CoreShape, relation: Tensor) -> Tensor:
        relation = super().set_up(payload, shape, relation)
        name, rank = self.context.adapter, self.adapter.shared_rank
        generator = torch.Generator().manual_seed(zlib.crc32(self.context.name.encode()))
        reads, writes = (torch.linalg.qr(torch.randn(rank, rank, generator=generator))[0] for _ in range(2))
        with torch.no_grad():
            for layer in self.layers:
                a, b = layer.trilora_A[name], layer.trilora_B[name]
                a[:rank] = reads.to(a) @ a[:rank]
                b[:, :rank] = b[:, :rank] @ writes.to(b)
        return relation


OWN["turned"] = EffectKind(
    "turned",
    "frames by effect under private rotations",
    TurnedClient,
    EffectServer,
    reads_anchors=True,
    suited=EFFECT.suited,
)
