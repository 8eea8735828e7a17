"""The products of an adapter of low rank, and their gradients."""

from __future__ import annotations

import pytest
import torch
from families import adapted, logits
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from h2tune.adapter.layer import TriLoraLinear
from h2tune.adapter.low_rank import plus_low_rank
from h2tune.adapter.side_by_side import SideBySide


def drawn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype).requires_grad_()


@pytest.mark.parametrize("adapters", [None, 1, 3])
def test_gradients_are_those_of_the_formula(adapters: int | None) -> None:
    """By finite differences."""
    torch.manual_seed(0)
    first = () if adapters is None else (adapters,)
    factors = drawn(3 * 2, 5, 3), drawn(3 * 2, 5, 4), drawn(*first, 2, 4), drawn(*first, 3, 2)
    assert torch.autograd.gradcheck(lambda y, *rest: plus_low_rank(y + 0, *rest), factors)


sizes = st.integers(1, 6)


@given(rows=sizes, tokens=sizes, d_in=sizes, d_out=sizes, r=sizes)
def test_it_is_two_linear_maps(rows: int, tokens: int, d_in: int, d_out: int, r: int) -> None:
    y, x, a, b = drawn(rows, tokens, d_out), drawn(rows, tokens, d_in), drawn(r, d_in), drawn(d_out, r)
    torch.testing.assert_close(plus_low_rank(y + 0, x, a, b), y + F.linear(F.linear(x, a), b))


def test_each_adapter_has_rows_of_its_own() -> None:
    torch.manual_seed(2)
    y, x, a, b = drawn(4, 5, 3), drawn(4, 5, 7), drawn(2, 2, 7), drawn(2, 3, 2)
    apart = [y[2 * k : 2 * k + 2] + F.linear(F.linear(x[2 * k : 2 * k + 2], a[k]), b[k]) for k in range(2)]
    torch.testing.assert_close(plus_low_rank(y + 0, x, a, b), torch.cat(apart))


@pytest.mark.parametrize("learning", [(0,), (1,), (2,), (3,), (1, 3), (2, 3)])
def test_what_does_not_learn_gets_no_gradient_and_is_not_kept(learning: tuple[int, ...]) -> None:
    """Where A is fixed, as in a frame, its input need not stay in memory until the backward pass."""
    torch.manual_seed(1)
    factors = [drawn(1, 6, 3), drawn(1, 6, 4), drawn(2, 4), drawn(3, 2)]
    for place, factor in enumerate(factors):
        factor.requires_grad_(place in learning)
    kept: list[tuple[int, ...]] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    y, *rest = factors
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        plus_low_rank(y + 0, *rest).sum().backward()  # type: ignore[no-untyped-call]
    assert [factor.grad is not None for factor in factors] == [place in learning for place in range(4)]
    assert ((6, 4) in kept) == (2 in learning)


def test_a_reduced_format_is_left_to_autocast() -> None:
    y, x, a, b = (drawn(*shape, dtype=torch.float32) for shape in ((2, 3, 4), (2, 3, 8), (2, 8), (4, 2)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = plus_low_rank(y, x, a, b)
        assert torch.equal(found, y + F.linear(F.linear(x, a), b))
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert a.grad is not None


def test_formats_are_mixed_as_torch_mixes_them() -> None:
    """A base in bfloat16 under an adapter in float32."""
    x, a, b = (drawn(*shape, dtype=torch.float32) for shape in ((2, 3, 8), (2, 8), (4, 2)))
    y = drawn(2, 3, 4, dtype=torch.bfloat16)
    found = plus_low_rank(y, x, a, b)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, y + F.linear(F.linear(x, a), b))


def test_only_what_is_nobodys_is_overwritten() -> None:
    torch.manual_seed(3)
    x, a, b = torch.randn(6, 4), torch.randn(2, 4), torch.randn(3, 2)
    whole, leaf = torch.randn(8, 3), torch.randn(6, 3).requires_grad_()
    kept = whole.clone()
    plus_low_rank(whole[:6], x, a, b)
    assert torch.equal(whole, kept)
    with torch.inference_mode():
        mine = whole.clone()
        plus_low_rank(mine[:6], x, a, b)
        assert torch.equal(mine, kept)
    before = leaf.detach().clone()
    plus_low_rank(leaf, x, a, b).sum().backward()  # type: ignore[no-untyped-call]
    assert torch.equal(leaf, before) and leaf.grad is not None


def test_what_a_hook_on_the_base_keeps_stays_as_it_was() -> None:
    model = adapted("llama")
    layer = next(module for module in model.modules() if isinstance(module, TriLoraLinear))
    kept: list[Tensor] = []
    layer.base_layer.register_forward_hook(lambda module, args, out: kept.extend([out, out.clone()]))
    logits(model)
    assert torch.equal(kept[0], kept[1])


@pytest.mark.parametrize("rows", [[2, 2], [1, 3]], ids=["even", "uneven"])
def test_adapters_side_by_side_keep_the_format_of_the_base(rows: list[int]) -> None:
    model = adapted("llama", dtype=torch.bfloat16)
    model.add_adapter("other", model.peft_config["default"])
    batch = torch.randint(0, 50, (4, 6))
    with SideBySide(["default", "other"], rows).on(model), torch.no_grad():
        assert model(input_ids=batch).logits.dtype is torch.bfloat16
