"""What an export for some of the parties holds, and that it predicts as its run does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from vertical.tables import config, planted

from h2tune.vertical.federation import run
from h2tune.vertical.predictor import Predictor

CLASSES = [f"class-{c}" for c in range(4)]
SHARED = ("bias", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias")  # of the active party, not of one view


def ran(folder: Path, method: dict[str, Any], rows: int = 200, **changes: Any) -> tuple[Path, dict[str, pd.DataFrame]]:
    """A short run in which the clinic alone labels rows of class 3 and the shop has few; its folder and the test tables."""
    frames = planted(unseen=3)
    train, test = frames["shop"]
    kinds = frames["bank"][0].set_index("id")["kind"]
    # The shop shares nobody of class 2, so that it has not seen that class.
    frames["shop"] = (train[[kinds.get(i) != "class-2" for i in train["id"]]].head(rows), test)
    settings = config(unseen=3, baseline="none", method={"warmup": 2, "select": "none"} | method, **changes)
    run(settings, folder / "run", frames=frames)
    return folder / "run", {name: test for name, (_, test) in frames.items() if name != "clinic"}


@pytest.mark.parametrize("method", [{"top": "mlp", "gate": "learned"}, {"gate": "coverage"}, {}])
def test_no_tensor_of_an_export_holds_anything_of_a_party_that_is_left_out(method: dict[str, Any], tmp_path: Path):
    folder, _ = ran(tmp_path, method)
    before = load_file(folder / "server" / "top.safetensors")
    after = load_file(Predictor(folder).export(["bank", "shop"], tmp_path / "part") / "server" / "top.safetensors")
    assert before.keys() == after.keys()
    left = before.keys() - set(SHARED)
    for name in left:
        dim, k = 8, 1  # the clinic
        if name == "mlp.0.weight":
            parts = [t.reshape(t.shape[0], 3, dim).transpose(0, 1) for t in (before[name], after[name])]
        elif name.startswith("gate.inner"):
            mine = int(name.split(".")[2]) == k
            assert bool(after[name].any()) is not mine and (mine or torch.equal(before[name], after[name]))
            continue
        else:
            parts = [before[name], after[name]]
        assert parts[0].shape[0] == 3 and bool(parts[0][k].any()) and not parts[1][k].any(), name
        assert torch.equal(parts[0][[0, 2]], parts[1][[0, 2]]), name
