"""Attention in bfloat16 on a CPU: plain products for short texts, PyTorch's fused kernel for long ones.

The fused kernel's backward pass is slow where texts are short. A block of SmolLM2-135M on 16 texts of 48 tokens takes 19.6 ms
with it, forward and backward, and 3.9 ms in plain products; from about 400 tokens on the fused kernel is faster. In float32 the
two take the same time, and on a GPU the fused one is fast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from h2tune.core.slots import FAMILIES

NAME = "plain_where_short"  # as Transformers knows it, in this process only
LONGEST = 256  # tokens
HIDDEN = torch.finfo(torch.bfloat16).min  # as masks of bfloat16 have it; no -inf, whose softmax is no number
UNUSUAL = {
    "position_bias",
    "cache",
    "softcap",
    "s_aux",
}  # what only some families' attention has: left to Transformers


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """softmax(Q K^T scaling) V for n queries and m keys of each head (batch x heads x n or m x width); the mask is that of ``sdpa``.

    Q K^T and its softmax are in float32, as in the fused kernel: rounded scores would be wrong where they are large.

    Returns:
        batch x n x heads x width; 0 where a query may see no key.
    """
    short = key.shape[2] <= LONGEST and query.dtype is torch.bfloat16 and query.device.type == "cpu"
    if not short or dropout or UNUSUAL & {name for name, given in others.items() if given is not None}:
        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **others
        )
        return found
    batch, heads, n, width = query.shape
    groups, m = key.shape[1:3]  # heads of queries that share a head of keys are multiplied together
    scaling = width**-0.5 if scaling is None else scaling
    scores = (query.float() * scaling).reshape(batch, groups, -1, width) @ key.float().transpose(2, 3)
    scores = scores.view(batch, heads, n, m)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if attention_mask is None and causal and n > 1:
        attention_mask = torch.ones(1, 1, n, m, dtype=torch.bool).tril()
    seen = None
    if attention_mask is not None:
        added = _added(attention_mask[..., :m])
        scores, seen = scores + added, (added > HIDDEN).any(-1, keepdim=True)
    weights = scores.softmax(-1).to(query.dtype).view(batch, groups, -1, m)
    result = (weights @ value).view(batch, heads, n, value.shape[-1])
    if seen is not None and not bool(seen.all()):
        result = result.masked_fill(~seen, 0)
    return result.transpose(1, 2).contiguous(), None


def _added(mask: Tensor) -> Tensor:
    """What is added to the scores: `HIDDEN` where a mask hides a key."""
    if mask.dtype is torch.bool:
        return torch.zeros(mask.shape).masked_fill_(~mask, HIDDEN)
    return mask.float().clamp_min(HIDDEN)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def use_plain_where_short(model: PreTrainedModel) -> None:
    """Let a model that would use the fused kernel alone choose by the length of its texts; others stay as they are.

    So do families that are not known here: some ask for ``sdpa`` by name before they apply a mask of their own.
    """
    if model.config._attn_implementation == "sdpa" and model.config.get_text_config().model_type in FAMILIES:
        model.set_attn_implementation(NAME)
