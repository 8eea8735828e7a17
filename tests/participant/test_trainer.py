"""Local training is declared: another trainer can take a trainer's place, and no method knows."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from federations import small
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from h2tune.client import Client
from h2tune.config import Training
from h2tune.methods.registry import known_methods
from h2tune.participant.base_models import ModelPool
from h2tune.participant.batches import Batch
from h2tune.participant.context import make_accelerator
from h2tune.participant.passes import Passes
from h2tune.participant.trainer import Group, LocalTraining, OnStep, Trainer, Update
from h2tune.server import Server
from h2tune.store import RunStore
from h2tune.transport.inprocess import InProcess

# `bias` trains nothing in a round; LaDa's training is its host's, and its phase has tests of its own.
METHODS = sorted(name for name in known_methods() if not name.startswith(("toy", "lada")) and name != "bias")


def federation(
    method: str, folder: Path, trainer: Any = None, threads: bool = False, **changes: Any
) -> dict[str, Client]:
    """Two clients, each on a copy of the model, with a trainer of ours; all rounds."""
    spec = {"name": method, "sentences": 4} if method == "fedmkt" else method
    training = {"steps": 4, "batch_size": 4}
    experiment = small(same_model=True, method=spec, rounds=2, training=training, evaluation={"every": 9}, **changes)
    accelerator = make_accelerator(experiment, "cpu")
    trainer = trainer and trainer(experiment.training, accelerator)
    store = RunStore(folder)
    identity = store.create(experiment)
    anchors = [f"The word number {n} stands in sentence {n} of many." for n in range(40)]
    clients = {
        c.name: Client(c, experiment, ModelPool("cpu"), anchors, store.client(c.name), None, accelerator, trainer)
        for c in experiment.clients
    }
    transport = Threaded(clients) if threads else InProcess(clients)
    Server(experiment, identity, list(clients), transport, store).run()
    return clients


def learnt(clients: dict[str, Client]) -> dict[str, Tensor]:
    return {f"{name}.{key}": t for name, client in clients.items() for key, t in client.method.state().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class FromHiddenStates(Trainer):
    """Computes what the embedding says of a batch's rows once, and starts every later pass from there."""

    passes = 0

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.known: dict[bytes, Tensor] = {}

    def forward(self, model: nn.Module, batch: Batch, rows: list[int], passes: Passes) -> Any:
        type(self).passes += 1
        key = batch["input_ids"].numpy().tobytes()
        if key not in self.known:
            with torch.no_grad():
                self.known[key] = model.get_input_embeddings()(batch["input_ids"]).clone()
        rest = {name: value for name, value in batch.items() if name != "input_ids"}
        rest["inputs_embeds"] = self.known[key]
        return super().forward(model, rest, rows, passes)


FAST = ("h2tune", "fedit", "colora", "fedmkt", "pfedlora")


@pytest.mark.parametrize("method", [pytest.param(m, marks=[] if m in FAST else pytest.mark.slow) for m in METHODS])
def test_a_trainer_may_start_from_hidden_states(method: str, tmp_path: Path) -> None:
    FromHiddenStates.passes = 0
    usual = learnt(federation(method, tmp_path / "usual"))
    other = learnt(federation(method, tmp_path / "other", FromHiddenStates))
    assert FromHiddenStates.passes > 0 and equal(usual, other)


class Threaded(InProcess):
    """Lets all clients train at once. They are set up one after the other: PyTorch's generators are the process's."""

    def exchange(self, requests: dict[str, bytes], fresh: bool = False) -> Any:
        if not all(client.ready for client in self.clients.values()):
            yield from super().exchange(requests, fresh)
            return
        self.known |= requests.keys()
        found: dict[str, bytes] = {}
        threads = [
            threading.Thread(target=lambda n=n, d=d: found.update({n: self.clients[n].handle(d)}))
            for n, d in requests.items()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found.keys() == requests.keys()
        yield from ((name, found[name]) for name in requests)


class SideBySide(Trainer):
    """Waits until both clients have declared their training, and makes their updates in turns."""

    turns = 0

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.barrier = threading.Barrier(2, timeout=60)
        self.declared: dict[int, tuple[LocalTraining, OnStep | None]] = {}
        self.results: dict[int, dict[str, float]] = {}

    def run(self, training: LocalTraining, on_step: OnStep | None = None) -> dict[str, float]:
        me = threading.get_ident()
        self.declared[me] = training, on_step
        if self.barrier.wait() == 0:  # one thread makes everybody's updates
            self.results = self._both(self.declared)
            self.declared = {}
        self.barrier.wait()
        return self.results[me]

    def _both(self, declared: dict[int, tuple[LocalTraining, OnStep | None]]) -> dict[int, dict[str, float]]:
        losses: dict[int, dict[str, list[float]]] = {who: {} for who in declared}
        for number in range(max(len(training.phases) for training, _ in declared.values())):
            for who, (training, on_step) in declared.items():
                phase = training.phases[number]
                loss = self.update(training, training.updates[phase])
                losses[who].setdefault(phase, []).append(loss)
                type(self).turns += 1
                if on_step:
                    on_step(phase, number + 1, len(training.phases), loss)
        return {who: {p: sum(v) / len(v) for p, v in found.items()} for who, found in losses.items()}


@pytest.mark.parametrize("method", ["h2tune", "fedit", "fedprox", "colora", "h2tune-published"])
def test_a_trainer_may_run_two_clients_side_by_side(method: str, tmp_path: Path) -> None:
    usual = learnt(federation(method, tmp_path / "usual"))
    SideBySide.turns = 0
    other = learnt(federation(method, tmp_path / "other", SideBySide, threads=True))
    assert SideBySide.turns == 2 * 2 * 4 and equal(usual, other)


# ---- an update does not depend on how its rows are cut into batches


class Linear(nn.Module):
    """Scores three tokens at every position."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 3, generator=torch.Generator().manual_seed(0)))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        return type("Output", (), {"logits": self.weight[input_ids]})()


def rows(seed: int, count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 8, (count, 6), generator=generator)
    labels = torch.randint(0, 3, (count, 6), generator=generator)
    asked = torch.randint(1, 5, (count,), generator=generator)  # so many answer tokens in each row
    return ids, torch.where(torch.arange(6)[None] > asked[:, None], -100, labels)


def gradient(ids: Tensor, labels: Tensor, cuts: Sequence[int]) -> tuple[Tensor, float]:
    model = Linear()
    trainer = Trainer(Training(accumulation=len(cuts)), Accelerator(cpu=True))
    parts = zip(ids.split(list(cuts)), labels.split(list(cuts)), strict=True)
    batches = iter([({"input_ids": i, "labels": label}, []) for i, label in parts])
    return model.weight, trainer.gradients(model, batches)


@given(st.integers(0, 999), st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_an_update_is_the_mean_over_all_answer_tokens_however_it_is_cut(seed: int, cuts: list[int]) -> None:
    ids, labels = rows(seed, sum(cuts))
    whole, loss = gradient(ids, labels, [sum(cuts)])
    parts, other = gradient(ids, labels, cuts)
    assert whole.grad is not None and parts.grad is not None
    torch.testing.assert_close(parts.grad, whole.grad)
    assert other == pytest.approx(loss, rel=1e-5)


# ---- half precision, weight decay


def test_two_groups_of_one_backward_pass_are_scaled_back_once_each() -> None:
    """With a gradient scaler the second group's gradients were divided by the scale twice."""

    def trained(scaler: torch.amp.GradScaler | None) -> list[Tensor]:
        torch.manual_seed(0)
        parameters = [nn.Parameter(torch.randn(3)) for _ in range(2)]
        accelerator = Accelerator(cpu=True)
        accelerator.scaler = scaler
        settings = Training(clip=1e9, schedule="constant", warmup=0)
        groups = [Group([p], 0.1, 10, settings) for p in parameters]
        trainer = Trainer(settings, accelerator)
        for _ in range(3):
            loss = sum((p**2).sum() * (i + 1) for i, p in enumerate(parameters))
            (loss if scaler is None else scaler.scale(loss)).backward()
            trainer.apply(groups)
        return [p.detach() for p in parameters]

    scaled = trained(torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1))
    for a, b in zip(trained(None), scaled, strict=True):
        torch.testing.assert_close(a, b)


def test_weight_decay_pulls_the_head_and_nothing_else() -> None:
    head, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    settings = Training(weight_decay=0.5, schedule="constant", warmup=0)
    group = Group([other, head], 0.1, 10, settings, decayed=[head])
    for parameter in (head, other):
        parameter.grad = torch.zeros(2)
    Trainer(settings, Accelerator(cpu=True)).apply([group])
    assert torch.equal(other.detach(), torch.ones(2))
    torch.testing.assert_close(head.detach(), torch.full((2,), 1 - 0.1 * 0.5))


def test_an_update_without_a_gradient_keeps_training_declared_by_hand_alone() -> None:
    """`LocalTraining` needs no client: phases, updates, batches."""
    model = Linear()
    group = Group([model.weight], 0.1, 2, Training(warmup=0))
    ids, labels = rows(0, 4)
    seen: list[tuple[str, int, int]] = []
    training = LocalTraining(
        model,
        ["a", "b"],
        {"a": Update([group]), "b": Update([])},
        iter([({"input_ids": ids, "labels": labels}, [])] * 2),
    )
    before = model.weight.detach().clone()
    losses = Trainer(Training(), Accelerator(cpu=True)).run(training, lambda *said: seen.append(said[:3]))
    assert losses.keys() == {"a", "b"} and seen == [("a", 1, 2), ("b", 2, 2)]
    assert not torch.equal(before, model.weight) and losses["b"] < losses["a"]
