"""Co-LoRA: its alignment and mixture against plain NumPy, and who sends what to whom."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from federations import build
from methods.three_models import trio

from h2tune import federation
from h2tune.frames.consensus import factorise
from h2tune.methods.colora_align import align_reader, align_writer, anchor_blocks, relevance, whitened

SEEDS = pytest.mark.parametrize("seed", range(3))


def test_colora_anchor_blocks_are_the_papers() -> None:
    assert anchor_blocks(16, 4) == [3, 7, 11, 15]
    assert anchor_blocks(18, 4) == [3, 7, 11, 17]  # k floor(L / K) - 1, and the last block
    assert anchor_blocks(3, 3) == [0, 1, 2]
    assert anchor_blocks(6, 1) == [5]


@SEEDS
def test_colora_aligns_a_rotated_copy_exactly(seed: int) -> None:
    """A model and its copy in a turned basis: the same readings row by row, and writings that differ by the turn."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(200, 8, generator=g) * torch.linspace(2, 0.5, 8)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=g))[0]
    own, other = factorise(x, 8), factorise(x @ turn.T, 8)
    a = torch.linalg.qr(torch.randn(8, 3, generator=g))[0].T
    target = (x - x.mean(0)) @ a.T
    aligned = align_reader(other, target)
    torch.testing.assert_close(aligned @ aligned.T, torch.eye(3), atol=1e-5, rtol=0)
    torch.testing.assert_close((x - x.mean(0)) @ turn.T @ aligned.T, target, atol=2e-2, rtol=0)
    b = torch.linalg.qr(torch.randn(8, 3, generator=g))[0]
    rows, deviation = whitened(own, 1e-4)
    pivot = (own.v.double().T @ b.double()) / deviation[:, None]
    torch.testing.assert_close(align_writer(other, rows, pivot, 1e-4), turn @ b, atol=1e-4, rtol=0)


@SEEDS
def test_colora_weights_are_a_softmax_of_cosines(seed: int) -> None:
    g = np.random.default_rng(seed).normal(size=(4, 10))
    unit = g / np.linalg.norm(g, axis=1, keepdims=True)
    want = np.exp(unit @ unit.T / 0.5)
    np.testing.assert_allclose(relevance(torch.tensor(g), 0.5), want / want.sum(1, keepdims=True), rtol=1e-9)


def test_colora_takes_no_late_joiner_with_fewer_blocks_than_are_exchanged(tmp_path: Path) -> None:
    """gpt2 has four blocks, llama five; qwen, with three, joins late."""
    config = trio(method="colora", rounds=3)
    late = [c.model_copy(update={"joins": 2} if c.model == "zoo:qwen" else {}) for c in config.clients]
    metrics = federation.run(config.model_copy(update={"clients": late}), tmp_path / "run")
    name = next(c.name for c in late if c.joins == 2)
    assert "its model has 3 blocks, and the others exchange 4" in metrics["clients"][name]["status"]


def test_colora_sends_factors_to_twins_alone_and_a_late_one_counts(tmp_path: Path) -> None:
    """Nobody still to come, and nobody who never comes, is taken for a twin."""
    rows = trio().clients[:2]
    late = rows[1].model_copy(update={"name": "late", "joins": 2})
    never = rows[0].model_copy(update={"name": "never", "joins": 9})
    config = trio(method="colora", rounds=3).model_copy(update={"clients": [*rows, late, never]})
    server, clients = build(config, tmp_path / "run")
    server.open()
    server.one_round()
    assert not any(k.startswith("own.") for c in ("c0", "c1") for k in clients[c].method.pack())
    server.one_round()
    factors = {c: {k for k in clients[c].method.pack() if k.startswith("own.")} for c in ("c0", "c1", "late")}
    assert not factors["c0"] and factors["c1"] == factors["late"] and factors["c1"]
    server.one_round()
    assert [str(server.members[c].standing) for c in factors] == ["ok"] * 3
    assert not server.method.groups[server.method.known["c0"]["fingerprint"]]


def test_colora_counts_no_excluded_client_as_a_twin(tmp_path: Path) -> None:
    rows = trio().clients[:2]
    twin = rows[0].model_copy(update={"name": "twin"})
    config = trio(method="colora", rounds=3).model_copy(update={"clients": [*rows, twin]})
    server, clients = build(config, tmp_path / "run")
    server.open()
    clients["twin"].method.pack = dict
    server.one_round()
    assert server.members["twin"].standing.startswith("stopped") and clients["c0"].method.twins
    for _ in range(2):
        server.one_round()
        assert not any(key.startswith("own.") for key in clients["c0"].method.pack())
    assert server.members["c0"].standing == server.members["c1"].standing == "ok"


def test_colora_refuses_factors_of_a_client_without_a_twin(tmp_path: Path) -> None:
    server, clients = build(trio(method="colora", rounds=1), tmp_path / "run")
    server.open()
    pack = clients["c1"].method.pack
    clients["c1"].method.pack = lambda: pack() | {"own.0.A": torch.zeros(1)}
    server.one_round()
    assert "may not send factors" in server.members["c1"].standing
    assert server.members["c0"].standing == server.members["c2"].standing == "ok"


def test_colora_aligns_on_as_many_sentences_as_it_is_told(tmp_path: Path) -> None:
    server, clients = build(trio(method={"name": "colora", "sentences": 25}), tmp_path / "run")
    server.open()  # the kit has 60 anchors: every third is 20 of them
    rows = {len(t) for key, t in server.method.guide.items() if key.startswith("rows.")}
    words = sum(len(c.split()) for c in clients["c0"].context.anchors[::3])
    assert len(rows) == 1 and 0.5 * words < rows.pop() < 2 * words
    server.one_round()
    assert all(member.standing == "ok" for member in server.members.values())
