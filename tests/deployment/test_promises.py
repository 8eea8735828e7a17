"""Settings that would promise nothing are refused; kits for this machine alone are remarked on; alone after the rounds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fault_scenario import FaultScenario
from federations import small
from simulated_network import kits
from typer.testing import CliRunner

from h2tune.cli.app import app
from h2tune.config import ConfigError, load_config
from h2tune.deployment.alone import asked_for, train_alone
from h2tune.deployment.join import attend
from h2tune.deployment.status import StatusFile, describe
from h2tune.errors import MethodError
from h2tune.methods.registry import method_of


@pytest.mark.parametrize("promise", [{"privacy": {"clip": 1.0, "noise": 1.0}}, {"secure_aggregation": {}}])
def test_a_method_that_shares_nothing_protects_nothing(promise: dict[str, object]) -> None:
    with pytest.raises(MethodError, match="shares nothing, so there is nothing to protect"):
        method_of(small(method="local", clients=3, weights="uniform", **promise))


@pytest.mark.parametrize("key", ["secure_aggregation", "privacy"])
def test_an_empty_promise_is_a_mistake(key: str, tmp_path: Path) -> None:
    path = tmp_path / "federation.yaml"
    path.write_text(small().to_yaml())
    assert getattr(load_config(path), key) is None  # null is said on purpose
    path.write_text(small().to_yaml().replace(f"{key}: null", f"{key}:"))
    with pytest.raises(ConfigError, match=f"{key}: nothing stands after the colon"):
        load_config(path)


def test_kits_for_localhost_are_remarked_on(tmp_path: Path) -> None:
    pytest.importorskip("nvflare", reason="NVFlare is not installed: pip install -e '.[network]'")
    path, warning = tmp_path / "federation.yaml", "the kits are for a server on this machine"
    plain = small().to_yaml()
    path.write_text(plain)  # as written by a person who names it: no remark
    assert warning not in CliRunner().invoke(app, ["provision", str(path), "--out", str(tmp_path / "a")]).output
    path.write_text(plain.replace("  host: localhost\n", ""))
    assert warning in CliRunner().invoke(app, ["provision", str(path), "--out", str(tmp_path / "b")]).output


def test_each_client_trains_alone_after_the_rounds_if_the_file_asks_for_it(tmp_path: Path) -> None:
    scenario = FaultScenario(tmp_path, rounds=1, baseline="local", training={"steps": 2, "batch_size": 2})
    scenario.serve()
    kit, client = scenario.kits["c1"], scenario.experiment.clients[1]
    own = {key: getattr(client, key) for key in ("model", "train", "test", "validation")}
    with StatusFile(kit):
        pass
    kit.keep_own(own)
    assert asked_for(kit, own)
    words = attend(kit, {})  # it was stopped before it had trained alone
    assert "the federation has finished" in words and "c1: on its test rows alone" in words
    final = json.loads((kit.folder / "state" / "final.json").read_text())["metric"]
    assert f"in the federation {final:.1%}" in words and not asked_for(kit, own)
    assert "on its test rows" not in attend(kit, {}) and "in the federation" in train_alone(kit, own)
    assert not asked_for(kits(small(), tmp_path / "others")["c1"], own)


def test_status_names_every_port(tmp_path: Path) -> None:
    scenario = FaultScenario(tmp_path, rounds=1)
    seen: list[str] = []
    train = scenario.clients["c1"]

    def look(client: object) -> None:
        scenario.network.after(0.5, lambda: seen.append(describe(scenario.kits["server"]).get("listens", [])))

    train.faults = {"train": ("before", look)}
    scenario.serve()
    assert seen and seen[0] == ["10.0.0.1:8443"]
