"""Differential privacy of single rows: what is clipped, how large the noise is, and what it adds up to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from federations import small
from torch import Tensor, nn

from h2tune import federation
from h2tune.aggregation.private import epsilon
from h2tune.client import Client
from h2tune.config import Experiment, RowPrivacy, Training
from h2tune.errors import MethodError
from h2tune.figures import facts_of
from h2tune.participant import row_privacy
from h2tune.participant.base_models import ModelPool
from h2tune.participant.batches import collate, stream
from h2tune.participant.row_privacy import (
    FILE,
    RowBudgetError,
    RowLedger,
    RowPrivateTrainer,
    noise_within,
    promise_in_words,
    settled,
    updates_of_a_row,
)
from h2tune.plan import make_plan
from h2tune.report import write_report
from h2tune.store import ClientStore
from h2tune.tasks.prompts import Encoded

ROWS = torch.tensor([[1.0, 2.0], [-3.0, 0.5], [0.1, -0.2], [40.0, 9.0]])


def test_a_row_stands_alone_whatever_the_length_of_its_mates() -> None:
    """A row that is read with a long mate's padding would have another gradient: then one row moves the others'."""
    row = Encoded([5, 6, 7], [-100, 6, 7])
    for others in ([], [Encoded(list(range(1, 300)), [-100] * 299)], [Encoded([9], [9]), Encoded([4] * 9, [4] * 9)]):
        found = row_privacy.alone(collate([*others, row], 0), len(others))
        assert {name: values.tolist() for name, values in found.items()} == {
            "input_ids": [[5, 6, 7]], "attention_mask": [[1, 1, 1]], "labels": [[-100, 6, 7]]}  # fmt: skip
    classes = row_privacy.alone(collate([Encoded([1, 2, 3, 4], [], 1), Encoded([5], [], 2)], 0), 1)
    assert classes["labels"].tolist() == [2] and classes["input_ids"].tolist() == [[5]]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.frozen = nn.Parameter(torch.tensor([0.5, -1.0])), nn.Parameter(torch.ones(2), requires_grad=False)


def squares(scale: float = 1.0) -> Callable[[Any, dict[str, Tensor]], Tensor]:
    """Mean square of w x over a batch's rows; its gradient for row x is 2 (w x) x."""

    def loss(forward: Any, batch: dict[str, Tensor]) -> Tensor:
        return scale * ((batch["x"] @ forward.args[0].w) ** 2).mean()

    return loss


def batches(size: int = 4) -> Iterator[tuple[dict[str, Tensor], list[int]]]:
    while True:
        for start in range(0, 4, size):
            yield {"x": ROWS[start : start + size]}, list(range(start, start + size))


def trainer(clip: float, noise: float = 1.0, store: ClientStore | None = None, **settings: Any) -> RowPrivateTrainer:
    privacy = RowPrivacy(clip=clip, noise=noise)
    return RowPrivateTrainer(Training(**settings), Accelerator(cpu=True), privacy, RowLedger(privacy, 4, store))


def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_privacy, "standard_normal", lambda shape, source: torch.zeros(tuple(shape)).double())


def by_hand(model: Model, clip: float) -> Tensor:
    total = torch.zeros(2)
    for x in ROWS:
        gradient = 2 * (model.w @ x).detach() * x
        total += gradient * min(1.0, clip / float(gradient.norm()))
    return total / 4


@pytest.mark.parametrize("clip", [0.3, 5.0, 1e6])
@pytest.mark.parametrize("size", [4, 2])
def test_every_rows_gradient_is_clipped_by_itself(clip: float, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet(monkeypatch)
    model = Model()
    loss = trainer(clip, accumulation=4 // size).gradients(model, batches(size), squares())
    assert torch.allclose(model.w.grad, by_hand(model, clip), rtol=1e-5) and model.frozen.grad is None
    assert loss == pytest.approx(float(((ROWS @ model.w.detach()) ** 2).mean()))


@pytest.mark.parametrize("row", range(4))
def test_one_row_moves_the_sum_by_no_more_than_clip(row: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neighbours: the row's gradient, or zeros."""
    quiet(monkeypatch)
    sums = []
    for present in (True, False):
        model, rows = Model(), ROWS.clone()
        rows[row] *= present  # the gradient of a row of zeros is zero
        trainer(0.7).gradients(model, iter([({"x": rows}, [0, 1, 2, 3])]), squares(1e3))
        sums.append(4 * model.w.grad)
    assert float((sums[0] - sums[1]).norm()) <= 0.7 * (1 + 1e-5)


def test_the_noise_is_as_large_as_it_is_said_to_be() -> None:
    model, found = nn.Linear(100, 100, bias=False), []

    def nothing(forward: Any, batch: dict[str, Tensor]) -> Tensor:
        return 0.0 * (batch["x"] @ model.weight[:2, :2]).sum()

    trainer(clip=2.0, noise=1.5).gradients(model, batches(), nothing)
    found = model.weight.grad
    assert float(found.std()) == pytest.approx(1.5 * 2.0 / 4, rel=0.05) and abs(float(found.mean())) < 0.03
    assert len(found.unique()) > 9_900  # two of ten thousand may be equal by chance


def test_updates_are_counted_for_every_row_and_kept_over_a_restart(tmp_path: Path) -> None:
    store = ClientStore(tmp_path)
    first = trainer(1.0, noise=2.0, store=store)
    for _ in range(3):
        first.gradients(Model(), batches(), squares())
    first.gradients(Model(), batches(2), squares())
    first.ledger.keep()
    again = RowLedger(first.privacy, 4, store)
    assert again.updates == [4, 4, 3, 3] and again.epsilon == pytest.approx(epsilon([2.0] * 4, 1e-5))
    assert json.loads((tmp_path / FILE).read_text())["epsilon"] == pytest.approx(again.epsilon)
    # Of other rows each has spent as much as any: which of them are the old ones is not known.
    assert RowLedger(first.privacy, 5, store).updates == [4] * 5
    assert RowLedger(first.privacy, 4, store, data="of other rows").updates == [4] * 4


def test_a_row_whose_loss_is_no_number_counts_as_nothing_and_is_named_here_alone() -> None:
    """An error would reach the server, and tell of one row without noise."""

    def loss(forward: Any, batch: dict[str, Tensor]) -> Tensor:
        return (batch["x"] @ forward.args[0].w).sum() / (0.0 if float(batch["x"][0, 0]) == -3.0 else 1.0)

    each, model = trainer(1.0, noise=0.001), Model()
    with pytest.warns(UserWarning, match="training row 1 is not a number"):
        each.gradients(model, batches(), loss)
    assert torch.isfinite(model.w.grad).all() and model.w.grad.abs().max() > 0


@pytest.mark.parametrize(("rows", "size", "accumulation"), [(16, 4, 1), (17, 4, 2), (5, 8, 1), (100, 3, 1)])
def test_no_row_is_in_more_updates_than_is_said(rows: int, size: int, accumulation: int) -> None:
    settings = Training(steps=11, batch_size=size, accumulation=accumulation, head_steps=7)
    most = updates_of_a_row(settings, rows, rounds=3, head=True)
    counts = [0] * rows
    for seed, steps in enumerate((7, 11, 11, 11)):
        batches = stream([Encoded([1], [1])] * rows, size, 0, seed)
        for _ in range(steps * accumulation):
            for row in next(batches)[1]:
                counts[row] += 1
    assert max(counts) <= most and (max(counts) == most or rows == 100)


def test_noise_follows_from_a_budget_with_a_round_to_spare() -> None:
    assert (
        epsilon([noise_within(8.0, 1e-3, 24)] * 24, 1e-3)
        <= 8.0
        < epsilon([noise_within(8.0, 1e-3, 24) - 0.01] * 24, 1e-3)
    )
    training = Training(steps=10, batch_size=4)
    asked = RowPrivacy(clip=1.0, epsilon=8.0, delta=1e-3)
    known = settled(asked, training, 20, 3, head=False)
    assert known.noise == noise_within(8.0, 1e-3, 4 * 2) and settled(known, training, 20, 9, head=False) is known
    words = promise_in_words(asked, training, 20, 3, head=False)
    assert words.startswith(
        f"row privacy: each of 20 training rows is in at most 6 updates; noise {known.noise:g} makes"
    )
    assert f"epsilon {epsilon([known.noise] * 6, 1e-3):.2f} at delta 0.001 of a budget of 8" in words
    few = RowPrivacy(clip=1.0, epsilon=2.0, noise=1.0)
    assert "more than the budget of 2: training ends early" in promise_in_words(few, training, 20, 3, head=False)
    with pytest.raises(ValueError, match="needs `epsilon`"):
        RowPrivacy(clip=1.0)


def test_no_update_is_made_that_would_exceed_the_budget(tmp_path: Path) -> None:
    privacy = RowPrivacy(clip=1.0, noise=1.0, epsilon=epsilon([1.0] * 2, 1e-5) + 1e-6)
    ledger = RowLedger(privacy, 4, ClientStore(tmp_path))
    ledger.count([0, 1])
    ledger.count([0, 2])
    with pytest.raises(RowBudgetError, match="its privacy budget is spent"):
        ledger.count([3, 0])
    assert ledger.updates == [2, 1, 1, 0] and ledger.epsilon == pytest.approx(epsilon([1.0] * 2, 1e-5))
    ledger.keep()
    other = RowLedger(privacy.model_copy(update={"noise": 3.0, "epsilon": None}), 4, ClientStore(tmp_path))
    other.count([0])  # what was spent with other noise stays spent
    assert other.updates == [3, 1, 1, 0] and other.epsilon == pytest.approx(epsilon([1.0, 1.0, 3.0], 1e-5))
    ClientStore(tmp_path).write_json(FILE, {"epsilon": 1.0, "updates": [5, 0, 0, 0]})  # as an earlier version wrote it
    assert RowLedger(privacy, 4, ClientStore(tmp_path)).updates == [5, 0, 0, 0]


def test_plan_says_what_it_will_spend(tmp_path: Path) -> None:
    plan = make_plan(private(2))
    assert plan.privacy == [f"c0: {promise_in_words(PRIVACY, Training(steps=3, batch_size=4), 16, 2, head=False)}"]
    away = private(2)
    away = away.model_copy(update={"clients": [away.clients[0].model_copy(update={"train": "-"}), away.clients[1]]})
    assert make_plan(away).privacy == ["c0: row privacy: what it spends is said at the client, before it connects"]
    assert (
        "c0: row_privacy: fedsb uses rows in other ways than local training"
        in make_plan(private(2, method="fedsb")).problems
    )


PRIVACY = RowPrivacy(clip=1.0, epsilon=15.0)


def private(clients: int, **changes: Any) -> Experiment:
    experiment = small(clients=clients, rounds=2, training={"steps": 3, "batch_size": 4}, **changes)
    first = experiment.clients[0].model_copy(update={"row_privacy": PRIVACY})
    return experiment.model_copy(update={"clients": [first, *experiment.clients[1:]]})


def test_a_federation_in_which_one_client_protects_its_rows(tmp_path: Path) -> None:
    metrics = federation.run(private(2), tmp_path)
    c0, c1 = metrics["clients"]["c0"], metrics["clients"]["c1"]
    assert c0["final"] and all(record["loss"] == {} for record in c0["rounds"])  # losses say something of the rows
    assert c1["final"] and all(record["loss"] for record in c1["rounds"])
    account = json.loads((tmp_path / "clients" / "c0" / FILE).read_text())
    noise = noise_within(15.0, 1e-5, 3)  # a row is in one update a round, and one round may be trained again
    assert sum(account["updates"]) == 2 * 3 * 4 and list(account["by_noise"]) == [str(noise)]
    assert account["epsilon"] == pytest.approx(epsilon([noise] * max(account["updates"]), 1e-5))
    assert account["epsilon"] < account["budget"] == 15.0
    assert not (tmp_path / "clients" / "c1" / FILE).exists()
    assert write_report(tmp_path).is_file()


def test_nothing_exact_about_its_training_rows_is_among_its_facts() -> None:
    """What is sent when it joins is the same whatever its training rows are."""
    found = []
    for seed in (0, 1):
        experiment = private(2)
        for config in experiment.clients:
            config = config.model_copy(update={"train": f"{config.train}{seed}"})
            client = Client(config, experiment, ModelPool("cpu"), ["a drummer"])
            found.append(facts_of(client.context))
    assert found[0] == found[2] and found[1] != found[3]
    assert found[0]["leaked"] is found[0]["unigram_nats"] is found[0]["anchor_coverage"] is None


def test_the_digest_of_rows_is_made_where_rows_have_an_account_and_is_that_of_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for rows in ([], ["a"], [Encoded([5], [6]), "ü", 3]):  # accounts of before hold such digests
        assert row_privacy.digest_of(rows) == hashlib.sha256(repr(rows).encode()).hexdigest()[:32]
    made: list[int] = []
    monkeypatch.setattr(row_privacy, "digest_of", lambda rows: made.append(len(rows)) or "d")
    monkeypatch.setattr("h2tune.participant.context.digest_of", row_privacy.digest_of, raising=False)
    experiment = private(2)
    contexts = [Client(c, experiment, ModelPool("cpu"), ["a drummer"]).context for c in experiment.clients]
    assert made == [len(contexts[0].data.train)]


def test_glossary_frames_are_practised_on_public_text(tmp_path: Path) -> None:
    method = {"name": "h2tune", "frames": "glossary", "slots": ["o"], "train_factors": False, "practice_steps": 1}
    experiment = private(2, method=method)
    rows = [c.model_copy(update={"practice": "demo:fill?split=practice&n=60"}) for c in experiment.clients]
    metrics = federation.run(experiment.model_copy(update={"clients": rows}), tmp_path / "run")
    assert metrics["clients"]["c0"]["status"] == "ok"


def test_a_method_that_uses_rows_in_other_ways_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MethodError, match="c0: row_privacy: fedsb uses rows in other ways than local training"):
        federation.run(private(2, method="fedsb"), tmp_path)


def test_scaled_gradients_are_refused() -> None:
    with pytest.raises(MethodError, match="use bf16"):
        trainer(1.0, precision="fp16")


@pytest.mark.parametrize("size", [4, 2])
def test_a_row_is_in_an_update_once_however_many_of_its_batches_hold_it(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The noise is made for one clipped gradient of each row: with k of them the account would be too low by far."""
    quiet(monkeypatch)
    model, each = Model(), trainer(0.3, accumulation=3)
    each.gradients(model, batches(size), squares())
    assert torch.allclose(model.w.grad, by_hand(model, 0.3), rtol=1e-5) and each.ledger.updates == [1] * 4
    asked = Training(
        steps=6, accumulation=8, batch_size=4
    )  # two batches an epoch: each row four times in what is drawn
    assert updates_of_a_row(asked, rows=8, rounds=2, head=False) == 12
