"""The loss of large vocabularies, a few positions at a time, against PyTorch's."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from h2tune.participant import losses as room
from h2tune.participant.losses import losses
from h2tune.participant.passes import Answered

SEEDS = range(4)


def case(seed: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, what is wanted, and a weight for each position."""
    generator = torch.Generator().manual_seed(seed)
    positions, vocabulary = 5 + 3 * seed, 11 + 7 * seed
    logits = (8 * torch.randn(positions, vocabulary, generator=generator)).to(dtype)
    wanted = torch.randint(0, vocabulary, (positions,), generator=generator)
    return logits, wanted, torch.rand(positions, generator=generator)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("at_once", [1, 30, 1 << 22])
def test_losses_and_gradients_are_those_of_the_formula(
    seed: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """-log softmax(x)[y], and its gradient softmax(x) - 1[y], in double precision."""
    monkeypatch.setattr(room, "AT_ONCE", at_once)
    logits, wanted, weights = case(seed)
    logits.requires_grad_(True)
    found = losses(logits, wanted)
    (gradient,) = torch.autograd.grad(found @ weights, logits)
    shares = logits.detach().double().softmax(-1)
    rows = torch.arange(len(wanted))
    torch.testing.assert_close(found.detach().double(), -shares[rows, wanted].log(), rtol=1e-5, atol=1e-6)
    shares[rows, wanted] -= 1
    torch.testing.assert_close(gradient.double(), shares * weights[:, None].double(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_logits_are_worked_out_in_float32(seed: int, dtype: torch.dtype) -> None:
    logits, wanted, weights = case(seed, dtype)
    logits.requires_grad_(True)
    found = losses(logits, wanted)
    (gradient,) = torch.autograd.grad(found @ weights, logits)
    assert found.dtype == torch.float32 and gradient.dtype == dtype
    wide = logits.detach().float().requires_grad_(True)
    known = cross_entropy(wide, wanted, reduction="none")
    (wanted_gradient,) = torch.autograd.grad(known @ weights, wide)
    assert torch.equal(found, known)
    torch.testing.assert_close(gradient, wanted_gradient.to(dtype))


def test_how_many_positions_are_worked_out_together_changes_no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, wanted, _ = case(3)
    whole = losses(logits, wanted)
    monkeypatch.setattr(room, "AT_ONCE", 1)
    assert torch.equal(losses(logits, wanted), whole)


def test_nothing_asked_is_no_number_and_no_error() -> None:
    none = Answered(torch.zeros(0, 7, requires_grad=True), torch.zeros(0, dtype=torch.long))
    assert none.losses.shape == (0,) and torch.isnan(none.loss)


def test_the_loss_makes_nothing_as_large_as_the_logits_beside_their_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "AT_ONCE", 1000)
    logits = torch.randn(400, 500, dtype=torch.bfloat16, requires_grad=True)
    wanted = torch.zeros(400, dtype=torch.long)
    with torch.profiler.profile(profile_memory=True) as profile:
        losses(logits, wanted).mean().backward()
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert largest <= 2 * logits.numel() + 64  # the gradient, two bytes each
