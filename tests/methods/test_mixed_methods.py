"""Methods for different models: their rules against plain NumPy, and what they promise in whole federations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from federations import build, equal, outcome, small
from safetensors.torch import load_file
from torch import Tensor

from h2tune import federation
from h2tune.core.client_core import CoreShape
from h2tune.core.relation import depth_relation
from h2tune.core.slots import layout_of
from h2tune.frames.consensus import factorise
from h2tune.methods.celora import mix, mixture_weights
from h2tune.methods.colora_align import align_reader, align_writer, anchor_blocks, relevance, whitened
from h2tune.methods.fedsb import sign_step
from h2tune.methods.nearest_tokens import NearestTokens
from h2tune.methods.published import PublishedCore
from h2tune.methods.registry import Method, MethodError, resolve_method
from h2tune.store import RunStore

NAMES = ["celora", "colora", "crosslora", "fedmkt", "fedsb", "h2tune-published", "pfedlora"]
SEEDS = pytest.mark.parametrize("seed", range(3))


def trio(**changes: Any) -> Any:
    settings = {
        "rounds": 2,
        "training": {"steps": 3, "batch_size": 4, "learning_rate": 0.01},
        "evaluation": {"every": 9},
    }
    return small(clients=3, **(settings | changes))


def spec(name: str) -> Any:
    return {"name": name, "sentences": 6} if name == "fedmkt" else name


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


def edit_distance(a: str, b: str) -> int:
    """Levenshtein's, cell by cell."""
    before = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        now = [i]
        for j, y in enumerate(b, 1):
            now.append(min(before[j] + 1, now[-1] + 1, before[j - 1] + (x != y)))
        before = now
    return before[-1]


def test_fedmkt_translates_tokens_by_edit_distance() -> None:
    assert [edit_distance(*pair) for pair in (("", "ab"), ("kitten", "sitting"), ("same", "same"))] == [2, 3, 0]
    known = NearestTokens({" the": 5, " then": 3, "a": 1})
    assert known.nearest(" the") == 5  # an exact one is taken
    assert known.nearest(" thenn") == 3
    assert known.nearest("b") == 1


@SEEDS
def test_fedmkt_finds_the_same_token_as_distance_by_distance(seed: int) -> None:
    """All spellings of a few letters collide often, so ties are met; ids are not in the order of the spellings."""
    rng = np.random.default_rng(seed)
    words = {"".join(rng.choice(list("abü 中"), rng.integers(0, 6))) for _ in range(120)}
    known = dict(zip(sorted(words), rng.permutation(len(words)).tolist(), strict=True))
    tokens = NearestTokens(known)
    for _ in range(60):
        asked = "".join(rng.choice(list("abcü 中"), rng.integers(0, 9)))
        want = min(known.items(), key=lambda item: (asked != item[0], edit_distance(asked, item[0]), item[1]))[1]
        assert tokens.nearest(asked) == want


def test_fedmkt_target_of_an_equal_tokenizer_is_the_teachers_distribution(tmp_path: Path) -> None:
    experiment = small(clients=2, same_model=True, method=spec("fedmkt"), rounds=1)
    server, clients = build(experiment, tmp_path / "run")
    server.open()
    method = clients["c0"].method
    sent = method._predictions(1)
    received = {f"c1/{k}": t for k, t in sent.items()}
    sentence = method.public(1)[0]
    targets = method._target("c1", 0, sentence, received)
    assert set(targets) == {i for i, end in enumerate(sentence["ends"]) if end}
    logits = clients["c0"].context.base.peft(input_ids=torch.tensor([sentence["ids"]])).logits[0]
    for position, target in targets.items():
        top = logits[position].topk(32)
        want = torch.zeros_like(target)
        # Tokens with the same spelling share an id after translation; compare by spelling.
        for i, share in zip(top.indices.tolist(), top.values.softmax(-1).tolist(), strict=True):
            want[method._own.known[method._spelling(i)]] += share
        torch.testing.assert_close(target, want, atol=2e-3, rtol=0)


def test_fedmkt_leaves_out_logits_that_no_token_has(tmp_path: Path) -> None:
    """As of models whose output is wider than their tokenizer, so that its size is a round number."""
    _, clients = build(small(clients=2, same_model=True, method=spec("fedmkt"), rounds=1), tmp_path / "run")
    client = clients["c0"]
    client.method.join()
    method, count = client.method, len(client.context.tokenizer)
    sentence = method.public(1)[0]
    model = client.context.base.activate(client.context.adapter)

    class Wide:
        def __init__(self, logits: Tensor) -> None:
            self.logits = torch.cat([logits, torch.full((*logits.shape[:2], 7), 1e3)], dim=-1)

    plain, wide = (
        method._public_loss(
            lambda batch, kind=kind: kind(model(**batch).logits), sentence, {1: torch.ones(count) / count}
        )
        for kind in (lambda logits: type("Plain", (), {"logits": logits}), Wide)
    )
    assert torch.equal(plain, wide)


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


def test_fedmkt_has_no_words_to_exchange_where_there_is_a_head(tmp_path: Path) -> None:
    for part in ("train", "test"):
        rows_of = "".join(f"{part} was {'good' if i % 2 else 'bad'} {i}\t{i % 2}\n" for i in range(60))
        (tmp_path / f"{part}.tsv").write_text("sentence\tlabel\n" + rows_of)
    experiment = small(clients=2, method="fedmkt")
    rows = [experiment.clients[0], experiment.clients[1].model_copy(
        update={"task": "sst2", "train": str(tmp_path / "train.tsv"), "test": str(tmp_path / "test.tsv"), "validation": None})]  # fmt: skip
    with pytest.raises(MethodError, match="c1: fedmkt exchanges predictions of words"):
        federation.run(experiment.model_copy(update={"clients": rows}), tmp_path / "run")


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


def test_fedmkt_reads_public_sentences_of_a_single_token(tmp_path: Path) -> None:
    """There is no next token to predict in them."""
    experiment = small(clients=2, same_model=True, method={"name": "fedmkt", "sentences": 4}, rounds=2)
    server, clients = build(experiment, tmp_path / "run", anchors=["a", "b", "a", "b"] * 10)
    assert {len(s["ids"]) for s in clients["c0"].method.public(1)} == {1}
    server.run()
    assert {member.standing for member in server.members.values()} == {"ok"}
    assert all(member.final for member in server.members.values())


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
