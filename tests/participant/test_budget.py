"""`keep: auto`: the largest share that a stated budget allows, and errors that say what is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from federations import build, small

from h2tune.client import Client
from h2tune.config import ClientConfig, ConfigError
from h2tune.declared import Settings
from h2tune.federation import run
from h2tune.methods.registry import resolve_method
from h2tune.participant.budget import adapter_bytes, kept_share, upload_bytes
from h2tune.utils.sizes import parse_size


def test_sizes() -> None:
    assert parse_size("200KB") == 200_000
    assert parse_size("1.5 GiB") == int(1.5 * 2**30)
    with pytest.raises(ValueError, match="not a size"):
        parse_size("many")


@pytest.mark.parametrize("text", ["1.2.3MB", ".", "", "-1KB", "1e3", "٣KB", "9" * 5000, "1 2"])
def test_what_is_no_size_is_called_so(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


def test_arithmetic() -> None:
    assert upload_bytes(35, 16) == 35 * 256 * 4
    assert adapter_bytes(*Settings().adapter_numbers([(96, 32, 1)], 8, 16)) == 16 * 8 * (96 + 32)
    framed = resolve_method("h2tune")[1]  # A and B stay at the frames, beside a private LoRA of the federation's rank
    trained, still = 16 * (96 + 32) + 8 * 8, 8 * (96 + 32)
    assert framed.adapter_numbers([(96, 32, 1)], 8, 16) == (trained, still)
    assert adapter_bytes(trained, still) == 16 * trained + 4 * still
    assert kept_share(16, lambda r: r <= 5, "") == 5 / 16
    assert kept_share(16, lambda r: True, "") == 1
    with pytest.raises(ValueError, match="too small"):
        kept_share(16, lambda r: False, "")


def auto(budget: dict[str, Any], folder: Path) -> Client:
    experiment = small(clients=1, rank=8)
    row = experiment.clients[0].model_dump() | {"keep": "auto", "budget": budget}
    rows = [ClientConfig.model_validate(row)]
    return build(experiment.model_copy(update={"clients": rows}), folder)[1]["c0"]


def test_upload_budget_decides_the_rank_and_is_kept(tmp_path: Path) -> None:
    # 7 slots x at most 10 depths x r^2 x 4 bytes within 5 KB: r = 4
    client = auto({"upload": "5KB"}, tmp_path / "run")
    assert client.context.keep == 4 / 8
    assert client.method.adapter_rank == 4
    assert client.store.read_json("budget.json") is None  # a run's folder is empty until the run begins
    client.context.keep_share()
    assert client.store.read_json("budget.json") == {"keep": 0.5}


def test_memory_and_step_time(tmp_path: Path) -> None:
    everything = auto({"memory": "1GB", "step_ms": 1e6}, tmp_path / "a")
    assert everything.context.keep == 1
    # the adapters that were tried for their time are gone again
    assert everything.context.base.peft is None
    assert auto({"memory": "300KB"}, tmp_path / "b").context.keep < 1
    with pytest.raises(ConfigError, match="c0: the budget is too small"):
        auto({"memory": "10B"}, tmp_path / "c")
    with pytest.raises(ConfigError, match="c0: the budget is too small"):
        auto({"step_ms": 1e-6}, tmp_path / "d")


def test_clients_of_different_keep_train_together(tmp_path: Path) -> None:
    for mask in ("dims", "entries"):
        base = small(clients=2, rank=8, rounds=2, method={"name": "h2tune", "mask": mask})
        rows = [c.model_copy(update={"keep": k}) for c, k in zip(base.clients, (1.0, 0.5), strict=True)]
        server, clients = build(base.model_copy(update={"clients": rows}), tmp_path / mask)
        server.run()
        assert server.round == 2
        sizes = {name: m.rounds[-1]["bytes_up"] for name, m in server.members.items()}
        assert sizes["c1"] < sizes["c0"]
        assert clients["c1"].method.adapter_rank == (4 if mask == "dims" else 8)


def test_a_run_with_a_budget_is_carried_out_and_resumed_with_the_same_share(tmp_path: Path) -> None:
    base = small(clients=2, rank=8, rounds=1)
    rows = [
        ClientConfig.model_validate(base.clients[0].model_dump() | {"keep": "auto", "budget": {"upload": "5KB"}}),
        base.clients[1],
    ]
    experiment = base.model_copy(update={"clients": rows})
    run(experiment, tmp_path / "run")
    kept = tmp_path / "run" / "clients" / "c0" / "budget.json"
    assert json.loads(kept.read_text()) == {"keep": 0.5}
    more = experiment.model_copy(update={"rounds": 2})
    assert run(more, tmp_path / "run", resume=True, changed=("rounds",))["clients"]["c0"]["rounds"]
    assert json.loads(kept.read_text()) == {"keep": 0.5}
