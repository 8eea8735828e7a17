"""Frames that models do not share, as ablations: singular vectors of the base weights, and random numbers."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from h2tune.core.client_core import CoreShape
from h2tune.frames.base import ClientFrames, FrameKind
from h2tune.protocol.codec import Payload


class SingularVectors(ClientFrames):
    """A = V^T, B = U Sigma of the base weight's leading part: private to a model, but no less structured."""

    def set_up(self, payload: Payload, shape: CoreShape, relation: Tensor) -> Tensor:
        name, rank = self.context.name, self.adapter.shared_rank
        with torch.no_grad():
            for layer in self.adapter.layers:
                weight = layer.get_base_weight().float()
                weight = weight.T if isinstance(layer.get_base_layer(), Conv1D) else weight
                u, s, vh = torch.linalg.svd(weight, full_matrices=False)
                layer.trilora_A[name][:rank] = vh[:rank]
                layer.trilora_B[name][:, :rank] = u[:, :rank] * s[:rank]
        return relation


WEIGHTS = FrameKind("weights", "singular vectors of the base weights", SingularVectors)
RANDOM = FrameKind("random", "random numbers")
