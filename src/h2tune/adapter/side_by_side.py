"""Rows of several adapters in one pass: each block of rows of a batch goes through an adapter of its own.

    y[k] = W x[k] + s B_k (T_k + rho I) A_k x[k]        k: which adapter, x[k]: its rows

The base's product is one for all rows; those of the adapters are batched products over stacked factors, as in S-LoRA (arXiv
2311.03285) and mLoRA (arXiv 2312.02515).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from peft import PeftModel
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from h2tune.adapter.layer import TriLoraLayer, TriLoraLinear
from h2tune.adapter.low_rank import plus_low_rank


class SideBySide:
    """Adapters of equal shape beside each other on one model.

    Args:
        names: of the adapters. rows: how many rows of the batch belong to each, in this order.
    """

    def __init__(self, names: Sequence[str], rows: Sequence[int]) -> None:
        self.names, self.rows = list(names), list(rows)
        self.even = len(set(rows)) == 1

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Let passes over a batch of all rows go through the adapters of their rows."""
        with ExitStack() as stack:
            for module in model.modules():
                if isinstance(module, TriLoraLinear):
                    stack.callback(setattr, module, "beside", module.beside)
                    module.beside = self
                elif isinstance(module, AuxiliaryTrainingWrapper):
                    stack.enter_context(self._own_heads(module))
            yield

    def added(self, layer: TriLoraLinear, x: Tensor, result: Tensor) -> Tensor:
        """The base's result with what each row's adapter adds to it."""
        extras = (layer.trilora_q, layer.trilora_offset, layer.trilora_dropout)
        if not self.even or any(self.names[0] in held for held in extras):
            blocks = zip(self.names, self._split(x), self._split(result), strict=True)
            return torch.cat([layer.added(name, part, base).to(result.dtype) for name, part, base in blocks])
        a = torch.stack([layer.trilora_A[name] for name in self.names])
        read = layer._cast_input_dtype(x, a.dtype)
        return plus_low_rank(result, read, a, self._left_factors(layer)).to(result.dtype)

    def _left_factors(self, layer: TriLoraLayer) -> Tensor:
        """``s B (T + rho I)`` of every adapter, adapters x d_out x r."""
        names, first = self.names, self.names[0]
        if len(layer.trilora_rows[first].sizes) > 1:
            return torch.stack([layer.left_factor(name) for name in names])
        b = torch.stack([layer.trilora_B[name] for name in names])
        if all(layer.is_plain(name) for name in names):
            return b
        t = torch.stack([layer.trilora_T[name][0] for name in names])
        return torch.bmm(b, layer.with_residual(first, t))

    def _split(self, x: Tensor) -> tuple[Tensor, ...]:
        """Blocks of rows; some families lay the tokens of all rows after one another before a map."""
        tokens, rest = divmod(x.shape[0], sum(self.rows))
        assert not rest, "the first dimension is rows, or rows x tokens"
        return torch.split(x, [count * tokens for count in self.rows])

    @contextmanager
    def _own_heads(self, wrapper: Any) -> Iterator[None]:
        """Let a module that is saved whole, and of which each adapter has a copy, read its own rows alone."""

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            parts = zip(self.names, self._split(x), strict=True)
            return torch.cat([wrapper.modules_to_save[name](part, *args, **kwargs) for name, part in parts])

        wrapper.forward = forward
        try:
            yield
        finally:
            del wrapper.forward


def shape_of(model: nn.Module, adapter: str) -> tuple[Any, ...]:
    """What adapters must have in common to lie side by side: rank, residual, scaling, and which parts there are."""
    layer = next(module for module in model.modules() if isinstance(module, TriLoraLayer))
    held = (layer.trilora_q, layer.trilora_offset, layer.trilora_dropout)
    return (
        layer.trilora_r[adapter], layer.trilora_rho[adapter], layer.trilora_framed[adapter], layer.trilora_scaling[adapter],
        *(adapter in part for part in held),
    )  # fmt: skip


def parameters_of(model: nn.Module, adapter: str) -> list[nn.Parameter]:
    """All parameters of one adapter, those of its copies of whole modules included."""
    found: list[nn.Parameter] = []
    for module in model.modules():
        if isinstance(module, TriLoraLayer):
            found += module.parameters_of([adapter])
        elif isinstance(module, AuxiliaryTrainingWrapper) and adapter in module.modules_to_save:
            found += module.modules_to_save[adapter].parameters()
    return found


def switch_to(model: PeftModel, adapter: str) -> None:
    """Make an adapter the active one and leave alone which parameters get gradients."""
    for module in model.modules():
        if isinstance(module, TriLoraLayer):
            module._active_adapter, module._listening = [adapter], {*module._listening, adapter}
        elif isinstance(module, AuxiliaryTrainingWrapper):
            module._active_adapter = adapter  # type: ignore[assignment]  # PEFT has a list in layers and a name here
    model.active_adapter = adapter
    tuner: Any = model.base_model
    tuner.active_adapter = adapter
