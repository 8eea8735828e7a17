"""What the method is for: unseen classes, absent parties, the best round, and how fast the two levels converge."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
from vertical.recorder import recorded
from vertical.tables import PARTIES, config, planted

from h2tune.vertical import local_round
from h2tune.vertical.bilevel import gradient, lower, mean_squared_gradient, upper
from h2tune.vertical.bilevel import planted as planted_levels
from h2tune.vertical.config import MethodConfig
from h2tune.vertical.encoder import make_encoder
from h2tune.vertical.evaluation import test_labels as true_labels
from h2tune.vertical.evaluation import views
from h2tune.vertical.federation import fit, load_parties, run
from h2tune.vertical.fuse import view_logits
from h2tune.vertical.methods import METHODS
from h2tune.vertical.methods.base import configure
from h2tune.vertical.prototypes import relations
from h2tune.vertical.trial import evaluate

UNSEEN = {"rounds": 60, "method": {"warmup": 15}, "training": {"dim": 16, "hidden": 32}}


def trained(frames, **changes):
    settings = config(unseen=3, **(UNSEEN | changes))
    return fit(settings, load_parties(settings, frames))


def easy(seed: int = 0):
    return planted(seed=seed, unseen=3, spread=0.35, aligned=120, alone=200)


def test_a_class_that_only_a_passive_party_knows_is_predicted():
    found = trained(easy()).history[-1]["test"]
    assert found["unseen"] >= 0.9 and found["seen"] >= 0.9
    assert found["harmonic"] == pytest.approx(2 * found["unseen"] * found["seen"] / (found["unseen"] + found["seen"]))


def test_a_class_is_not_named_for_a_row_that_nobody_who_knows_it_has():
    active = trained(easy(), rounds=17)
    z = views(active, "test")
    without = torch.tensor([True, False, True]).expand(len(z[0]), 3)  # `clinic` alone has seen class 3
    p = active.top.probabilities(z, without)
    assert p[:, 3].abs().max() == 0 and torch.allclose(p.sum(1), torch.ones(len(p)))
    assert active.top.probabilities(z, torch.ones_like(without))[:, 3].max() > 0.5


def test_without_coverage_the_views_that_do_not_know_it_drown_it():
    off = {"gate": "mean", "missing": "coverage"}
    mean = trained(easy(), method=UNSEEN["method"] | off).history[-1]["test"]
    assert mean["unseen"] < 0.9


def test_a_view_that_has_not_seen_a_class_has_no_evidence_for_it():
    active = trained(easy(), rounds=17)
    top, z = active.top, views(active, "test")
    everyone = torch.ones(len(z[0]), 3, dtype=torch.bool)
    logits = view_logits(z, top.nu)
    assert (top.counts > 0.5).tolist() == [[True, True, True, False], [True] * 4, [True, True, True, False]]
    filled, counts = top._completed(logits, top.counts, everyone)
    known = logits[:, :, :3].logsumexp(2) - math.log(3)
    evidence = logits[:, 1, 3] - (logits[:, 1].logsumexp(1) - math.log(4))
    assert torch.equal(filled[:, :, :3], logits[:, :, :3]) and torch.equal(filled[:, 1], logits[:, 1])
    for k in (0, 2):
        assert torch.allclose(filled[:, k, 3], known[:, k] + 0.5 * evidence, atol=1e-4)
    assert bool((counts[:, 3] == top.counts[1, 3]).all())
    # The scores of a view may be moved by any amount: what they say of one class against another stays the same.
    offset = torch.tensor([5.0, -3.0, 2.0])[None, :, None]
    moved, _ = top._completed(logits + offset, top.counts, everyone)
    assert torch.allclose(moved - offset, filled, atol=1e-4)
    # Without the party that has seen it, nobody has evidence.
    without = torch.tensor([True, False, True]).expand(len(z[0]), 3)
    assert torch.allclose(top._completed(logits, top.counts, without)[0][:, 0, 3], known[:, 0], atol=1e-4)


def test_the_relation_of_classes_stands_in_for_views_that_have_not_seen_one():
    active = trained(easy(2), method=UNSEEN["method"] | {"missing": "relation"})
    assert active.history[-1]["test"]["unseen"] > 0.3
    top, logits = active.top, torch.randn(5, 3, 4)
    filled, counts = top._related(logits, top.counts)
    knows = top.counts > 0.5
    assert torch.equal(filled[:, knows], logits[:, knows])
    assert bool((counts[:, 3] > 0).all())
    like = relations(top.mu[1], knows[1])[3]  # `clinic` alone has seen class 3, and says what it is like
    for k in (0, 2):
        assert torch.allclose(filled[:, k, 3], logits[:, k] @ like, atol=1e-5)


def test_a_described_class_is_placed_by_its_vector(tmp_path):
    vectors = pd.DataFrame(
        {"class": [f"class-{c}" for c in range(4)], "a": [0.0, 1.0, 2.0, 3.0], "b": [1.0, 0.0, 1.0, 0.0]}
    )
    vectors.to_csv(tmp_path / "vectors.csv", index=False)
    settings = config(
        method={"warmup": 2, "unseen": "described"},
        label={
            "party": "bank",
            "column": "kind",
            "classes": [f"class-{c}" for c in range(4)],
            "vectors": str(tmp_path / "vectors.csv"),
        },
    )
    frames = planted(unseen=3)
    frames["clinic"] = (frames["clinic"][0].drop(columns="code"), frames["clinic"][1])
    active = fit(settings, load_parties(settings, frames))
    nu, counts = active.top._described()
    assert bool((counts[:, 3] > 0).all()) and active.labels.unseen == [3]
    assert not torch.equal(nu[:, 3], active.top.nu[:, 3]) and torch.equal(nu[:, :3], active.top.nu[:, :3])


def test_a_class_that_nobody_names_is_found_by_elimination():
    settings = config(**(UNSEEN | {"method": {"warmup": 15, "unseen": "nameless"}, "rounds": 40}))
    frames = easy(1)
    frames = frames | {"clinic": (frames["clinic"][0].drop(columns="code"), frames["clinic"][1])}
    active = fit(settings, load_parties(settings, frames))
    assert active.top.counts[1:, 3].sum() > 0 and active.history[-1]["test"]["unseen"] > 0.7
    assert bool(active.top.possible(torch.ones(1, 3, dtype=torch.bool))[0, 3])


def test_any_subset_of_parties_predicts_and_one_alone_is_its_view():
    settings = config(rounds=20)
    active = fit(settings, load_parties(settings, planted()))
    z, labels = views(active, "test"), true_labels(active)
    right = []
    for here in ([True, True, True], [True, False, False], [False, True, False], [False, True, True]):
        present = torch.tensor(here).expand(len(labels), 3)
        scores = active.top.scores(z, present)
        right.append(float((scores.argmax(1) == labels).float().mean()))
        if sum(here) == 1:
            k = here.index(True)
            expected = 3 * z[k] @ active.top.nu[k].T + active.top.bias
            assert torch.allclose(scores, expected, atol=1e-4)
    assert right[0] >= max(right[1:]) and min(right) > 0.4


def test_the_best_round_by_validation_is_kept(tmp_path):
    settings = config(rounds=9, evaluation={"every": 3, "validation": 0.3})
    metrics = run(settings, tmp_path / "run", frames=planted())
    scores = {r["round"]: r["validation"]["balanced"] for r in metrics["history"] if "validation" in r}
    assert set(scores) == {3, 6, 9}
    assert metrics["best"] == max(scores, key=lambda number: (scores[number], number))
    assert metrics["validation"]["balanced"] == pytest.approx(max(scores.values()))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_best_round_is_the_result_alone_and_in_a_comparison_too(tmp_path, seed: int):
    settings = config(rounds=6, seed=seed, evaluation={"every": 1, "validation": 0.3})
    frames = planted(seed=seed, spread=2.0)
    data = load_parties(settings, frames)
    metrics = run(settings, tmp_path / "run", frames=frames)
    assert evaluate(settings, METHODS[settings.method.name], data) == metrics["final"]
    alone = fit(configure(settings, METHODS["local"]), {"bank": data["bank"]})
    best = next(record for record in alone.history if record["round"] == alone.best)
    assert metrics["alone"] == best["test"]


def test_no_label_of_a_validation_row_is_trained_on():
    settings = config(rounds=2, evaluation={"validation": 0.5})
    data = load_parties(settings, planted())
    active = fit(settings, data)
    assert active.labels.aligned_counts[0].sum() == 40 and len(active.labels.validation) == 40
    for rows, same in ((active.labels.validation, True), (torch.nonzero(active.labels.trained)[:, 0], False)):
        names = list(data["bank"].train.labels)
        for row in active.meeting.rows[rows].tolist():
            names[row] = "class-0" if names[row] != "class-0" else "class-1"
        other = fit(settings, data | {"bank": replace(data["bank"], train=replace(data["bank"].train, labels=names))})
        assert torch.equal(active.encoder[0].weight, other.encoder[0].weight) == same


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_learns_something(name: str):
    settings = config(rounds=15)
    found = evaluate(settings, METHODS[name], load_parties(settings, planted()))
    assert found["balanced"] > 0.5


def test_methods_that_cannot_know_a_class_never_name_it():
    settings = config(unseen=3, **(UNSEEN | {"rounds": 8}))
    data = load_parties(settings, easy())
    for name in ("splitnn", "fedhssl", "fedcvt", "local"):
        assert evaluate(settings, METHODS[name], data)["unseen"] == 0


def test_a_learned_gate_and_a_network_on_top_train():
    settings = config(method={"gate": "learned", "top": "mlp", "ct": 0.5, "select": "soft"})
    active = fit(settings, load_parties(settings, planted()))
    assert active.top.gate is not None and active.top.gate.outer.abs().max() > 0
    assert active.history[-1]["test"]["balanced"] > 0.4


def test_a_declared_prior_holds_the_shares(tmp_path):
    shares = {"class-0": 0.7, "class-1": 0.1, "class-2": 0.1, "class-3": 0.1}
    parties = [{"name": n, "train": "-", "test": "-"} | ({"prior": shares} if n == "shop" else {}) for n in PARTIES]
    settings = config(rounds=4, parties=parties)
    federation, recorders = recorded(settings, planted())
    federation.run()
    assert recorders["shop"].messages("local")[-1].payload.tensors["prior"] == pytest.approx(
        [0.7, 0.1, 0.1, 0.1], abs=0.01
    )


def test_a_declared_prior_of_classes_without_prototypes_is_not_used():
    z, nu = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.eye(3, 4)
    mu = torch.cat([torch.eye(2, 4), torch.zeros(1, 4)])  # the third class has no prototype yet
    labels, pooled, options = torch.full((6,), -1), torch.full((3,), 1 / 3), MethodConfig(warmup=1)
    found = local_round.assign(z, labels, nu, mu, pooled, 2, options, torch.tensor([0.0, 0.0, 1.0]))
    undeclared = local_round.assign(z, labels, nu, mu, pooled, 2, options)
    assert torch.equal(found.targets, undeclared.targets) and torch.equal(found.shares, undeclared.shares)
    assert found.shares.isfinite().all()


def test_the_exact_hypergradient_is_the_derivative():
    problem = planted_levels(0)
    weights = 0.3 * torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    double = type(problem)(problem.x.double(), problem.y, problem.free.double(), problem.anchors.double())
    rows, w = torch.arange(len(problem.y)), weights.double()
    found = gradient(w, double, rows, exact=True)
    step = torch.zeros_like(w)
    step[2, 1] = 1e-6
    values = [upper(w + sign * step, lower(w + sign * step, double), double, rows) for sign in (1, -1)]
    assert (values[0] - values[1]).item() / 2e-6 == pytest.approx(found[2, 1].item(), rel=1e-4)
    assert not torch.allclose(gradient(w, double, rows, exact=False), found)


def test_the_federation_differentiates_through_its_class_means_on_request():
    generator = torch.Generator().manual_seed(0)
    encoder = make_encoder(4, 8, 3, seed=0).double()
    x, mu = (torch.randn(n, w, generator=generator, dtype=torch.float64) for n, w in ((12, 4), (2, 3)))
    targets = torch.rand(12, 2, generator=generator, dtype=torch.float64)
    weights, shares = torch.ones(12, dtype=torch.float64), torch.full((2,), 0.5, dtype=torch.float64)

    def value(fixed: torch.Tensor | None = None) -> torch.Tensor:
        means = local_round._means_of(encoder, x, targets, weights, mu) if fixed is None else fixed
        return local_round.two_way(encoder(x), means, shares)

    held = local_round._means_of(encoder, x, targets, weights, mu).detach()
    weight = encoder[0].weight
    exact, first = (torch.autograd.grad(v, weight)[0][0, 1].item() for v in (value(), value(held)))
    found = []
    with torch.no_grad():
        for step in (1e-6, -2e-6):
            weight[0, 1] += step
            found.append(value().item())
    assert (found[0] - found[1]) / 2e-6 == pytest.approx(exact, rel=1e-4)
    assert abs(exact - first) > 1e-4
    one, two = (
        fit(c, load_parties(c, planted()))
        for c in (config(method={"warmup": 2, "ct": 0.5, "hypergradient": h}) for h in ("first order", "exact"))
    )
    assert not torch.equal(one.top.nu, two.top.nu) and two.history[-1]["test"]["balanced"] > 0.5


def test_the_mean_squared_gradient_falls_as_one_over_the_root_of_steps():
    values = {steps: mean_squared_gradient(planted_levels(0), steps, exact=True) for steps in (100, 400)}
    assert math.log(values[400] / values[100]) / math.log(4) <= -0.45
