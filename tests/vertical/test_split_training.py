"""Training that is split over messages is training in one graph, whoever comes when; and a run may stop anywhere."""

from __future__ import annotations

import math
import os

import pytest
import torch
from safetensors.torch import load_file, save
from vertical.recorder import recorded
from vertical.tables import PARTIES, config, planted

from h2tune.protocol.codec import Payload, decode
from h2tune.store import ClientStore
from h2tune.transport.base import Absent
from h2tune.utils.files import StoreError
from h2tune.utils.seeds import derive
from h2tune.vertical.active import Active
from h2tune.vertical.encoder import batch_rows, make_encoder
from h2tune.vertical.evaluation import evaluate
from h2tune.vertical.federation import fit, load_parties, run
from h2tune.vertical.passive import Passive

STEPS = 20


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def in_one_graph(active: Active, parties: dict[str, Passive]) -> None:
    """The same steps with all encoders in one autograd graph; no message anywhere."""
    settings = active.config
    optimisers = [active.optimiser, *(p.optimiser for p in parties.values())]
    active.sums = torch.zeros_like(active.top.mu)
    for step in range(STEPS):
        rows = batch_rows(len(active.labels.y), settings.training.batch, settings.seed, "batch", 1, step)
        z = {}
        for name, party in parties.items():
            x, here = party.aligned_rows(rows)
            z[name] = party.encoder(x) * here
        generator = torch.Generator().manual_seed(derive(settings.seed, "step", 1, step, 0))
        loss = active.batch_loss(rows, z, generator)
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()


def test_twenty_steps_over_messages_equal_one_graph():
    settings = config(rounds=1, training={"steps": STEPS, "local_steps": 0})
    frames = planted()
    frames["shop"] = (frames["shop"][0].iloc[7:], frames["shop"][1])  # seven aligned people are not at `shop`
    split, parties = recorded(settings, frames)
    split.run()
    whole, others = recorded(settings, frames)
    active = whole.open()
    in_one_graph(active, {name: r.party for name, r in others.items()})
    assert split.active is not None
    assert same(split.active.encoder, active.encoder)
    for name in others:
        assert same(parties[name].party.encoder, others[name].party.encoder)
    first = make_encoder(4, 16, 8, derive(0, "encoder", "bank"))
    assert not same(first, active.encoder)
    # Locally nothing was trained, so the slices that came back are those that were sent.
    assert torch.equal(split.active.top.nu, active.top.nu)


def test_identical_parties_have_identical_means():
    settings, frames = config(rounds=1), planted()
    frames["shop"] = (frames["clinic"][0], frames["clinic"][1])
    federation, parties = recorded(settings, frames)
    active = federation.open()
    # A party's first weights follow from its name; here the two are to be the same party twice.
    parties["shop"].party.encoder.load_state_dict(parties["clinic"].party.encoder.state_dict())
    with torch.no_grad():
        active.top.nu[2] = active.top.nu[1]
    active.config = active.config.model_copy(
        update={"training": settings.training.model_copy(update={"dropout": 0.0})}
    )
    active.top.training_config = active.config.training
    active.one_round()
    clinic, shop = (parties[name].messages("step")[-1].payload.tensors["z"] for name in ("clinic", "shop"))
    assert torch.equal(clinic, shop)
    means = [parties[name].messages("local", "down")[-1].payload.tensors["mu"] for name in ("clinic", "shop")]
    assert torch.equal(*means) and bool((means[0].norm(dim=1) > 0).all())


def test_a_step_waits_for_no_disk(tmp_path, monkeypatch: pytest.MonkeyPatch):
    stores = {name: ClientStore(tmp_path / name) for name in PARTIES}
    federation, _ = recorded(config(rounds=2), planted(), stores=stores)
    active = federation.open()
    kinds, ask, flushed = [""], federation.exchange.ask, os.fsync
    written: list[str] = []

    def noted(kind: str, payloads):
        kinds[0] = kind
        return ask(kind, payloads)

    monkeypatch.setattr(federation.exchange, "ask", noted)
    monkeypatch.setattr(os, "fsync", lambda file: (written.append(kinds[0]), flushed(file)))
    active.one_round()
    assert set(written) == {"local"}


def test_stale_updates_are_more_updates_of_one_exchange():
    once = fit(config(rounds=1), load_parties(config(), planted()))
    settings = config(rounds=1, training={"stale": 3})
    federation, parties = recorded(settings, planted())
    active = federation.run()
    assert len(parties["shop"].messages("step")) == settings.training.steps
    steps = {int(v["step"]) for v in active.optimiser.state_dict()["state"].values()}
    assert 3 * settings.training.steps in steps
    assert not same(once.encoder, active.encoder)


def test_the_order_of_parties_and_rows_changes_nothing():
    frames = planted()
    first = fit(config(), load_parties(config(), frames))
    turned = config(parties=[{"name": n, "train": "-", "test": "-"} for n in reversed(PARTIES)])
    shuffled = {n: (train.sample(frac=1, random_state=3), test) for n, (train, test) in reversed(list(frames.items()))}
    second = fit(turned, load_parties(turned, shuffled))
    assert same(first.encoder, second.encoder) and same(first.top, second.top)
    assert first.history[-1]["test"] == second.history[-1]["test"]


def test_the_order_in_which_answers_arrive_changes_nothing():
    class Backwards:
        def __init__(self, clients):
            self.clients = clients

        def exchange(self, requests, fresh=False):
            yield from [(name, self.clients[name].handle(data)) for name, data in reversed(requests.items())]

        def returned(self):
            return []

        def revoked(self):
            return []

    federation, _ = recorded(config(), planted())
    other, parties = recorded(config(), planted())
    other.exchange.session.transport = Backwards(parties)
    first, second = federation.run(), other.run()
    assert same(first.encoder, second.encoder) and same(first.top, second.top)


@pytest.mark.parametrize("kind", ["step", "local"])
def test_a_run_that_was_cut_off_goes_on_bit_for_bit(tmp_path, kind: str):
    settings, frames = config(training={"average": 0.9}), planted()
    whole = run(settings, tmp_path / "whole", frames=frames)
    asked = 0
    answer = Passive.handle

    class Cut(Exception):
        pass

    def until_the_cut(self: Passive, data: bytes) -> bytes:
        nonlocal asked
        found = answer(self, data)
        if f'"kind\\":\\"{kind}\\"'.encode() in data and self.name == "shop" and self.round == 4:
            asked += 1
            if asked == (3 if kind == "step" else 1):
                raise Cut
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Passive, "handle", until_the_cut)
        with pytest.raises(Cut):
            run(settings, tmp_path / "cut", frames=frames)
    metrics = run(settings, tmp_path / "cut", frames=frames, resume=True)
    assert metrics["rounds"] == settings.rounds and metrics["bytes"] == whole["bytes"]
    for part in ("server/top.safetensors", "clients/shop/encoder.safetensors", "clients/bank/encoder.safetensors"):
        assert (tmp_path / "cut" / part).read_bytes() == (tmp_path / "whole" / part).read_bytes()


class Flaky:
    """A transport that loses a party in a step; it is back when somebody waits for it, or never."""

    def __init__(self, clients, party: str, round: int, returns: bool) -> None:
        self.clients, self.party, self.round, self.returns = clients, party, round, returns
        self.gone = self.lost = False

    def exchange(self, requests, fresh=False):
        for name, data in requests.items():
            if name == self.party and not self.lost and self.clients[name].party.round == self.round:
                self.gone = self.lost = True
            yield name, Absent("no answer") if name == self.party and self.gone else self.clients[name].handle(data)

    def wait(self, names, count, first=False):
        self.gone = self.gone and not self.returns
        return self.returns

    def returned(self):
        return [] if self.gone else [self.party]

    def revoked(self):
        return []

    def dismiss(self, name, reason):
        raise AssertionError(f"{name}: {reason}")


@pytest.mark.parametrize("returns", [True, False])
def test_a_party_that_is_lost_in_a_round(tmp_path, returns: bool):
    whole = fit(config(), load_parties(config(), planted()))
    stores = {name: ClientStore(tmp_path / name) for name in PARTIES}
    federation, parties = recorded(config(), planted(), stores=stores)
    federation.exchange.session.transport = Flaky(parties, "shop", 3, returns)
    active = federation.run()
    assert active.round == config().rounds
    assert same(whole.encoder, active.encoder) == returns
    assert ("shop" in federation.exchange.here) == returns
    if not returns:
        assert active.history[-1]["test"]["balanced"] > 0.5


class Away(Flaky):
    """A transport without a party in one round, whoever waits; it is back in the next."""

    asked = 0

    def exchange(self, requests, fresh=False):
        for name, data in requests.items():
            away = name == self.party and decode(data).kind == "step" and decode(data).round == self.round
            self.lost = self.lost or away
            yield name, Absent("no answer") if away else self.clients[name].handle(data)

    def wait(self, names, count, first=False):
        return False

    def returned(self):
        self.asked += self.lost
        return [self.party] if self.asked > 2 else []  # not when the round begins again, but when the next one does


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_party_that_was_away_after_the_best_round_ends_with_its_networks_of_that_round(tmp_path, seed: int):
    settings = config(rounds=5, seed=seed, evaluation={"every": 1, "validation": 0.4})
    frames = planted(seed=seed, spread=2.0)
    best = fit(settings, load_parties(settings, frames)).best
    if best == settings.rounds:
        settings = settings.model_copy(update={"rounds": best + 2})
    stores = {name: ClientStore(tmp_path / name) for name in PARTIES}
    federation, parties = recorded(settings, frames, stores=stores)
    federation.exchange.session.transport = Away(parties, "shop", best + 1, True)
    kept: dict[int, dict[str, torch.Tensor]] = {}

    def keep(record: dict) -> None:
        kept[record["round"]] = {n: t.clone() for n, t in parties["shop"].party.encoder.state_dict().items()}

    active = federation.run(keep)
    rounds = {message.round for message in parties["shop"].messages("step")}
    assert rounds == set(range(1, settings.rounds + 1)) - {best + 1}
    found = parties["shop"].party.encoder.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in kept[active.best].items())
    # The file says which round it is of, for a party that is started again.
    again = Passive(settings, load_parties(settings, frames)["shop"], "", stores["shop"])
    again.answer("rejoin", settings.rounds, Payload(meta={"round": settings.rounds}))
    again.answer("finish", settings.rounds, Payload(meta={"best": active.best}))
    assert all(torch.equal(again.encoder.state_dict()[name], tensor) for name, tensor in found.items())
    # One of an earlier version does not; nobody can know whether it is the round that was chosen.
    path = tmp_path / "shop" / "best.safetensors"
    path.write_bytes(save({name: tensor for name, tensor in load_file(path).items() if name != "round"}))
    with pytest.raises(StoreError, match=r"written by an earlier version .* begin anew with another --out"):
        again.answer("rejoin", settings.rounds, Payload(meta={"round": settings.rounds}))


@pytest.mark.parametrize("batch", [2, 3])
def test_a_batch_of_validation_rows_alone_trains_nothing(batch: int):
    settings = config(rounds=3, training={"batch": batch, "steps": 30}, evaluation={"every": 1, "validation": 0.6})
    active = fit(settings, load_parties(settings, planted()))
    assert all(math.isfinite(record["loss"]) for record in active.history)
    assert any(record["loss"] > 0 for record in active.history)


def by_hand(rounds: list[dict[str, torch.Tensor]], keep: float) -> dict[str, torch.Tensor]:
    """The average of weights over rounds: each round keeps a share of the last one, the first rounds count alike."""
    found = rounds[0]
    for number, now in enumerate(rounds[1:], 2):
        share = max(1 - keep, 1 / number)
        found = {name: (1 - share) * found[name] + share * now[name] for name in now}
    return found


def test_averaged_weights_predict_and_change_no_training():
    plain, parties = recorded(config(), planted())
    active = plain.open()
    rounds: dict[str, list[dict[str, torch.Tensor]]] = {"bank": [], "top": [], "shop": []}
    for _ in range(config().rounds):
        active.one_round()
        for name, part in (("bank", active.encoder), ("top", active.top), ("shop", parties["shop"].party.encoder)):
            rounds[name].append({key: value.detach().clone() for key, value in part.named_parameters()})
    averaging, others = recorded(config(training={"average": 0.6}), planted())
    averaged = averaging.open()
    for _ in range(config().rounds):
        averaged.one_round()
    assert same(averaged.encoder, active.encoder) and same(averaged.top, active.top)
    assert same(others["shop"].party.encoder, parties["shop"].party.encoder)
    before = evaluate(averaged)["test"]
    averaged.finish()
    for name, part in (("bank", averaged.encoder), ("top", averaged.top), ("shop", others["shop"].party.encoder)):
        expected, found = by_hand(rounds[name], 0.6), dict(part.named_parameters())
        assert all(torch.allclose(found[key], value, atol=1e-6) for key, value in expected.items())
        assert any(not torch.allclose(found[key], value, atol=1e-3) for key, value in rounds[name][-1].items())
    assert evaluate(averaged)["test"] == before  # what was shown before the end is what stays
