"""Cross-LoRA's rule against a plain NumPy statement of it, and what it does in whole federations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from federations import build, small

from h2tune.methods.crosslora import CrossLoraClient, CrossLoraServer, CrossLoraSettings, directions
from h2tune.protocol.codec import Payload
from h2tune.protocol.exchange import Reply

SEEDS = pytest.mark.parametrize("seed", range(3))
RANK = 2


def signed(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Singular vectors whose sign is fixed by the largest entry on the left."""
    sign = np.array([np.sign(column[np.argmax(np.abs(column))]) for column in u.T])
    return u * sign, v * sign


def aligned(source: np.ndarray, target: np.ndarray, r: int) -> tuple[np.ndarray, np.ndarray]:
    """P_U and P_V by least squares, from whole singular value decompositions."""
    found = []
    u_s, _, vt_s = np.linalg.svd(source)
    u_t, _, vt_t = np.linalg.svd(target)
    for own, other in zip(signed(u_s[:, :r], vt_s[:r].T), signed(u_t[:, :r], vt_t[:r].T), strict=True):
        p = np.linalg.lstsq(own.T, other.T, rcond=None)[0].T  # argmin ||P own - other||, of least norm
        np.testing.assert_allclose(p @ own, other, atol=1e-6)
        found.append(p)
    return found[0], found[1]


def moved(weight: torch.Tensor, r: int, sent: dict[str, torch.Tensor], key: str) -> np.ndarray:
    u, v = directions(weight, r)
    return (u @ sent[f"{key}.B"] @ sent[f"{key}.A"] @ v.T).numpy()


@SEEDS
@pytest.mark.parametrize("shapes", [((9, 6), (7, 11)), ((5, 8), (5, 8))])
def test_an_update_moves_by_the_least_squares_maps_of_both_subspaces(seed: int, shapes: Any) -> None:
    rng, r = np.random.default_rng(seed), 4
    w_s, w_t = (rng.normal(size=shape) for shape in shapes)
    a, b = rng.normal(size=(RANK, shapes[0][1])), rng.normal(size=(shapes[0][0], RANK))
    p_u, p_v = aligned(w_s, w_t, r)
    u, v = directions(torch.tensor(w_s), r)
    sent = {"0.q.A": torch.tensor(a).float() @ v, "0.q.B": u.T @ torch.tensor(b).float()}
    np.testing.assert_allclose(moved(torch.tensor(w_t), r, sent, "0.q"), p_u @ b @ a @ p_v.T, atol=1e-4)


@SEEDS
def test_a_copy_of_a_model_gets_the_part_of_the_update_in_its_leading_directions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    w, delta = rng.normal(size=(8, 6)), rng.normal(size=(8, 6))
    p_u, p_v = aligned(w, w, 3)
    u, _, vt = np.linalg.svd(w)
    np.testing.assert_allclose(p_u @ delta @ p_v.T, u[:, :3] @ u[:, :3].T @ delta @ vt[:3].T @ vt[:3], atol=1e-8)


def test_a_weight_of_low_rank_has_finite_directions() -> None:
    u, v = directions(torch.outer(torch.arange(5.0), torch.arange(3.0)), 3)
    assert torch.isfinite(u).all() and torch.isfinite(v).all()


def server_with(**depths: int) -> CrossLoraServer:
    experiment = small(len(depths), rounds=2)
    server = CrossLoraServer(experiment, CrossLoraSettings())
    joined = {n: Payload(meta={"depth": depth, "slots": ["q"], "rank": 4}) for n, depth in depths.items()}
    server.open(joined, {})
    return server


@SEEDS
def test_each_gets_the_weighted_mean_of_the_others_from_the_same_relative_depth(seed: int) -> None:
    g, server = torch.Generator().manual_seed(seed), server_with(c0=1, c1=3, c2=5)
    server.start_round(1, ["c0", "c1", "c2"])
    sent: dict[str, dict[str, torch.Tensor]] = {}
    for name, depth, r, rows in (("c0", 1, 3, 7), ("c1", 3, 5, 10), ("c2", 5, 4, 30)):
        shapes = {f"{block}.q.{kind}": (4, r) if kind == "A" else (r, 4) for block in range(depth) for kind in "AB"}
        sent[name] = {key: torch.randn(shape, generator=g) for key, shape in shapes.items()}
        server.add(Reply(name, Payload(sent[name]), rows, 0, 0))
    server.finish_round()
    got = server.download("c1").tensors
    for block, (first, second) in enumerate([(0, 0), (0, 2), (0, 4)]):
        want = np.zeros((5, 5))
        for name, place, share in (("c0", first, 7 / 37), ("c2", second, 30 / 37)):
            product = sent[name][f"{place}.q.B"] @ sent[name][f"{place}.q.A"]
            want[: len(product), : len(product)] += share * product.numpy()
        found = (got[f"{block}.q.B"] @ got[f"{block}.q.A"]).numpy()
        np.testing.assert_allclose(found, want[: len(found), : len(found)], atol=1e-5)


def test_the_exchange_happens_once_and_whoever_missed_the_answer_gets_it_later(tmp_path: Path) -> None:
    server, _ = build(small(2, method="crosslora", rounds=4), tmp_path / "run")
    server.open()
    method, sizes = server.method, []
    for _ in range(4):
        sizes.append({name: len(method.download(name).tensors) for name in ("c0", "c1")})
        server.one_round()
        method = server.method
    assert [bool(size["c0"]) for size in sizes] == [False, False, True, False]
    method.told = ["c1"]
    assert method.download("c0").tensors and not method.download("c1").tensors


def kept(weight: torch.Tensor, delta: torch.Tensor) -> np.ndarray:
    """What a map's own singular directions hold of an update of it; all of it where the map is square."""
    u, s, vt = np.linalg.svd(weight.double().numpy(), full_matrices=False)
    assert s[-1] > 1e-6 * s[0]
    return u @ u.T @ delta.double().numpy() @ vt.T @ vt


@pytest.mark.parametrize("model", ["zoo:llama", "zoo:gpt2"])
def test_twins_take_over_each_others_update(model: str, tmp_path: Path) -> None:
    """GPT-2's maps are transposed, and one of them is fused."""
    config = small(2, same_model=True, method="crosslora", rounds=2)
    config = config.model_copy(update={"clients": [c.model_copy(update={"model": model}) for c in config.clients]})
    server, clients = build(config, tmp_path / "run")
    server.open()
    server.one_round()
    halves: list[CrossLoraClient] = [client.method for client in clients.values()]
    name, other = (method.context.adapter for method in halves)
    turn = (lambda t: t.T) if model == "zoo:gpt2" else (lambda t: t)
    learnt = [turn(layer.get_delta_weight(other)).detach() for layer in halves[1].layers]
    halves[0].receive(server.method.download("c0"))
    parts = set()
    for layer, delta in zip(halves[0].layers, learnt, strict=True):
        rows = layer.trilora_rows[name]
        pieces = zip(
            *(rows.split(t) for t in (turn(layer.get_base_weight()), delta, layer.trilora_offset[name])), strict=True
        )
        for weight, update, got in pieces:
            np.testing.assert_allclose(got, kept(weight, update), atol=1e-5)
            parts.add(len(rows.sizes))
        assert layer.trilora_offset[name].any()
    assert parts == ({1, 3} if model == "zoo:gpt2" else {1})
