"""What is printed: tables within 80 columns, means that leave nobody out silently."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from h2tune.cli.output import print_plan, print_run, short_model
from h2tune.plan import ClientPlan, Plan


def result(base: float, final: float | None) -> dict[str, Any]:
    round_ = {"round": 1, "bytes_up": 24_600, "bytes_down": 24_600}
    return {
        "model": "/models/Llama-3.2-1B",
        "task": "sst2",
        "base": {"metric": base, "nats": 1.0},
        "final": None if final is None else {"metric": final, "nats": 1.0},
        "rounds": [round_],
    }


def test_means_of_a_run_are_over_clients_with_every_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clients = {"a": result(0.2, 1.0), "b": result(0.4, None)}
    (tmp_path / "metrics.json").write_text(
        json.dumps({"name": "n", "method": "h2tune", "rounds": 1, "clients": clients})
    )
    print_run(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    mean = next(line for line in lines if line.startswith("mean"))
    assert mean.split() == ["mean", "of", "1", "20.0", "%", "100.0", "%"]
    assert lines[-1] == "b has no result in at least one column, so the means leave it out."
    assert "24.6 kB" in lines[3] and "Llama-3.2-1B" in lines[3] and "/models" not in lines[3]


def test_a_plan_fits_eighty_columns(capsys: pytest.CaptureFixture[str]) -> None:
    known = ClientPlan("hospital", "meta/Llama-3.2-1B", rank=16, adapter_parameters=11_274_289, training_memory=180_000_000,
                       bytes_up=28_700, bytes_down=28_700, lora_bytes=45_100_000, setup_bytes_up=36_200_000,
                       setup_bytes_down=2_300_000)  # fmt: skip
    print_plan(Plan([known, ClientPlan("b", "x")], [], [], depth=None))
    text = capsys.readouterr().out
    table = text.split("\n\n")[0].splitlines()
    assert max(map(len, table)) <= 80 and "None" not in text and "KB" not in text
    assert table[-2].split() == (
        [
            "hospital",
            "Llama-3.2-1B",
            "16",
            "11.3",
            "M",
            "180",
            "MB",
            "28.7",
            "kB",
            "28.7",
            "kB",
            "45.1",
            "MB",
            "36.2",
            "MB",
            "2.3",
            "MB",
        ]
    )
    assert table[-1].split() == ["b", "x", *"--------"]


def test_short_names_of_models() -> None:
    names = {"zoo:gpt2": "zoo:gpt2", "org/model-1b": "model-1b", "/data/models/own/": "own", "plain": "plain"}
    assert {name: short_model(name) for name in names} == names
