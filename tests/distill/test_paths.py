"""Sums over paths and the contrastive loss, against independent statements."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from distill.lada_federation import lada
from federations import build
from torch.nn.functional import cross_entropy

from h2tune.distill.paths import contrast, path_sums, rate_of_learning, score_paths, targets
from h2tune.distill.phase import Lesson, lesson_loss
from h2tune.distill.settings import LadaSettings
from h2tune.participant.base_models import ModelPool
from h2tune.participant.batches import collate
from h2tune.participant.passes import PLAIN, Passes
from h2tune.participant.prefix import Prefix
from h2tune.participant.state_cache import StateCache
from h2tune.tasks.example import Example
from h2tune.tasks.prompts import encode

TEXTS = [("Problem: Ann has 3 nuts.\nAnswer:", " 3"), ("Two and two", " make four, and so on."), ("a", " 1234567890")]


@pytest.fixture(scope="module", params=["zoo:gpt2", "zoo:llama"])
def loaded(request: pytest.FixtureRequest):
    return ModelPool("cpu").get(request.param)


def rows(loaded):
    return encode([Example(p, a, "") for p, a in TEXTS], loaded.tokenizer, max_length=256)


def test_a_path_sum_is_the_summed_cross_entropy_with_the_end_whatever_padding_and_batch(loaded) -> None:
    for row, size in [(row, size) for row in rows(loaded) for size in (1, 3)]:
        ids, labels = torch.tensor([row.input_ids]), torch.tensor(row.labels)
        logits = loaded.model(input_ids=ids).logits[0, :-1].double()
        asked = labels[1:] != -100
        expected = -float(cross_entropy(logits[asked], labels[1:][asked], reduction="sum"))
        found = score_paths(loaded.model, rows(loaded), loaded.tokenizer.pad_token_id, size)
        own = found[rows(loaded).index(row)]
        assert own.logp == pytest.approx(expected, rel=1e-5) and own.tokens == int(asked.sum())
        assert row.labels[-1] == loaded.tokenizer.eos_token_id
        p = logits[asked].softmax(-1)
        brier = float(((p - torch.nn.functional.one_hot(labels[1:][asked], p.shape[-1])) ** 2).sum())
        assert own.rho == pytest.approx(brier / -expected, rel=1e-4)
        assert own.brier == pytest.approx(brier, rel=1e-4)
    batch = collate(rows(loaded), loaded.tokenizer.pad_token_id)
    scored = [score.logp for score in score_paths(loaded.model, rows(loaded), loaded.tokenizer.pad_token_id, 2)]
    assert path_sums(loaded.model, batch).tolist() == pytest.approx(scored, rel=1e-5)


def test_a_path_read_from_the_cached_prefix_has_the_same_sums_and_gradients(loaded) -> None:
    layout, cache = loaded.layout.top(0.5), StateCache(1 << 30)
    assert layout.first > 0
    pad, passes = loaded.tokenizer.pad_token_id, Passes(Prefix(loaded.model, layout, loaded.fingerprint, cache))
    plain, cached = (score_paths(loaded.model, rows(loaded), pad, 2, how) for how in (PLAIN, passes))
    for one, other in zip(plain, cached, strict=True):
        assert (other.logp, other.brier) == pytest.approx((one.logp, one.brier), rel=1e-5)
    weight = loaded.model.get_submodule(layout.targets[0]).weight.requires_grad_(True)
    gradients = []
    for how in (PLAIN, passes):
        sums = path_sums(loaded.model, collate(rows(loaded), pad), how)
        gradients.append(torch.autograd.grad(sums.square().sum(), weight)[0])
    weight.requires_grad_(False)
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-5 * float(gradients[0].abs().max()))


def test_paths_that_were_read_before_are_read_from_the_cached_prefix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, clients = build(lada(blocks=0.5), tmp_path)
    server.open()
    reasoner, computed = clients["s1"].method.reasoner, []
    real = Prefix._run
    monkeypatch.setattr(Prefix, "_run", lambda self, ids: (computed.append(ids), real(self, ids))[1])
    paths = [example.answer for example in reasoner.questions.examples[:4]]
    first = reasoner.scored(range(4), paths)
    assert len(computed) == 4  # each text once
    assert reasoner.scored(range(4), paths) == first and len(computed) == 4


def test_the_speed_of_learning_on_single_tokens() -> None:
    p = torch.tensor([1e-12, 0.28, 1 - 1e-6], dtype=torch.float64)
    found = rate_of_learning(p)
    assert found[0] < 0.04 and found[1] == pytest.approx(0.4073, abs=1e-3) and found[2] < 1e-5
    two = torch.tensor([0.3, 0.6], dtype=torch.float64)  # two tokens of a path, the rest spread thin
    whole = ((1 - two) ** 2).sum() / -two.log().sum()
    assert float(whole) == pytest.approx(((0.7**2) + (0.4**2)) / (-math.log(0.3) - math.log(0.6)))


def kl(q: np.ndarray, p: np.ndarray) -> float:
    return float(sum(a * math.log(a / b) for a, b in zip(q, p, strict=True) if a > 0))


@pytest.mark.parametrize("margin", [math.inf, 3.0, 0.5])
def test_two_paths_are_the_pair_loss_or_with_a_margin_label_smoothed(margin: float) -> None:
    beta, delta = 0.7, torch.tensor([1.5, -0.5], dtype=torch.float64)
    q = targets([-4.0, None], [10, 12], margin=margin, tau=1.0, gamma=0.0)
    share = 1 / (1 + math.exp(-margin))
    assert q.tolist() == pytest.approx([share, 1 - share])
    won = 1 / (1 + math.exp(-beta * 2.0))
    found = float(contrast(delta, q, beta))
    if math.isinf(margin):
        assert found == pytest.approx(-math.log(won))
    assert found == pytest.approx(kl(np.asarray([share, 1 - share]), np.asarray([won, 1 - won])))


def test_a_finite_margin_asks_for_no_more_than_margin_over_beta() -> None:
    q = targets([-1.0, None], [5, 5], margin=3.0, tau=1.0, gamma=0.0)
    at = torch.tensor([30.0, 0.0], dtype=torch.float64, requires_grad=True)
    contrast(at, q, 0.1).backward()
    assert at.grad is not None and at.grad.abs().max() < 1e-12  # Delta+ - Delta- = M / beta is what is wanted


def test_the_gradient_is_beta_times_p_less_q_and_sums_to_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    s = torch.randn(4, generator=generator, dtype=torch.float64, requires_grad=True)
    q = targets([-3.0, -5.0, None, None], [20, 30, 25, 10], margin=2.0, tau=1.5, gamma=0.5)
    sizes, beta = torch.tensor([20.0, 30.0, 25.0, 10.0], dtype=torch.float64), 0.3
    contrast(s / sizes**0.5, q, beta).backward()
    p = (beta * s.detach() / sizes**0.5).softmax(-1)
    assert torch.allclose(s.grad, beta * sizes**-0.5 * (p - q), atol=1e-10)
    assert float((s.grad * sizes**0.5).sum()) == pytest.approx(0, abs=1e-10)


def test_there_is_no_gradient_at_the_start_without_preference() -> None:
    s = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    q = targets([-3.0, -9.0, None], [5, 5, 5], margin=0.0, tau=math.inf, gamma=0.0)
    contrast(s, q, 0.4).backward()
    assert torch.equal(s.grad, torch.zeros(3, dtype=torch.float64))


def test_two_teacher_paths_are_learnt_at_their_relative_likelihood() -> None:
    q = targets([-2.0, -2.0 - math.log(3)], [5, 5], margin=3.0, tau=1.0, gamma=0.0)
    assert q.tolist() == pytest.approx([0.75, 0.25])


def settings(**changes) -> LadaSettings:
    return LadaSettings(**({"teacher": "t"} | changes))


def lesson(references: tuple[float, ...], tokens: tuple[int, ...], margin: float = 3.0) -> Lesson:
    count = len(references)
    q = targets([-1.0, *[None] * (count - 1)], [9] * count, margin=margin, tau=1.0, gamma=0.0)
    return Lesson(0, (None,) * count, 1, (9,) * count, tokens, q, references)


def test_without_contrast_a_lesson_is_fine_tuning_on_the_path() -> None:
    sums = torch.tensor([-6.0, -4.0], requires_grad=True)
    loss, _ = lesson_loss(sums, lesson((-7.0, -4.0), (3, 2)), settings(contrast=0.0))
    loss.backward()
    assert float(loss) == pytest.approx(2.0) and sums.grad.tolist() == pytest.approx([-1 / 3, 0])


def test_a_lesson_starts_at_one_half_for_the_bandit() -> None:
    _, move = lesson_loss(torch.tensor([-7.0, -4.0]), lesson((-7.0, -4.0), (3, 2)), settings())
    assert move == 0.5
    assert lesson_loss(torch.tensor([-7.0]), lesson((-7.0,), (3,)), settings())[1] is None


@pytest.mark.parametrize("margin", [3.0, math.inf])
@pytest.mark.parametrize("sums", [(-1e4, -1.0), (-1.0, -1e4), (-2e4, -2e4)])
def test_extreme_sums_give_finite_losses_and_gradients(sums: tuple[float, float], margin: float) -> None:
    for references in ((-1.0, -1e4), (-1e4, -1.0)):
        s = torch.tensor(sums, requires_grad=True)
        loss, _ = lesson_loss(s, lesson(references, (400, 400), margin), settings(beta=1.0))
        loss.backward()
        assert torch.isfinite(loss) and torch.isfinite(s.grad).all()


def test_one_path_has_nothing_to_contrast() -> None:
    s = torch.tensor([-5.0], requires_grad=True)
    loss, _ = lesson_loss(s, lesson((-5.0,), (5,)), settings(anchor=0.0))
    assert float(loss) == 0
