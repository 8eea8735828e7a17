"""Where A and B of H2Tune come from: the frames, before round 0.

anchor     regression on coordinates that all models share on public text     (`h2tune.frames.consensus`)
words      practised to read public word codes and to obey directions in them (`h2tune.frames.words`)
glossary   practised to obey cores written for public problems                (`h2tune.frames.glossary`)
weights    singular vectors of the base weights, an ablation: structured, but private to a model
random     nothing, an ablation
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from h2tune.frames import bases
from h2tune.frames.glossary import practise
from h2tune.frames.words import check_words, practise_words
from h2tune.methods.base import MethodError
from h2tune.protocol.codec import Payload, ProtocolError

if TYPE_CHECKING:
    from h2tune.methods.h2tune import H2TuneClient


def check_frames(method: H2TuneClient) -> None:
    """Raise MethodError if a client cannot have the frames that its settings ask for."""
    if method.settings.frames == "words":
        check_words(method)
    if method.settings.frames == "glossary" and not method.client.config.practice:
        raise MethodError(f"{method.client.name}: frames: glossary needs `practice:`, public problems with a lexicon")
    if method.settings.frames == "glossary" and method.client.task.kind == "classify":
        raise MethodError(f"{method.client.name}: frames: glossary works for tasks that write text, not for classify")


def start(method: H2TuneClient, payload: Payload, relation: Tensor) -> Tensor:
    """Set A and B to the frames; returns the start of P."""
    settings = method.settings
    if settings.frames == "anchor":
        frames = _received(method, payload)
        if settings.relation == "similarity":
            relation = method.described.relation(frames)
        _take_frames(method, frames, relation)
        del method.described
    elif settings.frames == "glossary":
        practise(method, settings.practice_rate)
    elif settings.frames == "words":
        practise_words(method)
    elif settings.frames == "weights":
        _take_singular_vectors(method)
    return relation


def _received(method: H2TuneClient, payload: Payload) -> bases.Frames:
    try:
        frames = bases.Frames.from_tensors(payload.tensors, method.shape)
    except ValueError as error:
        raise ProtocolError(f"the server's frames cannot be read: {error}") from None
    if missing := method.described.lacks(frames):
        raise ProtocolError(f"the server's frames lack {', '.join(missing)}")
    return frames


def _take_singular_vectors(method: H2TuneClient) -> None:
    """A = V^T, B = U Sigma of the base weight's leading part: private to a model, but no less structured."""
    with torch.no_grad():
        for layer in method.layers:
            weight = layer.get_base_weight().float()
            weight = weight.T if isinstance(layer.get_base_layer(), Conv1D) else weight
            u, s, vh = torch.linalg.svd(weight, full_matrices=False)
            rank = method.shared_rank
            layer.trilora_A[method.client.adapter][:rank] = vh[:rank]
            layer.trilora_B[method.client.adapter][:, :rank] = u[:, :rank] * s[:rank]


def _take_frames(method: H2TuneClient, frames: bases.Frames, relation: Tensor) -> None:
    """A_i and B_i by regression on the common coordinates; the leading r_i of them."""
    factors = method.described.regress(frames, relation)
    rank = method.shared_rank
    with torch.no_grad():
        for layer, (a, b) in zip(method.layers, factors, strict=True):
            layer.trilora_A[method.client.adapter][:rank] = a[:rank].to(layer.trilora_A[method.client.adapter])
            layer.trilora_B[method.client.adapter][:, :rank] = b[:, :rank].to(layer.trilora_B[method.client.adapter])
