"""Clients of one base model train side by side in one pass, and learn what they would have learnt one after the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from federations import simulated, small
from torch import Tensor

from h2tune.client import Client
from h2tune.config import Experiment, Training, parse_config
from h2tune.participant.base_models import ModelPool
from h2tune.participant.together import Declared, Part, TogetherTrainer, packs
from h2tune.participant.trainer import LocalTraining
from h2tune.simulation.clients import Groups, in_process
from h2tune.store import RunStore
from h2tune.utils.turns import Turn, hand_over, takes_turns

POOL = ModelPool("cpu")
MODELS = ("zoo:llama", "zoo:gpt2", "zoo:qwen")
H2TUNE = {"name": "h2tune", "frames": "random"}


def uneven(model: str = "zoo:llama", **changes: Any) -> Experiment:
    """Three clients on one base with batches of different sizes and lengths."""
    plain = small(3, same_model=True, rounds=2, evaluation={"every": 9}, baseline="none").model_dump(mode="json")
    for i, client in enumerate(plain["clients"]):
        client["model"], client["train"] = model, client["train"].replace("n=16", f"n={5 + 3 * i}")
    return parse_config(plain | {"training": {"steps": 3, "batch_size": 4}} | changes)


def learnt(clients: dict[str, Client]) -> dict[str, Tensor]:
    return {f"{n}.{k}": t for n, c in clients.items() for k, t in c.method.state().items() if "optimiser" not in k}


def close(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Equal up to rounding: AdamW makes steps of a fixed length even where a gradient is nearly 0."""
    return a.keys() == b.keys() and all(
        float((a[k] - b[k]).norm()) <= 2e-3 * float(a[k].norm()) + 1e-6 for k in a if a[k].is_floating_point()
    )


def both(experiment: Experiment, folder: Path, rounds: int = 1) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What clients have learnt after some rounds one after the other, and side by side."""
    found = []
    for parallel in (1, 3):
        server, clients = simulated(experiment.model_copy(update={"parallel": parallel}), folder / str(parallel), POOL)
        server.open()
        for _ in range(rounds):
            server.one_round()
        found.append(learnt(clients))
    assert close(*found)
    return found[0], found[1]


@pytest.mark.parametrize("model", MODELS)
def test_side_by_side_is_one_after_the_other(model: str, tmp_path: Path, sizes: list[int]) -> None:
    method = {"zoo:llama": "fedprox", "zoo:gpt2": H2TUNE | {"private": 2, "distill": 0.1}, "zoo:qwen": "fedex"}[model]
    training = {"steps": 3, "batch_size": 4, "accumulation": 2 if model == "zoo:qwen" else 1}
    both(uneven(model, method=method, training=training), tmp_path, rounds=2)
    assert sizes and max(sizes) > 1


def test_a_method_whose_loss_makes_its_own_passes(tmp_path: Path, sizes: list[int]) -> None:
    """FedMKT's updates on public text have no batches of rows: they are made alone, those on private rows together."""
    both(uneven(method="fedmkt", training={"steps": 4, "batch_size": 4}), tmp_path, rounds=2)
    assert max(sizes) > 1


def test_with_a_cached_prefix_and_ranks_of_their_own(tmp_path: Path, sizes: list[int]) -> None:
    experiment = uneven(method="hetlora", blocks=0.4)
    clients = [c.model_copy(update={"keep": 0.5}) if c.name == "c1" else c for c in experiment.clients]
    both(experiment.model_copy(update={"clients": clients}), tmp_path)
    assert set(sizes) <= {1, 2}  # the client of another rank trains alone


def test_heads_of_their_own(tmp_path: Path, sizes: list[int]) -> None:
    rows = [json.dumps({"text": f"Number {i} is here.", "label": "odd" if i % 2 else "even"}) for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    task = {"kind": "classify", "prompt": "{text}", "answer": "{label}", "labels": ["odd", "even"]}
    data = {part: str(tmp_path / "rows.jsonl") for part in ("train", "test", "validation")}
    experiment = uneven(method="fedit", training={"steps": 2, "batch_size": 4, "head_steps": 2})
    clients = [c.model_copy(update={"task": task} | data) for c in experiment.clients]
    both(experiment.model_copy(update={"clients": clients}), tmp_path / "runs")
    assert set(sizes) == {3}


def test_one_clients_nan_stops_that_client_alone(tmp_path: Path, sizes: list[int]) -> None:
    found = []
    for parallel in (1, 3):
        experiment = uneven(method="fedit", parallel=parallel)
        server, clients = simulated(experiment, tmp_path / str(parallel), POOL)
        server.open()
        with torch.no_grad():
            clients["c1"].method.factors[0].fill_(torch.nan)  # type: ignore[attr-defined]
        server.one_round()
        found.append(learnt({n: c for n, c in clients.items() if n != "c1"}))
        assert server.members["c1"].standing.startswith("stopped: the loss is not a number on the training rows")
        assert {server.members[n].standing for n in ("c0", "c2")} == {"ok"}
    assert close(*found) and max(sizes) > 1


def test_a_group_that_does_not_fit_is_halved_and_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = TogetherTrainer._pass

    def small_machine(self: TogetherTrainer, parts: list[Part]) -> list[float]:
        if len(parts) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte")
        return real(self, parts)

    monkeypatch.setattr(TogetherTrainer, "_pass", small_machine)
    monkeypatch.setattr("h2tune.participant.together.WASTE", 1.0)
    experiment = uneven(method="fedit")
    both(experiment, tmp_path)
    events = [json.loads(line) for line in (tmp_path / "3" / "events.jsonl").read_text().splitlines()]
    said = [e["text"] for e in events if e["event"] == "warning"]
    assert said == ["3 clients side by side do not fit into memory; from now on 2 at a time"]


def test_a_model_that_draws_random_numbers_trains_alone_bit_for_bit(tmp_path: Path, sizes: list[int]) -> None:
    usual, other = both(uneven(method="fedit", training={"steps": 2, "batch_size": 4, "dropout": 0.2}), tmp_path)
    assert not sizes and all(torch.equal(usual[name], other[name]) for name in usual)


def test_groups_are_of_one_base_and_of_about_the_same_size(tmp_path: Path) -> None:
    POOL.release()
    clients = small(6).clients  # three families
    experiment = small(6, method="local", parallel=3).model_copy(
        update={"clients": [c.model_copy(update={"model": MODELS[i > 3]}) for i, c in enumerate(clients)]}
    )
    party = in_process(experiment, RunStore(tmp_path), POOL)
    assert isinstance(party, Groups)
    assert party.groups(party.clients) == [["c0", "c1"], ["c2", "c3"], ["c4", "c5"]]
    party.trainer.limit.most = 1
    assert len(party.groups(party.clients)) == 6


def test_packs_hold_little_padding() -> None:
    assert packs({0: (4, 10), 1: (4, 10), 2: (4, 9)}) == [[0, 1, 2]]
    assert packs({0: (4, 10), 1: (4, 100), 2: (4, 90), 3: (2, 9)}) == [[1, 2], [0, 3]]


def test_packs_hold_no_more_logits_than_one_client_may_ask_for() -> None:
    alike = dict.fromkeys(range(5), (4, 10))
    assert packs(alike, positions=dict.fromkeys(range(5), 4), most=8) == [[0, 1], [2, 3], [4]]
    assert packs(alike, positions={0: 9, 1: 1, 2: 7, 3: 1, 4: 0}, most=8) == [[0], [1, 2], [3, 4]]


def test_a_turn_hands_over_goes_on_and_raises_where_its_caller_waits() -> None:
    said: list[str] = []

    def act() -> str:
        assert takes_turns()
        hand_over("first")
        said.append("went on")
        raise ValueError("as it happens")

    turn = Turn(act)
    turn.go_on()
    assert turn.handed == "first" and not said and not turn.ended
    with pytest.raises(ValueError, match="as it happens"):
        turn.go_on()
    assert turn.ended and said == ["went on"] and not takes_turns()


def test_a_turn_that_is_closed_unwinds() -> None:
    left: list[str] = []

    def act() -> None:
        try:
            hand_over(None)
        finally:
            left.append("cleaned up")

    turn = Turn(act)
    turn.go_on()
    turn.close()
    assert turn.ended and left == ["cleaned up"]


def test_random_numbers_are_those_of_each_alone() -> None:
    trainer = TogetherTrainer(Training(), Accelerator(cpu=True), 4)

    def act(seed: int) -> list[float]:
        torch.manual_seed(seed)
        first = float(torch.rand(1))
        return [first, float(torch.rand(1))]

    alone = [act(seed) for seed in (1, 2)]
    torch.manual_seed(5)
    assert trainer.together([lambda: act(1), lambda: act(2)]) == alone
    assert float(torch.rand(1)) == float(torch.rand(1, generator=torch.Generator().manual_seed(5)))


def test_to_look_at_batches_takes_none_away() -> None:
    batches = iter([({"labels": torch.tensor([i])}, [i]) for i in range(3)])
    nothing: Any = None  # neither the model nor an adapter is asked
    idle = Declared(LocalTraining(nothing, [], {}, batches), None, nothing)
    assert idle.has_rows()
    public = Declared(LocalTraining(nothing, ["public"], {}, batches), None, nothing)
    assert not public.has_rows()
    assert [rows for _, rows in public.training.batches] == [[0], [1], [2]]
