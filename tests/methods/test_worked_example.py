"""The worked example of docs/methods.md, taken from the page itself: it registers, runs and keeps its rule."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from federations import small

from h2tune import federation
from h2tune.methods.registry import Method

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"


def test_the_worked_example_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = PAGE.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    file = tmp_path / "my_methods.py"
    file.write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    import my_methods

    try:
        experiment = small(same_model=True, method="agreeing", rounds=1)
        metrics = federation.run(experiment, tmp_path / "run")
        assert all(c["final"]["nats"] > 0 for c in metrics["clients"].values())
        server = my_methods.AgreeingServer(SimpleNamespace(rank=1), None)
        b = [torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [-2.0]])]
        assert torch.equal(server.combine([(None, m) for m in b], [0.5, 0.5])[1], torch.tensor([[2.0], [0.0]]))
    finally:
        Method.registry.pop("agreeing", None)
