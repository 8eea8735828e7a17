"""The formulas against independent statements of them."""

from __future__ import annotations

import math

import pytest
import torch

from h2tune.vertical import fuse, gate, priors, prototypes, select
from h2tune.vertical.transport_cost import objective, transport


def random_cost(n: int = 7, classes: int = 4, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(n, classes, generator=generator, dtype=torch.float64)


PRIOR = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)


def test_exact_masses_are_met():
    plan = transport(random_cost(), PRIOR, rho=math.inf, iterations=200)
    assert (plan.mass.sum(0) - PRIOR).abs().max() < 1e-9
    assert (plan.mass.sum(1) - 1 / 7).abs().max() < 1e-9
    assert torch.allclose(plan.posterior.sum(1), torch.ones(7, dtype=torch.float64))


def test_two_by_two_is_the_root_of_the_odds_ratio_quadratic():
    cost = torch.tensor([[0.3, 1.1], [0.9, 0.2]], dtype=torch.float64)
    prior = torch.tensor([0.3, 0.7], dtype=torch.float64)
    found = transport(cost, prior, eps=0.5, rho=math.inf, iterations=500).mass[0, 0].item()
    odds = math.exp(-(0.3 + 0.2 - 1.1 - 0.9) / 0.5)
    # x (1 - 1/2 - 0.3 + x) = odds (1/2 - x) (0.3 - x)
    a, b, c = 1 - odds, 0.2 + odds * 0.8, -odds * 0.15
    roots = [(-b + sign * math.sqrt(b * b - 4 * a * c)) / (2 * a) for sign in (1, -1)]
    assert min(abs(found - root) for root in roots) < 1e-9
    assert 0 < found < 0.3


def test_free_masses_are_the_posterior_with_the_prior():
    cost = random_cost()
    expected = (PRIOR * torch.exp(-cost)) / (PRIOR * torch.exp(-cost)).sum(1, keepdim=True)
    assert torch.allclose(transport(cost, PRIOR, rho=0.0).posterior, expected)
    uniform = torch.full((4,), 0.25, dtype=torch.float64)
    assert torch.allclose(transport(cost, uniform, rho=0.0).posterior, (-cost).softmax(1))


def test_the_plan_minimises_the_objective():
    cost = random_cost()
    best = transport(cost, PRIOR, iterations=300).mass
    value = objective(best, cost, PRIOR)
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        step = 1e-3 * torch.rand(best.shape, generator=generator, dtype=torch.float64) * best
        other = best + step - step.sum(1, keepdim=True) * best / best.sum(1, keepdim=True)
        assert objective(other, cost, PRIOR) >= value


@pytest.mark.parametrize("rho", [1.0, math.inf])
def test_the_gradient_with_respect_to_costs_is_the_plan(rho: float):
    cost, step = random_cost(), 1e-5
    plan = transport(cost, PRIOR, rho=rho, iterations=400).mass
    for i, c in ((0, 0), (3, 2), (6, 1)):
        moved = torch.zeros_like(cost)
        moved[i, c] = step
        up, down = (
            objective(transport(m, PRIOR, rho=rho, iterations=400).mass, m, PRIOR, rho=rho)
            for m in (cost + moved, cost - moved)
        )
        assert (up - down) / (2 * step) == pytest.approx(plan[i, c].item(), abs=1e-6)


def test_thirty_iterations_are_enough():
    plan = transport(random_cost(50), PRIOR, rho=math.inf)
    assert (plan.mass.sum(0) - PRIOR).abs().max() < 1e-6


def test_a_class_without_prototype_receives_nothing():
    cost = random_cost()
    cost[:, 2] = math.inf
    for prior in (PRIOR, torch.tensor([0.5, 0.3, 0.0, 0.2], dtype=torch.float64)):
        plan = transport(cost, prior)
        assert plan.mass[:, 2].abs().max() == 0
        assert torch.allclose(plan.mass.sum(1), torch.full((7,), 1 / 7, dtype=torch.float64))
        assert plan.cost.isfinite().all()


def test_em_finds_planted_shares():
    generator = torch.Generator().manual_seed(0)
    planted = torch.tensor([0.7, 0.2, 0.1])
    labels = torch.multinomial(planted, 3000, replacement=True, generator=generator)
    x = labels.float()[:, None] * 4 + torch.randn(3000, 1, generator=generator)
    log_p = (-((x - torch.tensor([0.0, 4.0, 8.0])) ** 2) / 2).log_softmax(1)
    found = priors.em_prior(log_p, torch.ones(3))
    assert (found - planted).abs().max() < 0.03
    assert (log_p.argmax(1).bincount() / 3000 - planted).abs().max() > 0.005
    # A second statement of the rule: weigh by the prior, normalise, average.
    weighted = log_p.exp() / 3
    expected = (weighted / weighted.sum(1, keepdim=True)).mean(0)
    assert torch.allclose(priors.em_prior(log_p, torch.ones(3), steps=1), expected, atol=1e-6)


def test_pooled_shares_keep_every_class_possible():
    pooled = priors.global_prior(torch.tensor([3.0, 0.0]), [(6, torch.tensor([1.0, 0.0]))])
    assert torch.allclose(pooled, torch.tensor([10 / 11, 1 / 11]))


def test_the_weight_of_the_local_prior():
    assert priors.mixing_weight(50, 14, 15) == 0
    assert priors.mixing_weight(50, 15, 15) == pytest.approx(0.5 * (1 - math.exp(-0.1)))
    assert priors.mixing_weight(10**9, 10**4, 15) == pytest.approx(1.0)


def test_means_of_parts_are_the_mean_of_the_whole():
    generator = torch.Generator().manual_seed(0)
    h = torch.nn.functional.normalize(torch.randn(20, 3, generator=generator), dim=1)
    q = torch.rand(20, 2, generator=generator)
    whole, mass = prototypes.class_means(h, q)
    raw = [(q[s].T @ h[s], q[s].sum(0)) for s in (slice(0, 8), slice(8, 20))]
    # `merge` weighs unit means by masses: equal to the whole's only in direction of the masses' sum.
    parts = [prototypes.class_means(h[s], q[s]) for s in (slice(0, 8), slice(8, 20))]
    merged = prototypes.merge([m for m, _ in parts], [n for _, n in parts])
    expected = sum(n[:, None] * s / s.norm(dim=1, keepdim=True) for s, n in raw)
    assert torch.allclose(merged, expected / expected.norm(dim=1, keepdim=True))
    assert torch.allclose(mass, q.sum(0)) and torch.allclose(whole.norm(dim=1), torch.ones(2))


def test_identical_parties_have_equal_means():
    h = torch.nn.functional.normalize(torch.arange(12.0).reshape(4, 3), dim=1)
    q = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    one, mass = prototypes.class_means(h, q)
    assert torch.allclose(prototypes.merge([one, one], [mass, mass]), one)


def test_an_unseen_row_starts_at_the_mean_length_of_the_seen():
    nu = torch.tensor([[3.0, 0.0], [0.0, 5.0], [9.0, 9.0]])
    mu = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    seen = torch.tensor([True, True, False])
    found = prototypes.from_means(nu, mu, ~seen, seen)
    assert torch.allclose(found, torch.tensor([[3.0, 0.0], [0.0, 5.0], [2.4, 3.2]]))
    assert torch.equal(prototypes.from_means(nu, torch.zeros(3, 2), ~seen, seen), nu)


def test_relations_are_shares_of_the_known_others():
    mu = torch.tensor([[1.0, 0.0], [0.9, math.sqrt(1 - 0.81)], [0.0, 1.0]])
    known = torch.tensor([False, True, True])
    found = prototypes.relations(mu, known)
    assert torch.allclose(found.sum(1), torch.ones(3)) and found.diagonal().abs().max() == 0
    odds = math.exp((0.9 - 0.0) / prototypes.TEMPERATURE)
    assert found[0, 1].item() == pytest.approx(odds / (1 + odds))


def test_descriptions_recover_a_linear_map():
    generator = torch.Generator().manual_seed(0)
    vectors = 50 * torch.randn(8, 3, generator=generator)
    nu = vectors @ torch.randn(3, 4, generator=generator) + 1
    seen = torch.arange(8) < 7
    found = prototypes.from_descriptions(torch.where(seen[:, None], nu, 0.0), vectors, seen)
    assert torch.allclose(found[7], nu[7], rtol=1e-2, atol=0.1)
    assert torch.equal(found[:7], nu[:7])


def test_selection_keeps_the_cheapest_of_every_class():
    cost = torch.tensor([5.0, 1.0, 3.0, 0.5, 9.0])
    predicted = torch.tensor([0, 0, 0, 1, 1])
    assert select.cheapest(cost, predicted, 0.4).tolist() == [False, True, False, True, False]
    assert select.kept_share(15, 15) == pytest.approx(0.2)
    assert select.kept_share(30, 15) == pytest.approx(0.5)
    assert select.kept_share(999, 15) == pytest.approx(0.8)


def test_soft_selection_tends_to_the_hard_one():
    cost = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])
    found = select.soft_weights(cost, 0.5, temperature=1e-3)
    assert torch.allclose(found, torch.tensor([1.0, 1.0, 0.5, 0.0, 0.0]))


def test_agreement_is_between_two_ways_of_naming():
    logits = torch.tensor([[2.0, 1.0], [2.0, 1.0]])
    h = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert select.agreement(logits, h, torch.eye(2)).tolist() == [True, False]
    without_second = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    assert select.agreement(logits, h, without_second).tolist() == [True, True]


def test_gate_weights_are_shares_of_those_present():
    counts = torch.tensor([[100.0, 0.0], [5.0, 20.0], [5.0, 20.0]])
    present = torch.tensor([[True, True, True], [True, False, True]])
    found = gate.weights(torch.zeros(2, 3), gate.coverage(counts), present)
    assert torch.allclose(found.sum(1), torch.ones(2, 2))
    assert found[1, 1].abs().max() == 0
    a, b = 100 / 105, 0.5
    assert found[0, 0, 0].item() == pytest.approx(a / (a + 2 * b), rel=1e-5)
    assert found[0, 0, 1].item() < 2e-6


def test_an_untrained_gate_treats_parties_alike():
    module = gate.Gate(3, 4)
    z = [torch.randn(5, 4) for _ in range(3)]
    assert module(z, torch.randn(5, 3, 2)).abs().max() == 0


def test_one_party_alone_is_its_own_classifier():
    z, nu = [torch.randn(6, 4), torch.randn(6, 4)], torch.randn(2, 3, 4)
    logits = fuse.view_logits(z, nu)
    present = torch.tensor([False, True]).expand(6, 2)
    weights = gate.weights(torch.zeros(6, 2), gate.coverage(torch.rand(2, 3)), present)
    assert torch.allclose(fuse.fused(logits, weights, torch.zeros(3)), 2 * z[1] @ nu[1].T, atol=1e-6)


def test_a_class_of_no_share_is_outside_the_softmax():
    logits = torch.tensor([[1.0, 2.0, 50.0]], requires_grad=True)
    value = fuse.loss(logits, torch.tensor([0]), torch.tensor([0.5, 0.5, 0.0])).sum()
    value.backward()
    assert value.item() == pytest.approx(math.log(1 + math.e), rel=1e-5)
    assert logits.grad is not None and logits.grad[0, 2] == 0


def test_the_loss_of_flipped_labels_is_least_at_the_true_shares():
    truth, flip = torch.tensor([[0.8, 0.2]]), torch.tensor([[0.7, 0.3], [0.3, 0.7]])
    target = truth @ flip
    uniform = torch.tensor([0.5, 0.5])
    at_truth = fuse.loss(truth.log(), target, uniform, flip)
    for other in (0.6, 0.74, 0.9):
        assert fuse.loss(torch.tensor([[other, 1 - other]]).log(), target, uniform, flip) > at_truth
