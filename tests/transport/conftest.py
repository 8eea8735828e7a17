"""What the tests of faults compare with."""

from __future__ import annotations

import pytest
import torch
from fault_scenario import FaultScenario


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """What a scenario without faults ends with."""
    scenario = FaultScenario(tmp_path_factory.mktemp("quiet"))
    metrics = scenario.serve()
    assert metrics["finished"] and metrics["rounds"] == 3
    return scenario.outcome()
