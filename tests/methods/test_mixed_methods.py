"""Methods for different models: their rules against plain NumPy, and what they promise in whole federations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from federations import build, equal, outcome, small
from methods.three_models import spec, trio
from safetensors.torch import load_file
from torch import Tensor

from h2tune import federation
from h2tune.core.client_core import CoreShape
from h2tune.core.relation import depth_relation
from h2tune.core.slots import layout_of
from h2tune.methods.celora import mix, mixture_weights
from h2tune.methods.fedsb import sign_step
from h2tune.methods.published import PublishedCore
from h2tune.methods.registry import Method, MethodError, resolve_method
from h2tune.store import RunStore

NAMES = ["celora", "colora", "crosslora", "fedmkt", "fedsb", "h2tune-published", "pfedlora"]
SEEDS = pytest.mark.parametrize("seed", range(3))


# ---- rules


def published_core(keep: float) -> PublishedCore:
    from families import build as family

    layout = layout_of(family("llama-tied"))  # three blocks on four depths: the middle one reads two
    shape = CoreShape(4, 4)
    core = PublishedCore(shape, layout, depth_relation(4, layout.depth), keep, "entries", True)
    with torch.no_grad():
        core.S.normal_()
        core.D.normal_()
    return core


@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_published_goes_down_by_p_and_up_by_its_transpose(keep: float) -> None:
    core = published_core(keep)
    p, s, d = (t.detach().double().numpy() for t in (core.relation(), core.S, core.D))
    theta = np.einsum("gl,gjab->ljab", p, s) + d
    mask = np.ones_like(theta, dtype=bool) if core.scores is None else core.scores.mask().numpy()
    assert mask.sum(axis=(-2, -1)).max() == mask.sum(axis=(-2, -1)).min() == round(keep**2 * 16)
    np.testing.assert_allclose(core.middle().detach(), theta * mask, atol=1e-6)
    upload, held = core.upload()
    np.testing.assert_allclose(upload, np.einsum("gl,ljab->gjab", p, theta * mask), atol=1e-6)
    assert (held.numpy() == (np.einsum("gl,ljab->gjab", p > 1e-6, mask.astype(float)) > 0)).all()
    # P and the scores get gradients from the task; the released code's top-k on .data gave the scores none.
    core.middle().square().sum().backward()
    assert core.relation.logits.grad.abs().sum() > 0 and core.D.grad.abs().sum() > 0
    assert core.scores is None or core.scores.M.grad.abs().sum() > 0


@SEEDS
def test_celora_mixes_by_cosine_over_what_both_cover(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cores, held = rng.normal(size=(3, 2, 2, 4, 4)), rng.random(size=(3, 2, 2, 4, 4)) < 0.7
    weights = mixture_weights(torch.tensor(cores), torch.tensor(held), 0.5).numpy()
    want = np.zeros((3, 3))
    for k in range(3):
        for j in range(3):
            both = held[k] & held[j]
            a, b = cores[k][both], cores[j][both]
            want[k, j] = np.exp(a @ b / np.linalg.norm(a) / np.linalg.norm(b) / 0.5)
    want /= want.sum(1, keepdims=True)
    np.testing.assert_allclose(weights, want, rtol=1e-9)
    mixed = mix(torch.tensor(cores), torch.tensor(held), torch.tensor(weights)).numpy()
    for k in range(3):
        num = sum(want[k, j] * cores[j] * held[j] for j in range(3))
        den = sum(want[k, j] * held[j] for j in range(3))
        np.testing.assert_allclose(mixed[k][den > 0], (num[den > 0] / den[den > 0]), rtol=1e-9)
        assert not mixed[k][den == 0].any()


@SEEDS
def test_fedsb_starts_from_the_best_approximation_of_a_sign_step(seed: int) -> None:
    g = np.random.default_rng(seed).normal(size=(9, 6))
    a, b, r = (t.double().numpy() for t in sign_step(torch.tensor(g), 3, 0.01))
    u, s, vt = np.linalg.svd(-0.01 * np.sign(g))
    np.testing.assert_allclose(b @ r @ a, u[:, :3] * s[:3] @ vt[:3], atol=1e-6)
    np.testing.assert_allclose(a @ a.T, np.eye(3), atol=1e-5)
    np.testing.assert_allclose(b.T @ b, np.eye(3), atol=1e-5)


# ---- whole federations


def test_every_method_is_tested_somewhere() -> None:
    mixed = {n for n, m in Method.registry.items() if not m.one_architecture and not n.startswith("toy")}
    assert mixed == {*NAMES, "bias", "h2tune", "h2tune-unshared", "lada", "lada-published", "local"}
    assert all(m.source and m.says for n, m in Method.registry.items() if not n.startswith("toy"))


@pytest.mark.parametrize("name", NAMES)
def test_models_start_unchanged_and_the_loss_falls(name: str, tmp_path: Path) -> None:
    experiment = trio(method=spec(name), rounds=6, training={"steps": 8, "batch_size": 8, "learning_rate": 0.01,
                                                            "core_learning_rate": 0.01})  # fmt: skip
    server, clients = build(experiment, tmp_path / "run")
    server.open()
    for client in clients.values():
        ids = torch.tensor([client.context.data.train.encoded[0].input_ids])
        with torch.no_grad():
            ours = client.context.base.activate(client.context.adapter).eval()(input_ids=ids).logits
            with client.context.base.peft.disable_adapter():
                theirs = client.context.base.peft(input_ids=ids).logits
        if name != "fedsb":  # Fed-SB starts with R_0, a first step, when round 1 begins
            assert torch.equal(ours, theirs), name
    while server.round < 6:
        server.one_round()
    for name_of, member in server.members.items():
        first, last = (member.rounds[i]["loss"] for i in (0, -1))
        assert min(last.values()) < min(first.values()), (name, name_of, first, last)


@pytest.mark.parametrize("name", NAMES)
def test_survives_a_kill(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, killed, commit = tmp_path / "whole", tmp_path / "killed", RunStore.commit

    class Killed(BaseException):
        pass

    def dying(self: RunStore, *args: Any) -> None:
        commit(self, *args)
        raise Killed

    def run_and_kill(resume: bool) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(RunStore, "commit", dying)
            with pytest.raises(Killed):
                federation.run(trio(method=spec(name)), killed, resume=resume)

    run_and_kill(resume=False)
    federation.run(trio(method=spec(name)), whole)
    run_and_kill(resume=True)
    federation.run(trio(method=spec(name)), killed, resume=True)
    assert equal(outcome(whole), outcome(killed))
    for path in sorted(whole.glob("clients/*/state-000002.safetensors")):
        assert equal(load_file(path), load_file(killed / path.relative_to(whole)))


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("crosslora", "fedmkt")])
def test_equal_clients_stay_equal(name: str, tmp_path: Path) -> None:
    experiment = small(clients=2, same_model=True, method=spec(name), rounds=2, training={"steps": 3, "batch_size": 4})
    server, clients = build(experiment, tmp_path / "run")
    first, second = clients.values()
    second.context.data_seed = first.context.data_seed = "same"
    second.context.data, second.context.task = first.context.data, first.context.task
    server.open()
    for _ in range(2):
        server.one_round()
    shared = [dict(c.method.pack()) if hasattr(c.method, "pack") else c.method.adapter for c in clients.values()]
    if isinstance(shared[0], Tensor):
        assert torch.equal(shared[0], shared[1])
    else:
        assert equal(shared[0], shared[1])
    downloads = [server.method.download(n).tensors for n in clients]
    for key, value in downloads[0].items():
        torch.testing.assert_close(value, downloads[1][key])


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("crosslora", "fedmkt")])
def test_only_small_matrices_cross_between_models(name: str, tmp_path: Path) -> None:
    """With one client for each base, no factor A or B leaves a client; sizes are those of R x R matrices."""
    server, clients = build(trio(method=name), tmp_path / "run")
    server.open()
    seen: dict[str, dict[str, Tensor]] = {}
    for client in clients.values():
        train = client.method.train

        def watching(*args: Any, client: Any = client, train: Any = train) -> Any:
            payload = train(*args)
            seen[client.name] = payload.tensors
            return payload

        client.method.train = watching
    server.one_round()
    for client in clients.values():
        most = 7 * max(c.context.layout.depth for c in clients.values()) * (4 * 4 + 4)
        assert 0 < sum(t.numel() for t in seen[client.name].values()) <= most + 64
        widths = {d for pair in client.context.base.maps(client.context.layout) for d in pair[:2]} - {4}
        assert not any(d in widths for t in seen[client.name].values() if t.ndim > 1 for d in t.shape)


@pytest.mark.parametrize("name", NAMES)
def test_a_malformed_update_is_refused_and_the_round_goes_on(name: str, tmp_path: Path) -> None:
    server, clients = build(trio(method=spec(name)), tmp_path / "run")
    train = clients["c1"].method.train

    def tampering(*args: Any) -> Any:
        payload = train(*args)
        key = sorted(payload.tensors)[-1]
        payload.tensors[key] = payload.tensors[key].flatten()[:-1].clone()
        return payload

    clients["c1"].method.train = tampering
    server.open()
    server.one_round()
    assert server.members["c1"].standing.startswith("stopped: ") and "c1" in server.members["c1"].standing
    assert server.members["c0"].standing == server.members["c2"].standing == "ok"


def test_twins_share_their_bases_in_fedsb_and_colora(tmp_path: Path) -> None:
    for name in ("fedsb", "colora"):
        server, clients = build(small(clients=2, same_model=True, method=name, rounds=1), tmp_path / name)
        server.open()
        for one, two in zip(*(c.method.factors for c in clients.values()), strict=True):
            assert torch.equal(one, two), name


@pytest.mark.parametrize("keeps", [(0.5, 1.0), (1.0, 0.5)])
def test_fedsb_hands_the_leading_directions_to_who_keeps_less(keeps: tuple[float, float], tmp_path: Path) -> None:
    config = small(clients=2, same_model=True, method="fedsb", rounds=2)
    rows = [c.model_copy(update={"keep": keep}) for c, keep in zip(config.clients, keeps, strict=True)]
    server, clients = build(config.model_copy(update={"clients": rows}), tmp_path / "run")
    server.open()
    small_one, whole = sorted((c.method for c in clients.values()), key=lambda m: m.adapter_rank)
    assert (small_one.adapter_rank, whole.adapter_rank) == (2, 4)
    for part, all_of_it in zip(small_one.factors, whole.factors, strict=True):
        assert torch.equal(part, all_of_it[:2] if part.shape[0] == 2 else all_of_it[:, :2])
    server.one_round()
    server.one_round()
    assert {member.standing for member in server.members.values()} == {"ok"}


def test_fedsb_has_no_private_coordinates() -> None:
    """Its bases are all of the adapter: nothing would set what lies beside them."""
    with pytest.raises(MethodError, match="private"):
        resolve_method({"name": "fedsb", "private": 2})


@pytest.mark.parametrize(
    "setting", [{"proximal": 0.1}, {"ridge": 0.1}, {"core_rule": "gradient"}, {"accept": "validation"}], ids=str
)
def test_as_published_refuses_what_acts_on_a_trained_core(setting: dict[str, Any]) -> None:
    """Theta is trained there and S only received."""
    name = {"name": "h2tune-published"}
    with pytest.raises(MethodError, match=next(iter(setting))):
        resolve_method(name | setting)
    assert resolve_method(name | {"proximal": 0, "ridge": 0.0, "core_rule": "adamw", "accept": "always"})
