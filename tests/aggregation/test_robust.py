"""Robust rules against plain NumPy, and what bad clients can and cannot do to them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from torch import Tensor

from h2tune.aggregation.robust import Robust, Rule, in_usual_unit, rule_of
from h2tune.core.client_core import CoreShape

SHAPE = CoreShape(2, 2, ("q", "k"))
SIZE = (2, 2, 2, 2)
RULES = (
    Rule("median"),
    Rule("trimmed", trim=0.3),
    Rule("krum"),
    Rule("multi-krum"),
    Rule("closest"),
    Rule("agreeing"),
    Rule("bounded"),
    Rule("bounded", radius=0.5),
)
Update = tuple[Tensor, Tensor]


def mean_of(rule: Rule, updates: list[Update], before: Tensor, names: list[int] | None = None) -> Tensor:
    total = started(rule, before)
    for name in names or range(len(updates)):
        total.fold(f"c{name:02d}", *updates[name], 1)
    result = total.result()
    assert not total.notices
    return result


def unread(client: str, tensors: Any) -> Update:
    raise AssertionError("these tests fold cores in directly")


def started(rule: Rule, before: Tensor) -> Robust:
    total = Robust(unread, rule)
    total.start(before, {})
    return total


def draw_updates(seed: int, count: int, share: float = 1.0) -> list[Update]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(SIZE, generator=generator), torch.rand(SIZE, generator=generator) < share) for _ in range(count)
    ]


@st.composite
def rounds(draw: DrawFn, least: int = 5) -> list[Update]:
    return draw_updates(
        draw(st.integers(0, 9999)), draw(st.integers(least, 9)), draw(st.sampled_from([0.2, 0.7, 1.0]))
    )


BEFORE = torch.linspace(-1, 1, 16).view(SIZE)


def at_each_entry(updates: list[Update], formula: object) -> np.ndarray:
    """A rule for the covered values of one entry, applied to all; the core where nobody covers."""
    wanted = BEFORE.numpy().copy()
    for place in np.ndindex(SIZE):
        values = [float(core[place]) for core, held in updates if held[place]]
        if len(values) == 2:
            values.append(float(BEFORE[place]))
        if values:
            wanted[place] = formula(np.sort(values))  # type: ignore[operator]
    return wanted


@given(rounds(3))
def test_median_and_trimmed_mean_equal_numpy(updates: list[Update]) -> None:
    def trimmed(values: np.ndarray) -> float:
        cut = min(math.ceil(0.3 * len(values) - 1e-9), (len(values) - 1) // 2)
        return values[cut : len(values) - cut].mean()

    for rule, formula in ((RULES[0], np.median), (RULES[1], trimmed)):
        np.testing.assert_allclose(mean_of(rule, updates, BEFORE), at_each_entry(updates, formula), rtol=1e-6)


@given(rounds(5))
def test_krum_equals_the_paper(updates: list[Update]) -> None:
    n, f = len(updates), 1

    def distance(i: int, j: int) -> float:
        common = (updates[i][1] & updates[j][1]).numpy()
        gap = (updates[i][0].double() - updates[j][0].double()).numpy()[common]
        return float((gap**2).mean()) if common.any() else math.inf

    scores = [sum(sorted(distance(i, j) for j in range(n) if j != i)[: n - f - 2]) for i in range(n)]
    if len({round(s, 12) for s in scores}) < n:
        return  # ties are broken by name, which is tested below
    order = np.argsort(scores, kind="stable")
    best, held = updates[order[0]]
    np.testing.assert_array_equal(mean_of(RULES[2], updates, BEFORE), torch.where(held, best, BEFORE))
    chosen = [updates[i] for i in order[: n - f]]
    covered = np.stack([h.numpy() for _, h in chosen])
    total = np.stack([c.double().numpy() for c, _ in chosen])
    wanted = np.where(covered.any(0), (total * covered).sum(0) / np.maximum(covered.sum(0), 1), BEFORE)
    np.testing.assert_allclose(mean_of(RULES[3], updates, BEFORE), wanted, rtol=1e-5, atol=1e-7)


@given(rounds(4))
def test_closest_is_the_mean_of_the_set_of_least_diameter(updates: list[Update]) -> None:
    n, f = len(updates), 1

    def apart(i: int, j: int) -> float:
        common = (updates[i][1] & updates[j][1]).numpy()
        gap = (updates[i][0].double() - updates[j][0].double()).numpy()[common]
        return float((gap**2).mean()) if common.any() else math.inf

    width = {}
    for out in range(n):
        kept = [i for i in range(n) if i != out]
        width[out] = max(apart(i, j) for i in kept for j in kept if i < j)
    if len({round(w, 12) for w in width.values()}) < n - f:
        return  # ties
    out = min(width, key=width.get)  # type: ignore[arg-type]
    if list(width.values()).count(width[out]) > 1:
        return
    chosen = [u for i, u in enumerate(updates) if i != out]
    covered = np.stack([h.numpy() for _, h in chosen])
    total = np.stack([c.double().numpy() for c, _ in chosen])
    wanted = np.where(covered.any(0), (total * covered).sum(0) / np.maximum(covered.sum(0), 1), BEFORE)
    np.testing.assert_allclose(mean_of(Rule("closest"), updates, BEFORE), wanted, rtol=1e-5, atol=1e-7)


def test_of_three_clients_closest_leaves_out_the_one_that_turned_round() -> None:
    everything = torch.ones(SIZE, dtype=torch.bool)
    common = draw_updates(7, 1)[0][0]
    good = [common + 0.5 * core for core, _ in draw_updates(0, 2)]
    found = mean_of(Rule("closest"), [(c, everything) for c in (*good, -common)], torch.zeros(SIZE))
    torch.testing.assert_close(found, (good[0] + good[1]) / 2)


@given(rounds(3), st.sampled_from([None, 0.5]))
def test_bounded_equals_numpy(updates: list[Update], radius: float | None) -> None:
    start = BEFORE.double().numpy()
    gaps = [(c.double().numpy() - start) * h.numpy() for c, h in updates]
    lengths = [np.linalg.norm(gap) for gap in gaps]
    bound = np.median(lengths) if radius is None else radius
    scaled = [gap * min(1, bound / max(length, 1e-300)) for gap, length in zip(gaps, lengths, strict=True)]
    count = sum(h.numpy().astype(int) for _, h in updates)
    wanted = start + sum(scaled) / np.maximum(count, 1)
    np.testing.assert_allclose(mean_of(Rule("bounded", radius=radius), updates, BEFORE), wanted, rtol=1e-5, atol=1e-7)


def test_agreeing_scales_to_the_median_norm_whatever_the_radius() -> None:
    everything = torch.ones(SIZE, dtype=torch.bool)
    updates = [(torch.full(SIZE, x), everything) for x in (1.0, 1.1, 0.9)]
    found = mean_of(Rule("agreeing", radius=100.0), updates, torch.zeros(SIZE))
    torch.testing.assert_close(found, torch.ones(SIZE))


@given(rounds(), st.randoms(), st.sampled_from(RULES))
def test_the_order_of_arrival_changes_no_bit(updates: list[Update], random: object, rule: Rule) -> None:
    names = list(range(len(updates)))
    random.shuffle(names)  # type: ignore[attr-defined]
    assert torch.equal(mean_of(rule, updates, BEFORE), mean_of(rule, updates, BEFORE, names))


@given(st.integers(5, 9), st.integers(0, 99), st.sampled_from(RULES[:6]))
def test_equal_clients_have_exactly_their_own_core(count: int, seed: int, rule: Rule) -> None:
    update = draw_updates(seed, 1, 0.7)[0]
    want = torch.where(update[1], update[0], BEFORE)
    assert torch.equal(mean_of(rule, [update] * count, BEFORE), want)


@given(
    st.integers(2, 6),
    st.integers(0, 99),
    st.floats(-(2.0**127), 2.0**127, width=32),
    st.sampled_from(["median", "trimmed"]),
)
def test_a_minority_cannot_leave_the_honest_range(honest: int, seed: int, lie: float, name: str) -> None:
    bad = honest - 1
    good = draw_updates(seed, honest)
    liars = [(torch.full(SIZE, lie), torch.ones(SIZE, dtype=torch.bool))] * bad
    everyone = [(core, torch.ones(SIZE, dtype=torch.bool)) for core, _ in good] + liars
    if len(everyone) < 3:
        return
    found = mean_of(Rule(name, trim=0.49), everyone, BEFORE)
    values = torch.stack([core for core, _ in good])
    assert (found >= values.min(0).values - 1e-6).all() and (found <= values.max(0).values + 1e-6).all()


@given(st.integers(0, 99), st.floats(-(2.0**127), 2.0**127, width=32))
def test_krum_takes_an_honest_client(seed: int, lie: float) -> None:
    everything = torch.ones(SIZE, dtype=torch.bool)
    good = [(core / 10, everything) for core, _ in draw_updates(seed, 5)]
    if abs(lie) < 10:
        return
    found = mean_of(Rule("krum", faulty=2), [*good, *[(torch.full(SIZE, lie), everything)] * 2], BEFORE)
    assert any(torch.equal(found, core) for core, _ in good)


@given(st.integers(0, 99), st.floats(1, 2.0**127, width=32))
def test_a_bounded_liar_moves_the_mean_by_its_radius_at_most(seed: int, lie: float) -> None:
    everything = torch.ones(SIZE, dtype=torch.bool)
    good = [(core, everything) for core, _ in draw_updates(seed, 4)]
    rule = Rule("bounded", radius=1.0)
    calm = mean_of(rule, [*good, (BEFORE, everything)], BEFORE)
    moved = mean_of(rule, [*good, (torch.full(SIZE, lie), everything)], BEFORE)
    assert float((moved - calm).norm()) <= 1.0 / 5 + 1e-6


def test_two_clients_on_an_entry_are_judged_with_the_core_as_it_was() -> None:
    nothing = torch.zeros(SIZE, dtype=torch.bool)
    first = nothing.clone()
    first[0, 0, 0] = True
    updates = [(torch.full(SIZE, 1.0), first), (torch.full(SIZE, 100.0), first), (torch.zeros(SIZE), nothing)]
    assert mean_of(Rule("median"), updates, torch.zeros(SIZE))[0, 0, 0].tolist() == [1.0, 1.0]
    opposed = [(torch.full(SIZE, -5.0), first), *updates[1:]]
    assert mean_of(Rule("trimmed"), opposed, torch.zeros(SIZE))[0, 0, 0].tolist() == [0.0, 0.0]


def test_smaller_ranks_cover_their_corner() -> None:
    total = started(Rule("median"), BEFORE)
    for value in (1.0, 2.0, 9.0):
        total.fold(f"c{value}", torch.full((2, 2, 1, 1), value), torch.ones(2, 2, 1, 1, dtype=torch.bool), 1)
    found = total.result()
    assert (found[..., 0, 0] == 2.0).all() and torch.equal(found[..., 1, :], BEFORE[..., 1, :])


@pytest.mark.parametrize(
    ("rule", "count", "says"),
    [
        (Rule("krum"), 4, "coordinate median"),
        (Rule("krum"), 2, "coordinate median"),
        (Rule("median"), 2, "coordinate median"),
        (Rule("median"), 1, "stays"),
        (Rule("bounded"), 1, "stays"),
        (Rule("bounded", radius=1.0), 1, None),
    ],
)
def test_a_round_that_shrank_says_what_was_done(rule: Rule, count: int, says: str | None) -> None:
    total = started(rule, BEFORE)
    for name, update in enumerate(draw_updates(0, count)):
        total.fold(str(name), *update, 1)
    found = total.result()
    assert not total.notices if says is None else says in total.notices[0]
    if says == "stays":
        assert torch.equal(found, BEFORE)


@pytest.mark.parametrize("name", ["closest", "agreeing", "bounded", "median", "trimmed"])
def test_with_the_bad_one_excluded_two_are_enough(name: str) -> None:
    """Three clients, one excluded: the two that are left are those whom the rule would have kept."""
    start = torch.zeros(SHAPE.zeros().shape)
    updates = [(torch.full_like(start, value), torch.ones_like(start, dtype=torch.bool)) for value in (1.0, 3.0)]
    total = started(Rule(name), start)
    for client, update in zip("ab", updates, strict=True):
        total.fold(client, *update, 1)
    total.result()
    assert "coordinate median was taken" in total.notices.pop()
    found = total.result(excluded=1)
    assert not total.notices
    # Lengths are limited by the median length, made alike, or voted on with the core as it was.
    assert torch.equal(found, torch.full_like(start, {"closest": 2.0, "agreeing": 2.0, "bounded": 1.5}.get(name, 1.0)))


@pytest.mark.parametrize(("faulty", "excluded", "needs"), [(1, 0, 5), (1, 1, 3), (2, 1, 5), (1, 9, 2)])
def test_krum_needs_fewer_when_bad_ones_are_gone(faulty: int, excluded: int, needs: int) -> None:
    assert Rule("krum", faulty=faulty).needs_without(excluded) == needs


def test_krum_survives_what_the_number_of_clients_allows() -> None:
    assert [rule_of("krum", 0.25, None, None, n).faulty for n in (3, 5, 7, 10)] == [1, 1, 2, 3]
    assert rule_of("krum", 0.25, 2, None, 10).needs == 7
    assert [rule_of("closest", 0.25, None, None, n).faulty for n in (3, 5, 10)] == [1, 1, 3]


def test_agreeing_leaves_out_who_turned_round_shrank_or_made_noise_and_tames_who_shouts() -> None:
    rng = np.random.default_rng(0)
    start = torch.from_numpy(rng.normal(size=SIZE)).float()
    way = rng.normal(size=SIZE)
    good = [start + torch.from_numpy(way + rng.normal(size=SIZE)).float() for _ in range(7)]
    everything = torch.ones(SIZE, dtype=torch.bool)
    wanted = np.mean([_shortened(c, start, good) for c in good], axis=0)
    for bad in (2 * start - good[0], 0.0 * start, start + torch.from_numpy(10 * rng.normal(size=SIZE)).float()):
        updates = [(c, everything) for c in (*good, bad)]
        found = np.asarray(mean_of(Rule("agreeing"), updates, start))
        assert np.linalg.norm(found - wanted) < 0.25 * np.linalg.norm(wanted - start.numpy())
    shouting = start + 100 * (good[0] - start)
    found = np.asarray(mean_of(Rule("agreeing"), [(c, everything) for c in (*good, shouting)], start))
    assert np.linalg.norm(found - wanted) < 0.5 * np.linalg.norm(wanted - start.numpy())


def test_agreeing_is_not_taken_in_by_a_group_in_another_unit() -> None:
    """Three of ten send 0.01 S: their updates are alike, those of honest clients with other tasks are not."""
    rng = np.random.default_rng(1)
    start = torch.from_numpy(rng.normal(size=SIZE)).float()
    good = [start + torch.from_numpy(0.3 * rng.normal(size=SIZE)).float() for _ in range(10)]
    everything = torch.ones(SIZE, dtype=torch.bool)
    bad = [*good[:7], *(0.01 * core for core in good[7:])]
    wanted, found = (mean_of(Rule("agreeing"), [(c, everything) for c in cores], start) for cores in (good, bad))
    assert (found - wanted).norm() < 0.3 * (wanted - start).norm()
    stacked, held = torch.stack(bad), everything.expand(10, *SIZE)
    enlarged = in_usual_unit(stacked, held)
    assert torch.equal(enlarged[:7], stacked[:7])
    sizes = enlarged.flatten(1).norm(dim=1)
    assert torch.allclose(sizes[7:], stacked.flatten(1).norm(dim=1).median())
    assert torch.equal(in_usual_unit(0 * stacked, held), 0 * stacked)


def _shortened(core: torch.Tensor, start: torch.Tensor, good: list[torch.Tensor]) -> np.ndarray:
    """NumPy: an update scaled to the median norm."""
    update, radius = (core - start).numpy(), np.median([np.linalg.norm((c - start).numpy()) for c in good])
    return start.numpy() + update * radius / np.linalg.norm(update)
