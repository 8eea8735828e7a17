"""What H2Tune's options promise: private coordinates, accepting what fits, frames that stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from federations import build, small

from h2tune.methods.h2tune import H2TuneClient
from h2tune.protocol.codec import Payload


def client_of(tmp_path: Path, **method: Any) -> tuple[Any, H2TuneClient]:
    experiment = small(method={"name": "h2tune", **method}, rounds=3, training={
        "steps": 6, "batch_size": 8, "learning_rate": 0.01, "core_learning_rate": 0.01})  # fmt: skip
    server, clients = build(experiment, tmp_path / "run")
    server.open()
    return server, clients["c0"].method


def test_private_coordinates_are_beside_the_frames_and_never_sent(tmp_path: Path) -> None:
    server, method = client_of(tmp_path, private=3, train_factors=False)
    assert method.adapter_rank == 7 and method.shared_rank == 4
    frames = [
        (layer.trilora_A[method.context.adapter][:4].clone(), layer.trilora_B[method.context.adapter][:, :4].clone())
        for layer in method.layers
    ]
    assert all(not layer.trilora_B[method.context.adapter][:, 4:].any() for layer in method.layers)
    server.one_round()
    for layer, (a, b) in zip(method.layers, frames, strict=True):
        assert torch.equal(layer.trilora_A[method.context.adapter][:4], a) and torch.equal(
            layer.trilora_B[method.context.adapter][:, :4], b
        )
        assert layer.trilora_B[method.context.adapter][:, 4:].any()
        assert (
            not layer.trilora_T[method.context.adapter][..., 4:, :].any()
            and not layer.trilora_T[method.context.adapter][..., 4:].any()
        )
    assert method.core.S.shape[-1] == 4 and method.core.S.any()
    assert sum(t.numel() for t in method.pack().values()) <= method.core.S.numel() + 8


@pytest.mark.parametrize("frames", ["weights", "random"])
def test_other_frames_start_unchanged_and_learn(frames: str, tmp_path: Path) -> None:
    server, method = client_of(tmp_path, frames=frames)
    context = method.context
    base = context.score(context.data.validation, untouched=True).nats
    assert context.validation_loss() == pytest.approx(base, abs=1e-6)
    for _ in range(3):
        server.one_round()
    losses = [sum(r["loss"].values()) for r in server.members["c0"].rounds]
    assert losses[-1] < losses[0]


def test_a_client_accepts_what_its_validation_likes(tmp_path: Path) -> None:
    server, method = client_of(tmp_path, accept="validation")
    server.one_round()
    own = method.core.S.detach().clone()
    good = server.method.download("c0")
    method.receive_what_fits(good, ())
    losses = {}
    received = server.method.S
    for share in (0.0, 0.5, 1.0):
        method.core.S.data.copy_(torch.lerp(own, received, share))
        method.core.write(method.middles)
        losses[share] = method.context.validation_loss()
    assert losses[method.accepted] == min(losses.values())
    # A ruined core is not taken.
    method.core.S.data.copy_(own)
    method.core.write(method.middles)
    server.method.S = torch.randn_like(server.method.S) * 50
    method.receive_what_fits(server.method.download("c0"), ())
    assert method.accepted == 0.0 and torch.equal(method.core.S.detach(), own)


def test_a_core_that_nobody_trains_any_more_is_not_chosen_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of three rounds of six updates the core has the first four; its last change arrives in round 2.
    server, method = client_of(tmp_path, accept="validation", alternation="rounds", shared_part=0.25)
    chosen: list[int] = []
    whole = H2TuneClient.receive_what_fits

    def counted(self: H2TuneClient, *args: Any) -> None:
        chosen.extend([self.context.round] * (self is method))
        whole(self, *args)

    monkeypatch.setattr(H2TuneClient, "receive_what_fits", counted)
    server.one_round()
    server.one_round()
    own, known = method.core.S.detach().clone(), method.accepted
    server.method.S = torch.randn_like(server.method.S)
    server.one_round()
    assert chosen == [1, 2]
    assert torch.equal(method.core.S.detach(), own) and method.accepted == known


@pytest.mark.parametrize("missed", ["late", "sampled"])
def test_who_missed_the_last_change_of_the_core_chooses_when_it_is_back(
    missed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The core learns in round 1 alone; whoever takes part later for the first time has not seen it yet."""
    chosen: dict[str, list[int]] = {}
    whole = H2TuneClient.receive_what_fits

    def counted(self: H2TuneClient, *args: Any) -> None:
        chosen.setdefault(self.context.name, []).append(self.context.round)
        whole(self, *args)

    monkeypatch.setattr(H2TuneClient, "receive_what_fits", counted)
    method = {"name": "h2tune", "accept": "validation", "alternation": "rounds", "shared_part": 0.17}
    changes: dict[str, Any] = {"participation": 0.34} if missed == "sampled" else {}
    experiment = small(clients=3, same_model=True, rounds=6, method=method, training={"steps": 1}, **changes)
    if missed == "late":
        late = experiment.clients[1].model_copy(update={"joins": 4})
        experiment = experiment.model_copy(update={"clients": [experiment.clients[0], late, experiment.clients[2]]})
    server, _ = build(experiment, tmp_path / "run")
    server.run()
    took_part = {name: [r["round"] for r in member.rounds] for name, member in server.members.items()}
    for name, rounds in took_part.items():
        # Its first round, and the next one if the core has learnt since: in round 1.
        expected = rounds[:2] if rounds and rounds[0] == 1 else rounds[:1]
        assert chosen.get(name, []) == expected, (name, rounds)


def test_what_was_accepted_outlives_a_restart(tmp_path: Path) -> None:
    server, method = client_of(tmp_path, accept="validation")
    server.one_round()
    method.accepted, method.chosen = -1.0, 3
    kept = method.state()
    method.receive(server.method.download("c0"))
    method.chosen = 4
    assert method.accepted == 1.0
    method.load_state(kept)
    assert (method.accepted, method.chosen) == (-1.0, 3)
    method.load_state({name: tensor for name, tensor in kept.items() if name != "choice"})  # of an earlier version


@pytest.mark.parametrize("name", ["h2tune", "h2tune-unshared"])
@pytest.mark.parametrize("alternation", ["step", "rounds"])
def test_a_client_that_chooses_runs_to_the_end(name: str, alternation: str, tmp_path: Path) -> None:
    method = {"name": name, "alternation": alternation, "accept": "validation", "shared_part": 0.25}
    experiment = small(clients=2, rounds=5, method=method, training={"steps": 1, "batch_size": 2})
    server, clients = build(experiment, tmp_path / "run")
    server.run()
    assert all(torch.isfinite(client.method.core.S).all() for client in clients.values())
    assert all(member.final for member in server.members.values())


@pytest.mark.parametrize("harms", [True, False])
def test_without_averaging_a_client_may_leave_its_own_core_out_as_it_may_with_it(
    harms: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = {"name": "h2tune-unshared", "accept": "validation", "alternation": "step"}
    server, clients = build(small(clients=2, rounds=2, method=method), tmp_path / "run")
    server.open()
    server.one_round()
    client = clients["c0"].method
    kept, context = client.core.S.detach().clone(), client.context
    assert kept.any()
    monkeypatch.setattr(context, "validation_loss", lambda among: float(client.core.S.any()) * (1 if harms else -1))
    context.round = 2
    client.download(2, Payload())
    assert torch.equal(client.core.S, torch.zeros_like(kept) if harms else kept)


@pytest.mark.parametrize("trained", [True, False])
def test_the_relation_is_trained_only_where_it_is_asked_for(trained: bool, tmp_path: Path) -> None:
    server, method = client_of(tmp_path, train_relation=trained)
    held = [any(p is method.core.relation.logits for p in method.groups[g].parameters) for g in method.groups]
    assert any(held) == trained
    server.one_round()
    assert method.core.relation.logits.requires_grad == trained
