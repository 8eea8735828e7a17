"""The cached prefix: exact to the bit however a text's states came about, and the same model as without it."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from families import NAMES, build
from federations import equal, outcome, small
from torch import Tensor

from h2tune.core.slots import layout_of
from h2tune.federation import run
from h2tune.participant.batches import Batch
from h2tune.participant.passes import PLAIN, Passes
from h2tune.participant.prefix import Prefix
from h2tune.participant.state_cache import StateCache

ROWS = [[5, 9, 11, 3], [7, 8, 4, 10, 12, 6, 20], [30, 31]]
PLENTY = 1 << 20


def batch(labels: bool = True) -> Batch:
    """Right-padded rows; each asks for its last two tokens."""
    ids = torch.zeros(len(ROWS), 7, dtype=torch.long)
    mask, wanted = torch.zeros_like(ids), torch.full_like(ids, -100)
    for place, row in enumerate(ROWS):
        ids[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = 1
        wanted[place, len(row) - 1] = row[-1]
    return {"input_ids": ids, "attention_mask": mask} | ({"labels": wanted} if labels else {})


def prefix(model: Any, cache: StateCache, first: str = "base") -> Prefix:
    return Prefix(model, layout_of(model).top(0.5), first, cache)


def said(model: Any, passes: Passes) -> Tensor:
    """Logits at real tokens."""
    rows = batch(labels=False)
    logits: Tensor = passes.whole(model, rows).logits
    return logits if logits.ndim == 2 else logits[rows["attention_mask"].bool()]


@pytest.mark.parametrize("name", NAMES)
def test_a_pass_from_the_prefix_is_the_model(name: str) -> None:
    model = build(name).eval()
    with torch.no_grad():
        whole = said(model, PLAIN)
        cold = said(model, Passes(prefix(model, StateCache(PLENTY))))
    torch.testing.assert_close(cold, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_text", "bert-cls"])
def test_cold_warm_evicted_and_resumed_are_equal_bit_for_bit(name: str, tmp_path: Path) -> None:
    model = build(name).eval()
    kept = prefix(model, StateCache(PLENTY, PLENTY, tmp_path))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cold, warm = said(model, Passes(kept)), said(model, Passes(kept))
        evicted = said(model, Passes(prefix(model, StateCache(0))))
        small_memory = said(model, Passes(prefix(model, StateCache(600))))
        resumed = said(model, Passes(prefix(model, StateCache(0, PLENTY, tmp_path))))
    assert len(list(tmp_path.glob("*.states"))) == len(ROWS)
    for other in (warm, evicted, small_memory, resumed):
        assert torch.equal(cold, other)


@pytest.mark.parametrize("training", ["all", "parts"])
def test_states_have_no_dropout_whatever_is_training(training: str) -> None:
    model = build("gpt2").eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    usual = prefix(model, StateCache(PLENTY)).states(torch.tensor(ROWS[1]))
    model.train()
    model.training = training == "all"
    assert torch.equal(prefix(model, StateCache(PLENTY)).states(torch.tensor(ROWS[1])), usual)
    assert model.training == (training == "all")


@pytest.mark.parametrize("name", ["llama", "bert-cls"])
def test_states_do_not_depend_on_whether_training_or_scoring_asked_first(name: str) -> None:
    model = build(name).eval()
    scored = prefix(model, StateCache(PLENTY)).states(torch.tensor(ROWS[1]))
    with torch.autocast("cpu", torch.bfloat16):
        trained = prefix(model, StateCache(PLENTY)).states(torch.tensor(ROWS[1]))
    assert torch.equal(trained, scored)


def test_gradients_from_the_prefix_are_the_models() -> None:
    found = []
    for passes in (None, StateCache(PLENTY)):
        model = build("llama").eval()
        run_as = Passes(prefix(model, passes)) if passes else PLAIN
        run_as.answered(model, batch()).loss.backward()
        top = layout_of(model).top(0.5).blocks_of(model)
        found.append([p.grad for block in top for p in block.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_logits_are_made_only_where_answers_are_read() -> None:
    model, rows = build("gemma2").eval(), batch()
    with torch.no_grad():
        out = PLAIN.answered(model, rows)
        asked = rows["labels"][:, 1:] != -100
        plain = model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"], labels=rows["labels"])
    assert out.logits.shape[0] == int(asked.sum())
    torch.testing.assert_close(out.logits, plain.logits[:, :-1][asked])
    torch.testing.assert_close(out.loss, plain.loss)


def test_another_model_or_another_cut_is_never_taken_for_this_one(tmp_path: Path) -> None:
    model = build("llama").eval()
    with torch.no_grad():
        said(model, Passes(prefix(model, StateCache(PLENTY, PLENTY, tmp_path), "one")))
        files = len(list(tmp_path.glob("*.states")))
        said(model, Passes(prefix(model, StateCache(PLENTY, PLENTY, tmp_path), "other")))
    assert len(list(tmp_path.glob("*.states"))) == 2 * files


def test_a_damaged_file_is_made_again(tmp_path: Path) -> None:
    model = build("llama").eval()
    with torch.no_grad():
        right = said(model, Passes(prefix(model, StateCache(PLENTY, PLENTY, tmp_path))))
        whole = {file: file.read_bytes() for file in tmp_path.glob("*.states")}
        for file, contents in whole.items():
            file.write_bytes(contents[:-4])
        room = sum(map(len, whole.values()))  # what is replaced needs no room beside itself
        again = said(model, Passes(prefix(model, StateCache(PLENTY, room, tmp_path))))
    assert torch.equal(right, again)
    assert {file: file.read_bytes() for file in tmp_path.glob("*.states")} == whole


def test_a_cache_that_is_full_goes_on_and_says_so_once(tmp_path: Path) -> None:
    model = build("llama").eval()
    passes = Passes(prefix(model, StateCache(100, 100, tmp_path)))
    with warnings.catch_warnings(record=True) as told, torch.no_grad():
        warnings.simplefilter("always")
        first, second = said(model, passes), said(model, passes)
    assert torch.equal(first, second)
    assert [str(w.message).split(";")[0] for w in told] == ["the cache of hidden states is full"]


def test_two_processes_may_keep_the_same_state_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states, replace, own = torch.ones(2, 3), os.replace, os.getpid()

    def after_another(partial: Path, path: Path) -> None:
        monkeypatch.setattr(os, "replace", replace)
        monkeypatch.setattr(os, "getpid", lambda: own + 1)
        StateCache(PLENTY, PLENTY, tmp_path).put("key", states)
        replace(partial, path)

    monkeypatch.setattr(os, "replace", after_another)
    StateCache(PLENTY, PLENTY, tmp_path).put("key", states)
    found = StateCache(PLENTY, PLENTY, tmp_path).get("key", (2, 3), torch.float32)
    assert found is not None and torch.equal(found, states)
    assert [path.name for path in tmp_path.iterdir()] == ["key.states"]


def test_a_full_disk_stops_the_cache_and_not_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(partial: Path, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    cache = StateCache(PLENTY, PLENTY, tmp_path)
    with pytest.warns(UserWarning, match="kept in memory alone.*No space left"):
        cache.put("key", torch.ones(2, 3))
    assert cache.get("key", (2, 3), torch.float32) is not None and not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["h2tune", "local"])
def test_a_run_on_the_top_blocks_resumes_bit_for_bit(method: str, tmp_path: Path) -> None:
    training = {"steps": 4, "batch_size": 4, "schedule": "constant"}
    federation = small(
        method=method, rounds=2, blocks=0.34, training=training, cache={"memory": "50kB", "disk": "2MB"}
    )
    run(federation, tmp_path / "whole")
    run(federation.model_copy(update={"rounds": 1}), tmp_path / "half")
    run(federation, tmp_path / "half", resume=True, changed=["rounds"])
    adapted = outcome(tmp_path / "whole")
    assert equal({k: v for k, v in adapted.items() if "trilora" in k}, adapted_of(tmp_path / "half", adapted))


def adapted_of(folder: Path, like: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in outcome(folder).items() if k in like and "trilora" in k}
