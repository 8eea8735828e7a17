"""Products with frozen weights in float32 on a CPU: by oneDNN, which PyTorch itself takes for bfloat16 only.

PyTorch multiplies float32 with Intel's MKL, and MKL gives AMD's processors no AVX-512. An update of a LoRA on SmolLM2-135M took
3.60 s with it on an EPYC core and 2.15 s with oneDNN; where MKL uses AVX-512 the two should be level. The sums are of float32 in
either, in another order. Which of the two is used depends on the processor alone, so that a run is repeated bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

FEWEST = 32  # rows; with fewer, as when a model writes token by token, MKL is as fast
STEP = (
    64  # rows are filled up to multiples: oneDNN keeps code for every number of rows that it meets, megabytes in all
)


def supported() -> bool:
    """Whether this processor has AVX-512 and this PyTorch oneDNN's linear map, an operator that is not documented."""
    return (
        torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def use_onednn(model: nn.Module) -> None:
    """Let a model's linear maps take oneDNN wherever their weights are frozen float32."""
    for module in model.modules():
        if type(module) in _FASTER:
            module.__class__ = _FASTER[type(module)]


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x W^T + b``; x: ... x d_in, W: d_out x d_in."""
    flat = x.reshape(-1, x.shape[-1])
    rows = len(flat)
    if missing := -rows % STEP:
        flat = torch.cat([flat, flat.new_zeros(missing, flat.shape[1])])  # `pad` would fill all of it first
    found: Tensor = torch.ops.mkldnn._linear_pointwise(flat, weight, bias, "none", [], "")
    # Nobody else holds `found`. As an ordinary view its result could not be added to in place (`plus_low_rank`).
    return torch.ops.aten._unsafe_view(found[:rows], (*x.shape[:-1], -1))  # type: ignore[no-any-return]


class _Linear(torch.autograd.Function):
    """A linear map by oneDNN; gradients flow to its input alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return _product(gradients[0], weight.t()), None, None


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a product is one of float32 with a frozen weight, and large enough."""
    return (
        x.dtype is weight.dtype is torch.float32
        and x.device.type == weight.device.type == "cpu"
        and not weight.requires_grad
        and not (bias is not None and bias.requires_grad)
        and x.numel() >= FEWEST * x.shape[-1]
        and not torch.is_autocast_enabled("cpu")
    )


class FrozenLinear(nn.Linear):
    """``nn.Linear`` whose products oneDNN makes where it can."""

    def forward(self, x: Tensor) -> Tensor:
        if _fits(x, self.weight, self.bias):
            return _Linear.apply(x, self.weight, self.bias)  # type: ignore[no-any-return, no-untyped-call]
        return F.linear(x, self.weight, self.bias)


class FrozenConv1D(Conv1D):
    """GPT-2's linear map, whose weight is d_in x d_out, likewise."""

    def forward(self, x: Tensor) -> Tensor:
        if _fits(x, self.weight, self.bias):
            return _Linear.apply(x, self.weight.t(), self.bias)  # type: ignore[no-any-return, no-untyped-call]
        found: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        return found


_FASTER: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: FrozenLinear, Conv1D: FrozenConv1D}
