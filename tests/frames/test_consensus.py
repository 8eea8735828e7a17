"""Frames: regressions and consensus on data with a known answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from h2tune.errors import MethodError
from h2tune.frames import consensus as fr

SEEDS = st.integers(0, 999)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def basis(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Orthonormal columns that sum to 0, as left factors of centred data have."""
    x = gaussian(rows, columns, seed=seed).double()
    return torch.linalg.qr(x - x.mean(0))[0].float()


def coordinates(rows: int, rank: int, seed: int = 0) -> Tensor:
    return basis(rows, rank, seed) * rows**0.5


@given(SEEDS, st.sampled_from([(60, 12), (12, 60), (40, 40)]), st.integers(1, 20))
def test_a_factor_is_the_leading_part_of_the_centred_rows(seed: int, shape: tuple[int, int], p: int) -> None:
    x = gaussian(*shape, seed=seed) @ torch.diag(torch.linspace(3, 0.5, shape[1])) + gaussian(shape[1], seed=seed + 1)
    factor = fr.factorise(x, p)
    centred = x.double().numpy() - x.double().numpy().mean(0)
    u, s, vh = np.linalg.svd(centred, full_matrices=False)
    k = min(p, (s > 1e-6 * s[0]).sum())
    assert factor.u.shape == (shape[0], k)
    np.testing.assert_allclose(factor.s, s[:k], rtol=1e-4)
    np.testing.assert_allclose(factor.u.T @ factor.u, np.eye(k), atol=1e-4)
    np.testing.assert_allclose((factor.u * factor.s) @ factor.v.T, u[:, :k] * s[:k] @ vh[:k], atol=2e-3)
    torch.testing.assert_close(factor.mean, x.mean(0))


@given(SEEDS, st.integers(1, 6), st.sampled_from([(50, 12), (12, 50)]))
def test_directions_without_variance_are_dropped(seed: int, rank: int, shape: tuple[int, int]) -> None:
    """Normalised activations have such directions; rounding must not turn them into coordinates."""
    x = gaussian(shape[0], rank, seed=seed) @ gaussian(rank, shape[1], seed=seed + 1) + gaussian(shape[1], seed=2)
    factor = fr.factorise(x, 12)
    assert factor.u.shape[1] == rank
    torch.testing.assert_close(factor.u.T @ factor.u, torch.eye(rank), atol=1e-4, rtol=0)


def test_a_constant_has_no_directions() -> None:
    assert fr.factorise(torch.ones(20, 5) * 3, 4).u.shape == (20, 0)


@given(SEEDS)
def test_the_randomised_factor_is_nearly_the_exact_one(seed: int) -> None:
    n, d, p = 150, 120, 10
    spectrum = torch.cat([torch.linspace(30, 10, p), torch.linspace(1, 0.1, d - p)])
    x = basis(n, d, seed) * spectrum @ basis(d, d, seed + 1).T
    exact, quick = fr._by_gram(x, p), fr._randomised(x, p, seed=0)
    torch.testing.assert_close(quick[1], exact[1], rtol=1e-4, atol=0)
    cosines = torch.linalg.svdvals(quick[0].T @ exact[0])
    assert cosines.min() > 0.9999
    assert torch.equal(fr._randomised(x, p, seed=0)[0], quick[0])


def test_large_matrices_take_the_randomised_way() -> None:
    x = gaussian(1030, 6, seed=1) @ gaussian(6, 1030, seed=2)
    factor = fr.factorise(x, 12)
    assert factor.u.shape == (1030, 6)
    torch.testing.assert_close((factor.u * factor.s) @ factor.v.T, x - x.mean(0), atol=1e-3, rtol=0)


def test_consensus_finds_what_all_share_in_order_of_agreement() -> None:
    """Three models see one direction alike, two of them a second one, and each has its own rest."""
    common = basis(80, 12, 3)
    bases = [common[:, [0, 1, 2, 3]], common[:, [1, 0, 4, 5]], common[:, [6, 0, 7, 8]]]
    g = fr.consensus(bases, 2)
    torch.testing.assert_close(g.T @ g / 80, torch.eye(2), atol=1e-5, rtol=0)
    overlap = (common[:, :2].T @ g / 80**0.5).abs()
    torch.testing.assert_close(overlap, torch.eye(2), atol=1e-4, rtol=0)


def test_anchors_that_say_too_little_for_the_rank_are_a_mistake_that_is_named() -> None:
    with pytest.raises(MethodError, match="fewer than 9 directions: use more anchors or a smaller rank"):
        fr.consensus([basis(60, 4, 0), basis(60, 4, 1)], 9)


@given(SEEDS, st.integers(1, 5))
def test_consensus_is_the_same_for_any_rotation_of_the_bases_signs_included(seed: int, rank: int) -> None:
    bases = [basis(60, 8, seed + i) for i in range(3)]
    turned = [u @ torch.linalg.qr(gaussian(8, 8, seed=seed + i))[0] for i, u in enumerate(bases)]
    g = fr.consensus(bases, rank)
    torch.testing.assert_close(fr.consensus(turned, rank), g, atol=2e-3, rtol=0)
    torch.testing.assert_close(fr.consensus(bases[::-1], rank), g, atol=2e-3, rtol=0)
    assert torch.equal(fr.consensus(bases, rank), g)
    assert all(column[column.abs().argmax()] > 0 for column in g.T)


def test_consensus_is_maxvar_as_numpy_states_it() -> None:
    bases = [basis(50, 6, seed) for seed in range(4)]
    left = np.linalg.svd(np.concatenate([u.double().numpy() for u in bases], axis=1))[0][:, :3]
    g = fr.consensus(bases, 3).double().numpy() / 50**0.5
    np.testing.assert_allclose(np.abs(left.T @ g), np.eye(3), atol=1e-4)


def test_too_few_directions_are_refused() -> None:
    with pytest.raises(ValueError, match="fewer than 5 directions: use more anchors or a smaller rank"):
        fr.consensus([basis(40, 4), basis(40, 4)], 5)


def test_frames_agree_for_one_model_and_not_for_unrelated_matrices() -> None:
    same = basis(200, 16, 0)
    turned = same @ torch.linalg.qr(gaussian(16, 16, seed=9))[0]
    assert fr.agreement([same, turned, same], 4) > 0.99
    assert fr.agreement([basis(200, 16, seed) for seed in (1, 2, 3)], 4) < 0.3
    half = torch.linalg.qr(torch.cat([same[:, :8], basis(200, 8, 5)], 1))[0]
    assert fr.agreement([same, half], 4) > 0.9
    assert fr.agreement([same], 4) == 1.0


@given(SEEDS)
def test_frames_along_depth_are_turned_together_and_span_what_they_did(seed: int) -> None:
    first = coordinates(60, 4, seed)
    frames = [first]
    for i in range(1, 4):
        drift = frames[-1] @ torch.linalg.qr(gaussian(4, 4, seed=seed + i))[0] + 0.05 * gaussian(
            60, 4, seed=seed + 10 + i
        )
        frames.append(drift)
    turned = fr.along_depth(torch.stack(frames))
    assert torch.equal(turned[0], first)
    for before, one, two in zip(frames[1:], turned, turned[1:], strict=False):
        assert float((two - one).norm() / one.norm()) < 0.1
        torch.testing.assert_close(two @ two.T, before @ before.T, atol=1e-3, rtol=0)


@given(SEEDS, st.booleans())
def test_reading_and_writing_recover_an_exact_low_rank_truth(seed: int, wide: bool) -> None:
    """X = G W^T, Y = G V^T: B is V, and A X^T is G^T."""
    n, d, rank = 120, 150 if wide else 20, 4
    g, w = coordinates(n, rank, seed), gaussian(d, rank, seed=seed + 1)
    factor = fr.factorise(g @ w.T, 10)
    torch.testing.assert_close(fr.write_matrix(factor, g), w, atol=1e-3, rtol=0)
    a = fr.read_matrix(factor, g)
    assert a.shape == (rank, d)
    torch.testing.assert_close(g @ w.T @ a.T, g, atol=2e-2, rtol=0)
    torch.testing.assert_close(a @ w, torch.eye(rank), atol=2e-2, rtol=0)


@given(SEEDS, st.sampled_from([4, 10, 30]))
def test_reading_the_mean_gives_zero(seed: int, p: int) -> None:
    """So that a constant, which no LoRA could express, never enters: A x = A (x - mean) on the anchors."""
    x = gaussian(90, 30, seed=seed) + 5 * gaussian(30, seed=seed + 1)
    a = fr.read_matrix(fr.factorise(x, p), coordinates(90, 3, seed + 2))
    assert float((a @ x.mean(0)).norm()) < 1e-4 * float(a.norm() * x.mean(0).norm())
    scale = float((x @ a.T).abs().max())
    torch.testing.assert_close(x @ a.T, (x - x.mean(0)) @ a.T, atol=1e-4 * max(scale, 1), rtol=0)
    assert a.abs().max() > 1e-3


def test_the_ridge_that_predicts_held_out_rows_best_is_taken() -> None:
    """Noise that only a strong ridge survives: what A reads is closer to the truth than least squares is."""
    n, d = 60, 40
    g = coordinates(n, 2)
    x = g @ gaussian(2, d, seed=1) * 0.3 + gaussian(n, d, seed=2)
    fresh = coordinates(4000, 2, 5)
    x_fresh = fresh @ gaussian(2, d, seed=1) * 0.3 + gaussian(4000, d, seed=6)
    a = fr.read_matrix(fr.factorise(x, d), g)
    plain = torch.linalg.lstsq(x - x.mean(0), g).solution.T

    def error(matrix: Tensor) -> float:
        return float((x_fresh @ matrix.T - fresh).square().mean())

    assert error(a) < 0.95 * error(plain)


def test_rows_read_alike_whatever_the_basis_of_the_model() -> None:
    """X and X Q (Q orthogonal) read the same coordinates; A turns with the basis."""
    x, g = gaussian(80, 24) + gaussian(24, seed=1), coordinates(80, 3, 4)
    q = torch.linalg.qr(gaussian(24, 24, seed=2))[0]
    one, two = fr.read_matrix(fr.factorise(x, 12), g), fr.read_matrix(fr.factorise(x @ q, 12), g)
    torch.testing.assert_close(two, one @ q, atol=1e-4, rtol=0)
    torch.testing.assert_close(x @ q @ two.T, x @ one.T, atol=1e-4, rtol=0)
