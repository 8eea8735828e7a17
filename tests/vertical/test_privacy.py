"""What crosses: only what the list says, and what an attacker makes of it."""

from __future__ import annotations

import hashlib
import hmac
import math
from pathlib import Path

import pytest
import torch
from vertical.recorder import Recorder, recorded
from vertical.tables import PARTIES, config, planted

from h2tune.errors import ProtocolError
from h2tune.protocol.codec import Payload, decode
from h2tune.store import ClientStore
from h2tune.vertical.exposure import ALLOWED, SAID, Sizes, check, flip_matrix, leaves, randomise, true_counts, withhold
from h2tune.vertical.federation import Federation, load_parties, salt_of
from h2tune.vertical.run_store import VerticalStore


def test_all_messages_hold_names_shapes_and_types_of_the_list():
    settings = config(unseen=3)
    federation, parties = recorded(settings, planted(unseen=3))
    federation.run()
    sizes = Sizes(4, 8, 32)
    kinds = set()
    for recorder in parties.values():
        for way, messages in (("down", recorder.down), ("up", recorder.up)):
            for message in map(decode, messages):
                kinds.add(message.kind)
                check(message.kind, way, message.payload, sizes if message.kind != "join" else Sizes(), "test")
    assert kinds == {kind for kind, _ in ALLOWED} - {"rejoin"}


def test_whatever_may_cross_is_said_to_people():
    """Every message that may hold a tensor, and the one that names people, has its line and its row in the documentation."""
    holds = {key for key, (tensors, _) in ALLOWED.items() if tensors} | {("predict", "down")}
    assert holds == SAID.keys()
    assert set(leaves("up")) | set(leaves("down")) == set(SAID.values())
    page = (Path(__file__).parents[2] / "docs" / "vertical.md").read_text(encoding="utf-8")
    assert all(f"\n| `{kind}`" in page for kind, _ in holds)


def test_a_name_that_is_not_on_the_list_is_refused_before_it_is_sent():
    with pytest.raises(ProtocolError, match="may not hold 'labels'"):
        check("step", "down", Payload({"labels": torch.zeros(3)}), Sizes(), "bank")


def test_planted_values_ids_and_names_are_in_no_message():
    frames = planted(unseen=3)
    secret, person = 1234.5678, "a00007"
    for train, _ in frames.values():
        train.loc[train["id"] == person, "x0"] = secret
    federation, parties = recorded(config(unseen=3), frames)
    federation.run()
    sent = b"".join(b"".join(r.down) + b"".join(r.up) for r in parties.values())
    assert len(sent) > 100_000
    for clue in (
        person.encode(),
        b"class-3",
        torch.tensor([secret]).numpy().tobytes(),
        torch.tensor([secret]).double().numpy().tobytes(),
    ):
        assert clue not in sent
    # The ids that do cross are keyed hashes: with the key one can be found, without it not.
    salt = salt_of(config(unseen=3))
    assert hmac.digest(salt.encode(), person.encode(), hashlib.sha256)[:16] in sent
    assert hashlib.sha256(person.encode()).digest()[:16] not in sent


def test_labels_change_nothing_before_the_first_gradient():
    frames = planted()
    bank = frames["bank"][0].copy()
    bank["kind"] = bank["kind"].sample(frac=1, random_state=1).to_numpy()
    up = []
    for kind in (frames, frames | {"bank": (bank, frames["bank"][1])}):
        federation, parties = recorded(config(rounds=1), kind)
        for recorder in parties.values():
            recorder.party.process = "the same"  # else random in every process
        federation.exchange.session.process = "the same"
        federation.run()
        up.append({name: r.up for name, r in parties.items()})
    for name in up[0]:
        assert up[0][name][:3] == up[1][name][:3]  # join, align, the first step
        assert up[0][name][3] != up[1][name][3]


def test_bytes_of_a_round_are_those_of_the_formulas():
    settings = config(classes=4)
    federation, parties = recorded(settings, planted())
    federation.run()
    batch, dim, classes = 32, 8, 4
    for way in ("up", "down"):
        for recorder in parties.values():
            steps = recorder.messages("step", way)
            body = [sum(t.numel() * 4 for t in m.payload.tensors.values()) for m in steps]
            assert max(body) == batch * dim * 4
            # Down, the first step of a round owes no gradient.
            assert body.count(0) == (0 if way == "up" else settings.rounds)
            for message in recorder.messages("local", way):
                names = message.payload.tensors
                shares = 2 * classes if way == "up" else classes + batch * dim
                assert sum(t.numel() for t in names.values()) == 2 * classes * dim + shares
    overhead = [len(data) - batch * dim * 4 for data in parties["shop"].up if decode(data).kind == "step"]
    assert max(overhead) < 600


def gradients(epsilon: float | None, rows: int = 400):
    """Recorded gradients of a party, its prototypes at that time, and the true labels of those rows."""
    exposure = {"label_dp": epsilon}
    settings = config(rounds=3, exposure=exposure, training={"batch": rows, "dropout": 0.0, "steps": 2})
    frames = planted(aligned=rows)
    federation, parties = recorded(settings, frames)
    active = federation.run()
    recorder = parties["shop"]
    gradient = [m.payload.tensors["gradient"] for m in recorder.messages("step", "down") if m.payload.tensors]
    nu = [m.payload.tensors["nu"] for m in recorder.messages("local", "down")]
    data = load_parties(settings, frames)["bank"]
    code = {name: i for i, name in enumerate(active.classes)}
    truth = torch.tensor([code[str(data.train.labels[i])] for i in active.meeting.rows.tolist()])
    return gradient, nu, truth


def attack(gradient: torch.Tensor, nu: torch.Tensor) -> torch.Tensor:
    """Labels read from gradients of embeddings with known prototypes: the true class alone has a negative derivative."""
    return (gradient @ torch.linalg.pinv(nu)).argmin(1)


def test_gradients_give_all_labels_away_without_label_dp():
    gradient, nu, truth = gradients(None)
    # The gradient of round 2's first step was made with about the prototypes that the party returned in round 1.
    assert (attack(gradient[1], nu[0]) == truth).float().mean() > 0.99


@pytest.mark.parametrize("epsilon", [0.5, 1.0])
def test_label_dp_bounds_the_attack(epsilon: float):
    gradient, nu, truth = gradients(epsilon)
    keep = math.exp(epsilon) / (math.exp(epsilon) + 3)
    hit = (attack(gradient[1], nu[0]) == truth).float().mean().item()
    # Four equal classes: nobody who sees the randomised label is right more often than it is kept.
    assert hit < keep + 3 * math.sqrt(keep * (1 - keep) / len(truth))


def test_randomised_response_keeps_as_often_as_it_says():
    flip = flip_matrix(1.0, 4)
    assert flip[0, 0].item() == pytest.approx(math.e / (math.e + 3))
    assert torch.allclose(flip.sum(1), torch.ones(4))
    labels = torch.arange(4).repeat(5000)
    used = randomise(labels, 1.0, 4, secret=b"known to the test")
    counts = torch.bincount(4 * labels + used, minlength=16).reshape(4, 4) / 5000
    assert torch.allclose(counts, flip, atol=0.025)  # each class, and each other class alike
    assert not torch.equal(used, randomise(labels, 1.0, 4, secret=b"another"))
    assert torch.equal(randomise(labels, 60.0, 4, secret=b"x"), labels)


def test_private_draws_do_not_follow_from_the_seed_that_all_parties_know(tmp_path):
    settings = config(rounds=1, exposure={"label_dp": 1.0, "gradient_noise": 0.5})

    def sent(federation: Federation, recorders: dict[str, Recorder]) -> tuple[torch.Tensor, torch.Tensor]:
        active = federation.open()
        drawn = active.labels.y.clone()
        active.one_round()
        return drawn, recorders["shop"].messages("step", "down")[1].payload.tensors["gradient"]

    first, second = (sent(*recorded(settings, planted())) for _ in range(2))
    assert not torch.equal(first[0], second[0]) and not torch.equal(first[1], second[1])
    # A run that goes on repeats its own draws: labels that are randomised twice are less private.
    store = VerticalStore(tmp_path / "run")
    store.create_for(settings, "0" * 32)
    stores = {n: ClientStore(tmp_path / n) for n in PARTIES}
    federation, recorders = recorded(settings, planted(), stores=stores, store=store)
    drawn, gradient = sent(federation, recorders)
    again, others = recorded(settings, planted(), stores=stores, store=store)
    resumed = again.resume()
    resumed.one_round()
    assert torch.equal(resumed.labels.y, drawn)
    assert torch.equal(others["shop"].messages("step", "down")[1].payload.tensors["gradient"], gradient)


def test_counts_are_corrected_for_the_flips():
    true = torch.tensor([700.0, 200.0, 100.0])
    flip = flip_matrix(2.0, 3)
    assert torch.allclose(true_counts(true @ flip, flip), true, rtol=1e-4)


def test_labels_of_a_few_rows_leave_no_trace():
    """Three labelled rows at a party change no byte that it sends: not its counts, shares, means or prototypes."""
    parties = [{"name": n, "train": "-", "test": "-"} | ({"labels": "code"} if n == "shop" else {}) for n in PARTIES]
    frames, sent = planted(), []
    for labelled in (0, 3, 5):
        code = [None] * (200 - labelled) + ["class-1"] * labelled
        shop = (frames["shop"][0].assign(code=code), frames["shop"][1])
        federation, recorders = recorded(config(rounds=3, parties=parties), frames | {"shop": shop})
        recorders["shop"].party.process = federation.exchange.session.process = "the same"
        federation.run()
        sent.append(recorders["shop"].up)
    assert sent[0] == sent[1]
    assert sent[0] != sent[2]


def test_small_counts_are_withheld():
    assert withhold(torch.tensor([4.9, 5.0, 0.0]), 5).tolist() == [0.0, 5.0, 0.0]
    federation, parties = recorded(config(exposure={"min_count": 30}), planted())
    federation.run()
    for recorder in parties.values():
        for message in recorder.messages("local"):
            counts, mu = message.payload.tensors["counts"], message.payload.tensors["mu"]
            assert bool(((counts == 0) | (counts >= 30)).all())
            assert mu[counts == 0].abs().sum() == 0
