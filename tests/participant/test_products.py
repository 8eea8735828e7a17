"""oneDNN's products are those of float32; where they are not meant, no bit changes."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from families import NAMES, build
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from h2tune.participant import products
from h2tune.participant.base_models import ModelPool

pytestmark = pytest.mark.skipif(not products.supported(), reason="this processor has no AVX-512")
ANY = pytest.mark.parametrize("family", NAMES)


def logits_and_gradient(model: nn.Module, rows: int = 8) -> tuple[Tensor, Tensor]:
    """The gradient is that of the embeddings of ``rows`` texts of eight tokens."""
    ids = torch.randint(3, 60, (rows, 8), generator=torch.Generator().manual_seed(0))
    words = model.get_input_embeddings()(ids).detach().requires_grad_(True)  # type: ignore[operator]
    logits = model(inputs_embeds=words).logits
    (gradient,) = torch.autograd.grad(logits.float().square().mean(), words)
    return logits.detach(), gradient


def pair(family: str) -> tuple[nn.Module, nn.Module]:
    """A frozen model as it is, and with the faster products."""
    plain = build(family).requires_grad_(False)
    fast = copy.deepcopy(plain)
    products.use_onednn(fast)
    assert any(type(m) in (products.FrozenLinear, products.FrozenConv1D) for m in fast.modules())
    return plain, fast


@ANY
def test_products_are_those_of_float32(family: str) -> None:
    """Both are compared with float64: the error must be of the size that MKL's is."""
    plain, fast = pair(family)
    exact = copy.deepcopy(plain).double()
    found = [logits_and_gradient(model) for model in (exact, plain, fast)]
    for true, usual, other in zip(*found, strict=True):
        size = true.abs().max()
        assert (other - true).abs().max() < 3 * (usual - true).abs().max() + 1e-6 * size


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_where_they_are_not_meant_no_bit_changes(family: str) -> None:
    plain, fast = pair(family)

    def equal(rows: int = 8) -> bool:
        return all(map(torch.equal, logits_and_gradient(plain, rows), logits_and_gradient(fast, rows)))

    assert equal(rows=3)  # few rows
    with torch.autocast("cpu", torch.bfloat16):
        assert equal()
    for model in (plain, fast):
        model.requires_grad_(True)  # weights that learn
    assert equal()
    for model in (plain, fast):
        model.requires_grad_(False).to(torch.bfloat16)
    assert equal()


def test_a_bias_that_learns_gets_its_gradient() -> None:
    layer = nn.Linear(8, 8).requires_grad_(False)
    assert layer.bias is not None
    layer.bias.requires_grad_(True)
    products.use_onednn(layer)
    layer(torch.randn(64, 8)).sum().backward()
    assert layer.bias.grad is not None and layer.bias.grad.tolist() == [64.0] * 8


@pytest.mark.parametrize("shape", [(33,), (3, 50), (2, 3, 17), (0,), (64,), (128, 1)])
def test_any_shape_is_multiplied_and_keeps_its_shape(shape: tuple[int, ...]) -> None:
    """Rows are filled up to multiples of 64, and what was added is cut off again."""
    layer = nn.Linear(8, 5).requires_grad_(False)
    fast = copy.deepcopy(layer)
    products.use_onednn(fast)
    x = torch.randn(*shape, 8)
    a, b = x.clone().requires_grad_(True), x.clone().requires_grad_(True)
    one, other = layer(a), fast(b)
    torch.testing.assert_close(one, other)
    one.square().sum().backward()
    other.square().sum().backward()
    torch.testing.assert_close(a.grad, b.grad)


def test_a_second_derivative_is_refused_and_never_wrong() -> None:
    layer = nn.Linear(8, 8).requires_grad_(False)
    products.use_onednn(layer)
    x = torch.randn(64, 8, requires_grad=True)
    (first,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        first.square().sum().backward()


def test_bases_in_float32_use_them_and_a_saved_base_is_an_ordinary_one(tmp_path: Path) -> None:
    base = ModelPool("cpu").get("zoo:gpt2").model
    assert sum(isinstance(m, products.FrozenConv1D) for m in base.modules()) == 4 * len(base.transformer.h)
    base.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert not any(isinstance(m, products.FrozenLinear | products.FrozenConv1D) for m in again.modules())
    for (name, a), (other, b) in zip(base.named_parameters(), again.named_parameters(), strict=True):
        assert name == other and torch.equal(a, b)
