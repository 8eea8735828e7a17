"""The shared core: its chain rule against autograd, what learns when, and a mean that is exact in any order."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from families import adapted, build, ids
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from torch import Tensor, nn
from torch.func import functional_call

from h2tune.adapter import TriLoraLayer
from h2tune.core.client_core import ClientCore, CoreShape
from h2tune.core.exact_sum import CoreSum
from h2tune.core.relation import depth_relation
from h2tune.core.slots import SLOTS, Layout, layout_of

DEPTH, RANK = 5, 4
SHAPE = CoreShape(DEPTH, RANK)
MASKS = pytest.mark.parametrize(("mask", "keep"), [("dims", 1.0), ("dims", 0.5), ("entries", 0.5)])
FAMILIES = pytest.mark.parametrize("family", ["llama-tied", "phi3", "gpt2", "gpt_neox"])


def start(blocks: int) -> Tensor:
    """A relation in which every block reads several depths, in different shares: from equal ones P learns nothing."""
    near = depth_relation(DEPTH, blocks) + depth_relation(DEPTH, blocks).roll(1, 0)
    return torch.softmax(
        (torch.arange(DEPTH * blocks).view(DEPTH, blocks) % 3 * 0.5).masked_fill(near == 0, -torch.inf), 0
    )


def set_up(
    family: str, mask: str, keep: float, filled: bool = True
) -> tuple[PeftModel, Layout, ClientCore, dict[str, nn.Parameter]]:
    """A model with frames-like factors, its core, and its leaves T by name, in the order of `Layout.targets`."""
    layout = layout_of(build(family))
    core = ClientCore(SHAPE, layout, start(layout.depth), keep, mask)
    model = adapted(family, residual=False, r=core.rank)
    names = [f"base_model.model.{target}" for target in layout.targets]
    leaves = {f"{name}.trilora_T.default": model.get_submodule(name).trilora_T["default"] for name in names}
    if filled:
        generator = torch.Generator().manual_seed(1)
        for parameter in core.parameters():
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.3
    return model, layout, core, leaves


def loss_of(model: PeftModel, leaves: dict[str, Tensor]) -> Tensor:
    return functional_call(model, leaves, kwargs={"input_ids": ids(2, 6)}).logits.square().mean()


def composed(core: ClientCore, layout: Layout, s: Tensor, logits: Tensor, scores: Tensor | None) -> dict[str, Tensor]:
    """T of every map by loops: T[l, j] = sum_g P[g, l] (C * S)[g, j], with the straight-through sum."""
    support = start(layout.depth) > 0
    leaves = {}
    for l in range(layout.depth):  # noqa: E741
        exps = {g: logits[g, l].exp() for g in range(DEPTH) if support[g, l]}
        for module in layout.modules:
            refs = sorted((ref.part, slot) for slot, ref in layout.slots.items() if ref.module == module)
            parts = []
            for _, slot in refs:
                j = SLOTS.index(slot)
                total = torch.zeros(core.rank, core.rank)
                for g, e in exps.items():
                    kept = s[g, j]
                    if scores is not None:
                        threshold = scores[g, j].detach().abs().flatten().sort(descending=True).values[7]
                        chosen = (scores[g, j].detach().abs() >= threshold).float()
                        kept = s[g, j] * chosen + s[g, j].detach() * (scores[g, j] - scores[g, j].detach())
                    total = total + e / sum(exps.values()) * kept
                parts.append(total)
            leaves[f"base_model.model.{layout.blocks}.{l}.{module}.trilora_T.default"] = torch.stack(parts)
    return leaves


@FAMILIES
@MASKS
def test_write_and_pull_equal_autograd_through_the_composition(family: str, mask: str, keep: float) -> None:
    model, layout, core, leaves = set_up(family, mask, keep)
    core.write(list(leaves.values()))
    s, p = core.S.detach().clone().requires_grad_(), core.relation.logits.detach().clone().requires_grad_()
    m = core.scores.M.detach().clone().requires_grad_() if core.scores else None
    direct = composed(core, layout, s, p, m)
    for name, leaf in leaves.items():
        torch.testing.assert_close(leaf, direct[name], atol=1e-6, rtol=0)
    loss_of(model, {}).backward()
    core.pull(list(leaves.values()))
    loss_of(model, direct).backward()
    assert all(leaf.grad is None for leaf in leaves.values())
    torch.testing.assert_close(core.S.grad, s.grad, atol=1e-7, rtol=1e-4)
    torch.testing.assert_close(core.relation.logits.grad, p.grad, atol=1e-7, rtol=1e-4)
    assert core.S.grad.abs().max() > 1e-4
    assert core.relation.logits.grad.abs().max() > 1e-5
    if m is not None:
        torch.testing.assert_close(core.scores.M.grad, m.grad, atol=1e-7, rtol=1e-4)
        assert m.grad.abs().max() > 1e-5


@FAMILIES
@MASKS
def test_at_zero_only_s_has_a_gradient_and_after_a_step_p_and_m_have(family: str, mask: str, keep: float) -> None:
    model, _, core, leaves = set_up(family, mask, keep, filled=False)

    def gradients() -> dict[str, float]:
        core.zero_grad()
        model.zero_grad()
        core.write(list(leaves.values()))
        loss_of(model, {}).backward()
        core.pull(list(leaves.values()))
        factors = [p.grad for n, p in model.named_parameters() if "trilora_A" in n or "trilora_B" in n]
        found = {name: float(p.grad.abs().max()) for name, p in core.named_parameters()}
        return found | {"AB": float(torch.stack([g.abs().max() for g in factors]).max())}

    first = gradients()
    assert first.pop("S") > 0
    assert set(first.values()) == {0.0}
    with torch.no_grad():
        core.S -= 0.1 * core.S.grad
    assert all(value > 0 for value in gradients().values())


@MASKS
def test_the_core_alone_can_learn(mask: str, keep: float) -> None:
    model, _, core, leaves = set_up("gpt_neox", mask, keep, filled=False)
    target = ids(2, 6, seed=3)
    frozen = [p.detach().clone() for n, p in model.named_parameters() if "trilora_A" in n or "trilora_B" in n]

    def loss() -> Tensor:
        core.write(list(leaves.values()))
        return model(input_ids=target, labels=target).loss

    optimiser, before = torch.optim.Adam(core.parameters(), lr=0.05), float(loss().detach())
    for _ in range(12):
        loss().backward()
        core.pull(list(leaves.values()))
        optimiser.step()
        optimiser.zero_grad()
    assert float(loss().detach()) < 0.9 * before
    now = [p for n, p in model.named_parameters() if "trilora_A" in n or "trilora_B" in n]
    assert all(torch.equal(a, b) for a, b in zip(frozen, now, strict=True))


def test_what_is_not_read_or_not_there_is_not_covered() -> None:
    """GPT-2 has no gate; its two blocks read depths 0 and 4 of five."""
    layout = layout_of(build("gpt2"))
    core = ClientCore(SHAPE, layout, depth_relation(DEPTH, 2))
    held = core.coverage.flatten(2).all(-1)
    assert torch.equal(held, core.coverage.flatten(2).any(-1))
    assert held.any(1).tolist() == [True, False, False, False, True]
    assert [SLOTS[j] for j in range(7) if held[0, j]] == ["q", "k", "v", "o", "up", "down"]
    entries = ClientCore(SHAPE, layout, depth_relation(DEPTH, 2), 0.25, "entries")
    assert entries.coverage.sum() == 2 * 6 * 4
    assert not (entries.coverage & ~core.coverage).any()


def test_a_budget_in_dims_shrinks_the_core_and_keeps_its_corner() -> None:
    layout = layout_of(build("llama"))
    core = ClientCore(SHAPE, layout, depth_relation(DEPTH, 2), 0.5)
    assert core.S.shape == (DEPTH, 7, 2, 2)
    total, whole = CoreSum(SHAPE.zeros().shape), torch.randn(DEPTH, 7, 4, 4)
    total.add(whole[..., :2, :2], core.coverage, 3)
    mean = total.mean(torch.full_like(whole, 9.0))
    for g in range(DEPTH):
        for a in range(4):
            for b in range(4):
                kept = a < 2 and b < 2 and g in (0, 4)
                assert torch.equal(mean[g, :, a, b], whole[g, :, a, b] if kept else torch.full((7,), 9.0))


def test_a_full_budget_of_entries_needs_no_mask() -> None:
    core = ClientCore(SHAPE, layout_of(build("llama")), depth_relation(DEPTH, 2), 1.0, "entries")
    assert core.scores is None


SMALL = CoreShape(2, 2, ("q", "k"))
NUMBERS = st.floats(-1e6, 1e6, width=32)
CORES = st.lists(NUMBERS, min_size=16, max_size=16).map(lambda x: torch.tensor(x).view(2, 2, 2, 2))
COVERS = st.lists(st.booleans(), min_size=16, max_size=16).map(lambda x: torch.tensor(x).view(2, 2, 2, 2))
UPDATES = st.lists(st.tuples(CORES, COVERS, st.integers(1, 50_000), st.integers(1, 2)), min_size=1, max_size=6)
Update = tuple[Tensor, Tensor, int, int]


def total_of(updates: list[Update]) -> CoreSum:
    total = CoreSum(SMALL.zeros().shape)
    for core, coverage, weight, rank in updates:
        total.add(core[..., :rank, :rank], coverage[..., :rank, :rank], weight)
    return total


@given(UPDATES, st.randoms())
def test_the_order_of_arrival_changes_no_bit(updates: list[Update], random: np.random.Generator) -> None:
    shuffled = updates.copy()
    random.shuffle(shuffled)
    before = torch.full((2, 2, 2, 2), 0.5)
    assert torch.equal(total_of(updates).mean(before), total_of(shuffled).mean(before))


@given(
    st.lists(st.floats(-(2.0**31), 2.0**31, width=32), min_size=16, max_size=16),
    st.lists(st.integers(1, 9999), min_size=1, max_size=7),
)
def test_identical_clients_average_to_what_one_of_them_has(values: list[float], weights: list[int]) -> None:
    core = torch.tensor(values).view(2, 2, 2, 2)
    everything = torch.ones(2, 2, 2, 2, dtype=torch.bool)
    total = total_of([(core, everything, weight, 2) for weight in weights])
    assert torch.equal(total.mean(torch.zeros(2, 2, 2, 2)), core)


@given(UPDATES)
def test_the_mean_is_the_weighted_mean_over_who_covers(updates: list[Update]) -> None:
    before = torch.arange(16.0).view(2, 2, 2, 2)
    mean = total_of(updates).mean(before)
    for place in np.ndindex(2, 2, 2, 2):
        there = [(Fraction(float(c[place])), w) for c, cover, w, r in updates if cover[place] and max(place[2:]) < r]
        if there:
            exact = sum(x * w for x, w in there) / sum(w for _, w in there)
            np.testing.assert_allclose(float(mean[place]), float(exact), rtol=1e-6, atol=1e-30)
        else:
            assert mean[place] == before[place]


def test_the_mean_equals_plain_numpy() -> None:
    generator = np.random.default_rng(0)
    cores = generator.normal(size=(5, 2, 2, 2, 2)).astype(np.float32)
    covers, weights = generator.random((5, 2, 2, 2, 2)) < 0.6, generator.integers(1, 500, 5)
    w = weights[:, None, None, None, None] * covers
    wanted = np.where(w.sum(0) > 0, (w * cores.astype(np.float64)).sum(0) / np.maximum(w.sum(0), 1), 7.0)
    total = total_of(
        [(torch.tensor(c), torch.tensor(m), int(n), 2) for c, m, n in zip(cores, covers, weights, strict=True)]
    )
    np.testing.assert_allclose(total.mean(torch.full((2, 2, 2, 2), 7.0)).numpy(), wanted.astype(np.float32), rtol=1e-7)


def test_memory_of_the_sum_does_not_grow_with_the_clients() -> None:
    total, core = CoreSum(SMALL.zeros().shape), torch.ones(2, 2, 2, 2)
    size = sum(t.nbytes for t in (*total.limbs, total.weight))
    for _ in range(200):
        total.add(core, core.bool(), 10**6)
    assert sum(t.nbytes for t in (*total.limbs, total.weight)) == size
    assert torch.equal(total.mean(core * 0), core)


def test_leaves_are_written_into_the_layers_that_use_them() -> None:
    """Every layer's T is its block's and its slots' mixture: checked by distinct values at every depth and slot."""
    model, layout, core, leaves = set_up("phi3", "dims", 1.0, filled=False)
    marks = torch.arange(DEPTH)[:, None] * 100.0 + torch.arange(7)
    core.S.data = marks[..., None, None] * torch.ones(RANK, RANK)
    core.write(list(leaves.values()))
    layers = {n: m for n, m in model.named_modules() if isinstance(m, TriLoraLayer)}
    for block in range(2):
        depth = float(start(2)[:, block] @ torch.arange(5.0))
        for slot, ref in layout.slots.items():
            t = layers[f"base_model.model.{layout.blocks}.{block}.{ref.module}"].trilora_T["default"]
            torch.testing.assert_close(t[ref.part], torch.full((RANK, RANK), depth * 100.0 + SLOTS.index(slot)))
