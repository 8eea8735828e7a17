"""Clients of one base model are scored in passes that they share, and get the scores that they would get alone."""

from __future__ import annotations

import json
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from federations import simulated, small

from h2tune.config import Experiment, parse_config
from h2tune.participant import together
from h2tune.participant.base_models import ModelPool
from h2tune.participant.passes import Passes
from h2tune.participant.scored_together import Asked
from h2tune.participant.together import TogetherTrainer

POOL = ModelPool("cpu")
MODELS = ("zoo:llama", "zoo:gpt2", "zoo:qwen")


def federation(model: str, **changes: Any) -> Experiment:
    """Six clients on one base: two generate texts, two choose, two write programs; none has as many rows as another."""
    plain = small(6, same_model=True, baseline="none", method="fedit").model_dump(mode="json")
    for i, client in enumerate(plain["clients"]):
        client["model"] = model
        for part in ("validation", "test"):
            client[part] = client[part].replace("n=4", f"n={4 + i}")
    return parse_config(plain | {"training": {"steps": 2, "batch_size": 4}, "parallel": 6} | changes)


def classes(folder: Path) -> dict[str, str]:
    rows = [json.dumps({"text": f"Number {i} is here.", "label": "odd" if i % 2 else "even"}) for i in range(12)]
    (folder / "rows.jsonl").write_text("\n".join(rows))
    return {part: str(folder / "rows.jsonl") for part in ("train", "test", "validation")}


def scored(experiment: Experiment, folder: Path) -> list[float]:
    """The final scores of all clients, on validation and test rows."""
    server, _ = simulated(experiment, folder, POOL)
    server.run()
    finals = [member.final for member in server.members.values()]
    return [float(value) for final in finals if final for value in final.values()]


@pytest.fixture
def joint(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """Of each pass of scoring: how many clients it held, and whether the model wrote."""
    found: list[tuple[int, bool]] = []
    real = together.answer_together

    def counted(parts: Sequence[Asked]) -> None:
        found.append((len(parts), parts[0].writing is not None))
        real(parts)

    monkeypatch.setattr(together, "answer_together", counted)
    return found


@pytest.mark.parametrize("model", MODELS)
def test_scores_are_those_of_each_alone(model: str, tmp_path: Path, joint: list[tuple[int, bool]]) -> None:
    experiment = federation(model, rounds=1, blocks=0.4 if model == "zoo:llama" else 1.0)
    alone = scored(experiment.model_copy(update={"parallel": 1}), tmp_path / "1")
    assert not joint
    beside = scored(experiment, tmp_path / "6")
    assert len(alone) == 6 * 4
    assert beside == pytest.approx(alone, rel=1e-3)  # training side by side rounds otherwise
    assert max(count for count, writes in joint if not writes) >= 4
    assert max(count for count, writes in joint if writes) >= 2


def test_clients_of_other_kinds_are_scored_apart(tmp_path: Path, joint: list[tuple[int, bool]]) -> None:
    """Ranks of their own; and texts of other lengths, which would be cut or go on in a pass with others."""
    experiment = federation("zoo:llama", rounds=1, method="hetlora")
    writes = {"kind": "generate", "prompt": "{text} ", "answer": "{label}", "score": "text"}
    data, mine = classes(tmp_path), []
    for i, client in enumerate(experiment.clients):
        task = writes | {"max_new_tokens": 1 + i % 2}
        mine.append(client.model_copy(update={"keep": 0.5 if i > 3 else 1.0, "task": task} | data))
    experiment = experiment.model_copy(update={"clients": mine})
    alone = scored(experiment.model_copy(update={"parallel": 1}), tmp_path / "1")
    assert scored(experiment, tmp_path / "6") == pytest.approx(alone, rel=1e-3)
    assert max(count for count, writes in joint if writes) == 2  # of four with the whole rank two write as much
    assert max(count for count, writes in joint if not writes) == 4


def test_clients_in_one_pass_ask_for_no_more_logits_than_one_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, joint: list[tuple[int, bool]]
) -> None:
    experiment = federation("zoo:llama", rounds=1, evaluation={"every": 1, "batch_size": 2})
    vocabulary = POOL.get("zoo:llama").model.config.vocab_size
    asked: list[int] = []
    real = together.answer_together

    def counted(parts: Sequence[Asked]) -> None:
        read = [int((part.batch["labels"][:, 1:] != -100).sum()) for part in parts if isinstance(part.batch, dict)]
        asked.extend([sum(read)] if len(read) > 1 else [])
        real(parts)

    monkeypatch.setattr(together, "answer_together", counted)
    whole = scored(experiment, tmp_path / "whole")
    assert max(asked) > 12
    asked.clear()
    monkeypatch.setattr(together, "MOST_LOGITS", 12 * vocabulary)
    assert scored(experiment, tmp_path / "apart") == pytest.approx(whole, rel=1e-3)
    assert 0 < max(asked) <= 12


def test_what_a_model_says_to_a_client_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of six clients whose batches fill a pass each, one's logits are in memory at a time, not those of all."""
    held: list[tuple[int, Any]] = []
    most = 0
    real = Passes._own

    def own(self: Passes, *arguments: Any) -> Any:
        nonlocal most
        found = real(self, *arguments)
        if not torch.is_grad_enabled():  # it is scored
            held.append((found.logits.untyped_storage().nbytes(), weakref.ref(found)))
        most = max(most, sum(size for size, there in held if there() is not None))
        return found

    experiment = federation("zoo:llama", rounds=1, evaluation={"every": 1, "batch_size": 3})
    monkeypatch.setattr(together, "FULL", 1)
    monkeypatch.setattr(Passes, "_own", own)
    scored(experiment, tmp_path)
    assert most <= max(size for size, _ in held)


def test_the_pass_alone_answers_as_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same adapters, scored alone and together: classes exactly, nats up to rounding."""
    data = classes(tmp_path)
    task = {"kind": "classify", "prompt": "{text}", "answer": "{label}", "labels": ["odd", "even"]}
    experiment = federation("zoo:llama", rounds=1)
    mine = [c.model_copy(update={"task": task} | data) for c in experiment.clients[:3]]
    server, clients = simulated(experiment.model_copy(update={"clients": mine, "parallel": 3}), tmp_path / "run", POOL)
    server.open()
    server.one_round()
    contexts = [client.context for client in clients.values()]
    trainer = contexts[0].trainer
    assert isinstance(trainer, TogetherTrainer)
    alone = [context.score(context.data.test) for context in contexts]
    beside = trainer.together([lambda c=context: c.score(c.data.test) for context in contexts])
    assert [s.metric for s in beside] == [s.metric for s in alone]
    assert [s.nats for s in beside] == pytest.approx([s.nats for s in alone], rel=1e-5)
    assert len({s.nats for s in alone}) == 3  # each has a head and an adapter of its own
    monkeypatch.setattr(trainer, "full", 1)  # nothing fits together: bit for bit as alone
    assert trainer.together([lambda c=context: c.score(c.data.test) for context in contexts]) == alone


def test_who_scores_longer_does_not_train_later(
    tmp_path: Path, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """H2Tune scores in the middle of a round; rows differ, and yet all updates are made side by side."""
    monkeypatch.setattr(together, "WASTE", 1.0)
    evaluation = {"every": 1, "batch_size": 3}  # clients need two to four batches
    experiment = federation(
        "zoo:llama", rounds=2, evaluation=evaluation, method={"name": "h2tune", "frames": "random"}
    )
    server, _ = simulated(experiment, tmp_path, POOL)
    server.run()
    assert set(sizes) == {6}


def test_a_pass_holds_no_more_tokens_than_fill_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[tuple[int, int]] = []
    real = together.answer_together

    def counted(parts: Sequence[Asked]) -> None:
        held.append((len(parts), sum(p.shape[0] for p in parts) * max(p.shape[1] for p in parts)))
        real(parts)

    monkeypatch.setattr(together, "answer_together", counted)
    monkeypatch.setattr(together, "FULL", 600)
    monkeypatch.setattr(together, "FULL_WRITING", 600)
    scored(federation("zoo:llama", rounds=1), tmp_path)
    assert max(count for count, _ in held) > 1
    assert all(tokens <= 600 for count, tokens in held if count > 1)


def test_a_pass_that_does_not_fit_into_memory_is_halved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = together.answer_together

    def small_machine(parts: Sequence[Asked]) -> None:
        if len(parts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        real(parts)

    experiment = federation("zoo:llama", rounds=1)
    alone = scored(experiment.model_copy(update={"parallel": 1}), tmp_path / "1")
    monkeypatch.setattr(together, "answer_together", small_machine)
    assert scored(experiment, tmp_path / "6") == pytest.approx(alone, rel=1e-3)
    events = [json.loads(line) for line in (tmp_path / "6" / "events.jsonl").read_text().splitlines()]
    assert sum("do not fit into memory" in e.get("text", "") for e in events) == 1


def test_one_clients_nan_stops_that_client_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights break after training: only scoring sees it."""
    experiment = federation("zoo:llama", rounds=1)
    server, clients = simulated(experiment, tmp_path, POOL)
    server.open()
    train = clients["c1"].method.train

    def breaks(*arguments: Any) -> Any:
        found = train(*arguments)
        with torch.no_grad():
            clients["c1"].method.factors[0].fill_(torch.nan)
        return found

    monkeypatch.setattr(clients["c1"].method, "train", breaks)
    server.one_round()
    assert server.members["c1"].standing == "stopped: the loss on held-out rows is not a number"
    assert {server.members[n].standing for n in clients if n != "c1"} == {"ok"}


def test_training_mode_is_what_each_client_left(tmp_path: Path) -> None:
    """Dropout: such clients train alone, with it, though others score meanwhile."""
    training = {"steps": 2, "batch_size": 4, "dropout": 0.2}
    experiment = federation("zoo:llama", rounds=2, training=training, evaluation={"every": 1, "batch_size": 3})
    alone = scored(experiment.model_copy(update={"parallel": 1}), tmp_path / "1")
    assert scored(experiment, tmp_path / "6") == pytest.approx(alone, rel=1e-5)
