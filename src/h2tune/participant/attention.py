"""Attention in bfloat16 on a CPU: plain products for short texts, PyTorch's fused kernel for long ones.

The fused kernel's backward pass is slow where texts are short. A block of SmolLM2-135M on 16 texts of 48 tokens takes 18.6 ms
with it, forward and backward, and 3.0 ms in plain products; from about 400 tokens on the fused kernel is faster. In float32 the
two take the same time, and on a GPU the fused one is fast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "plain_where_short"  # as Transformers knows it, in this process only
LONGEST = 256  # tokens
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

    Returns:
        batch x n x heads x width. The softmax is taken in float32.
    """
    short = key.shape[2] <= LONGEST and query.dtype is torch.bfloat16 and query.device.type == "cpu"
    if not short or dropout or UNUSUAL & {name for name, given in others.items() if given is not None}:
        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **others
        )
        return found
    groups = getattr(module, "num_key_value_groups", 1)
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if attention_mask is None and causal and query.shape[2] > 1:
        attention_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attention_mask is not None and attention_mask.dtype is torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def use_plain_where_short(model: PreTrainedModel) -> None:
    """Let a model that would use the fused kernel alone choose by the length of its texts; others stay as they are."""
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)
