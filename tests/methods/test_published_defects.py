"""Defects of published code between clients and server, planted: for each there is a guard that notices.

The guards are properties that every federated method has; the defects are those that reviews of the field's repositories
found (2023 to 2026). Rules of aggregation have theirs in test_factor_rules.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from federations import ANCHORS, build, equal, small
from torch import Tensor
from torch.nn.functional import log_softmax

from h2tune.client import Client
from h2tune.methods import distill
from h2tune.methods.fedprox import FedProxClient
from h2tune.methods.fedsb import FedSbClient
from h2tune.methods.ffa import FfaClient
from h2tune.methods.h2tune import H2TuneClient
from h2tune.methods.registry import known_methods
from h2tune.methods.rolora import RoLoraClient, turn
from h2tune.participant.context import ClientContext
from h2tune.participant.passes import PLAIN
from h2tune.protocol.codec import Payload
from h2tune.protocol.exchange import Reply

ALONE = ("bias", "local", "h2tune-unshared")
METHODS = known_methods()
OPTIONS: dict[str, dict[str, Any]] = {
    "fedmkt": {"sentences": 4},
    "crosslora": {"after": 0.3},  # its one exchange in round 1, so that a copy from before holds nothing learnt
}
SHARING = sorted(n for n in METHODS if n not in ALONE and not n.startswith(("toy", "lada")))


def twins(name: str, folder: Path, other: int = 1, **changes: Any) -> tuple[Any, dict[str, Client]]:
    """Two clients on one model; the second has the data of seed ``other``."""
    spec = {"name": name} | OPTIONS.get(name, {})
    settings = {"rounds": 3, "evaluation": {"every": 9}, "anchors": ANCHORS}
    training = {"steps": 2, "batch_size": 4, "learning_rate": 0.01, "core_learning_rate": 0.01, "warmup": 0.0}
    experiment = small(2, same_model=True, method=spec | changes, training=training, **settings)
    second = experiment.clients[1]
    data = {part: str(getattr(second, part)).replace("seed=1", f"seed={other}") for part in ("train", "validation")}
    clients = [experiment.clients[0], second.model_copy(update=data)]
    return build(experiment.model_copy(update={"clients": clients}), folder)


def held(client: Client) -> dict[str, Tensor]:
    """What a client has learnt and taken, optimisers aside."""
    return {k: v for k, v in client.method.state().items() if not k.startswith("optimiser.")}


def after_two_rounds(name: str, folder: Path, other: int) -> dict[str, Tensor]:
    server, clients = twins(name, folder, other)
    server.open()
    for _ in range(2):
        server.one_round()
    clients["c0"].method.receive(server.method.download("c0"))
    return held(clients["c0"])


# ---- what one client learns reaches the other


def what_one_learns_reaches_the_other(name: str, folder: Path) -> None:
    first, second = (after_two_rounds(name, folder / str(seed), seed) for seed in (1, 2))
    assert not equal(first, second), f"{name}: the first client is the same whatever the second one has learnt"


def snapshot_before_training(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shepherd, and H2Tune's release: what travels was copied before the local updates."""
    kind = METHODS[name].client
    train = kind.train

    def defect(self: Any, round: int, payload: Payload) -> Payload:
        kept: dict[str, Tensor] = {}

        def batches(*purpose: object) -> Any:  # asked for when all is received and nothing is trained
            if name == "fedmkt":
                kept.update(self._predictions(round))
            elif name == "pfedlora":
                kept["adapter"] = self.adapter.detach()[-1].clone()
            else:
                kept.update({k: t.clone() for k, t in self.pack().items()})
            return ClientContext.batches(self.context, *purpose)

        self.context.batches = batches
        sent = train(self, round, payload)
        del self.context.batches
        return Payload({k: kept[k] for k in sent.tensors}, sent.meta)

    monkeypatch.setattr(kind, "train", defect)


def answer_never_loaded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """H2Tune's release: the keys of the server's answer are none of the model's, and `strict=False` hides it."""
    kind = METHODS[name].client
    train = kind.train
    monkeypatch.setattr(kind, "receive", lambda self, payload: None)
    monkeypatch.setattr(kind, "train", lambda self, round, payload: train(self, round, Payload(meta=payload.meta)))


def only_the_first_is_added(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """FLoRA's repository, FedIT: a misspelt variable, and every client but the first is lost."""
    kind = METHODS[name].server
    add = kind.add

    def defect(self: Any, reply: Reply) -> None:
        if reply.client == "c0":
            add(self, reply)

    monkeypatch.setattr(kind, "add", defect)


@pytest.mark.parametrize("name", SHARING)
def test_what_one_client_learns_reaches_the_other(name: str, tmp_path: Path) -> None:
    what_one_learns_reaches_the_other(name, tmp_path)


@pytest.mark.parametrize("name", ALONE)
def test_where_nothing_is_shared_nothing_arrives(name: str, tmp_path: Path) -> None:
    """The guard's other side: it tells sharing from chance."""
    with pytest.raises(AssertionError, match="is the same whatever"):
        what_one_learns_reaches_the_other(name, tmp_path)


PLANTS = [snapshot_before_training, answer_never_loaded, only_the_first_is_added]
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in SHARING if name not in ("fedit", "h2tune-published")]


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("name", ["fedit", "h2tune-published", *OTHERS])
def test_a_federation_that_shares_nothing_is_noticed(
    name: str, plant: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(name, monkeypatch)
    with pytest.raises(AssertionError, match="is the same whatever"):
        what_one_learns_reaches_the_other(name, tmp_path)


# ---- defects of one method: each guard is a test by itself, and fails with its defect planted


def ffa_never_moves_a_and_rolora_alternates(name: str, folder: Path) -> None:
    """And all clients start a round equal."""
    server, clients = twins(name, folder)
    server.open()
    moved: list[str] = []
    for _ in range(3):
        received: dict[str, dict[str, Tensor]] = {}
        for client in clients.values():
            take = client.method.receive

            def taking(payload: Payload, client: Client = client, take: Any = take, seen: dict = received) -> None:
                take(payload)
                seen[client.name] = held(client)

            client.method.receive = taking
        server.one_round()
        assert equal(received["c0"], received["c1"]), "the clients start a round from different factors"
        after = held(clients["c0"])
        moved.append("".join(sorted({k[-1] for k, v in after.items() if not torch.equal(v, received["c0"][k])})))
        for client in clients.values():
            del client.method.receive
    assert moved == (["B"] * 3 if name == "ffa" else ["B", "A", "B"])


def a_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """FFA with A trainable: the mean of B no longer gives the mean of the products."""
    monkeypatch.setattr(FfaClient, "trains", ("A", "B"))


def one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """FedLLM-Factory, RoLoRA: the reset between clients leaves the half that is being trained."""
    receive, train, left = RoLoraClient.receive, RoLoraClient.train, {}

    def defect(self: RoLoraClient, payload: Payload) -> None:
        receive(self, payload)
        with torch.no_grad():
            for factor, value in zip(self.factors_of((turn(self.round),)), left.get(self.round, []), strict=False):
                factor.copy_(value)

    def training(self: RoLoraClient, round: int, payload: Payload) -> Payload:
        self.round = round
        found = train(self, round, payload)
        left[round] = [p.detach().clone() for p in self.factors_of((turn(round),))]
        return found

    monkeypatch.setattr(RoLoraClient, "receive", defect)
    monkeypatch.setattr(RoLoraClient, "train", training)


def fedprox_pulls_towards_what_the_round_began_with(name: str, folder: Path) -> None:
    """mu / 2 ||theta - theta_server||^2, and its gradient mu (theta - theta_server)."""
    _, clients = twins(name, folder, mu=0.3)
    method = clients["c0"].method
    method.join()
    pull = method.penalty()
    start = [p.detach().clone() for p in method.factors]
    with torch.no_grad():
        for p in method.factors:
            p.add_(torch.randn_like(p))
    value = pull({}, torch.zeros(1))
    moved = [p.detach() - s for p, s in zip(method.factors, start, strict=True)]
    assert float(value.detach()) == pytest.approx(
        0.15 * sum(float(m.double().square().sum()) for m in moved), rel=1e-4
    )
    gradients = torch.autograd.grad(value, method.factors)
    for g, m in zip(gradients, moved, strict=True):
        torch.testing.assert_close(g, 0.3 * m)


def towards_where_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reference that is no copy moves along, and the pull is 0."""

    def defect(self: FedProxClient) -> Any:
        return lambda batch, logits: self.settings.mu / 2 * sum((p - p.data).square().sum() for p in self.factors)

    monkeypatch.setattr(FedProxClient, "penalty", defect)


def bases_are_of_the_first_clients_data_alone(name: str, folder: Path) -> None:
    def bases(seed: int) -> dict[str, Tensor]:
        server, clients = twins(name, folder / str(seed), seed)
        FIRST.update({c.name: c.context.data.train for c in clients.values()})
        server.open()
        return server.method.fixed()

    assert equal(bases(1), bases(2)), "what is sent before round 1 depends on the second client's rows"


FIRST: dict[str, Any] = {}


def gradients_of_pooled_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fed-SB's release: the first gradients are those of everybody's training data in one place."""
    gradients = FedSbClient._gradients

    def defect(self: FedSbClient) -> list[Tensor]:
        own, pooled = self.context.data, [row for part in FIRST.values() for row in part.encoded]
        self.context.data = replace(own, train=replace(own.train, encoded=pooled))
        found = gradients(self)
        self.context.data = own
        return found

    monkeypatch.setattr(FedSbClient, "_gradients", defect)


def specific_phase_is_pulled_towards_what_the_shared_phase_said(name: str, folder: Path) -> None:
    """lambda KL(z_shared || z) over the answer's tokens, z_shared from A and B as the shared phase left them."""
    server, clients = twins(name, folder, distill=0.7)
    server.open()
    server.one_round()
    method = clients["c0"].method
    batch, _ = next(method.context.batches(2))
    model = method.context.base.activate(method.context.adapter).eval()

    def said() -> Tensor:
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return log_softmax(logits[:, :-1][batch["labels"][:, 1:] != -100], -1)

    pull = method.pull
    pull.remember()
    before = said()
    with torch.no_grad():
        for p in method.factors:
            p.add_(0.3 * torch.randn_like(p))
    now = said()
    want = 0.7 * (before.exp() * (before - now)).sum(1).mean()
    found = pull(batch, PLAIN.answered(model, batch).logits)
    assert float(want) > 1e-3
    torch.testing.assert_close(found.detach(), want, atol=1e-5, rtol=1e-4)


def teacher_is_the_student(monkeypatch: pytest.MonkeyPatch) -> None:
    """H2Tune's release: both passes of a step use the same weights, and the divergence is 0."""
    penalty = distill.Distillation.__call__

    def defect(self: distill.Distillation, batch: Any, logits: Tensor) -> Tensor:
        self.remember()
        return penalty(self, batch, logits)

    monkeypatch.setattr(distill.Distillation, "__call__", defect)


def relation_outlives_the_round(name: str, folder: Path) -> None:
    server, clients = twins(name, folder, train_relation=True)
    server.open()
    server.one_round()
    p = clients["c0"].method.core.relation.logits
    learnt = p.detach().clone()
    clients["c0"].method.receive(server.method.download("c0"))
    assert torch.equal(p, learnt), "P is another one after the server's answer"


def relation_drawn_afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """H2Tune's release: `layer_proj` is drawn anew in every round."""
    receive = H2TuneClient.receive

    def defect(self: H2TuneClient, payload: Payload) -> None:
        receive(self, payload)
        torch.nn.init.normal_(self.core.relation.logits)

    monkeypatch.setattr(H2TuneClient, "receive", defect)


OWN: list[tuple[str, Callable, Callable | None]] = [
    ("ffa", ffa_never_moves_a_and_rolora_alternates, a_is_trained),
    ("rolora", ffa_never_moves_a_and_rolora_alternates, one_after_another),
    ("fedprox", fedprox_pulls_towards_what_the_round_began_with, towards_where_one_is),
    ("fedsb", bases_are_of_the_first_clients_data_alone, gradients_of_pooled_data),
    ("h2tune", specific_phase_is_pulled_towards_what_the_shared_phase_said, teacher_is_the_student),
    ("h2tune", relation_outlives_the_round, relation_drawn_afresh),
]


@pytest.mark.parametrize(("name", "guard", "plant"), OWN, ids=lambda v: getattr(v, "__name__", v))
def test_the_rule_holds_and_its_defect_is_noticed(
    name: str, guard: Callable, plant: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard(name, tmp_path / "sound")
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        guard(name, tmp_path / "planted")
