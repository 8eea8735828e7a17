"""What server and clients must hold alike is compared when a client joins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from fault_scenario import FaultScenario, quick

from h2tune.agreed import COMMON, agreed, check_agreed
from h2tune.config import PublicQuestions
from h2tune.errors import ProtocolError
from h2tune.methods.registry import resolve_method


def test_a_client_whose_kit_holds_other_settings_is_refused_on_both_sides(tmp_path: Path) -> None:
    scenario = FaultScenario(tmp_path)
    path = tmp_path / "c1" / "federation.yaml"
    plain = yaml.safe_load(path.read_text())
    plain["rounds"] += 1
    plain["training"]["steps"] += 1
    path.write_text(yaml.safe_dump(plain))
    metrics = scenario.serve()
    says = "its kit and the server's hold different settings: rounds, training.steps;"
    assert says in metrics["clients"]["c1"]["status"] and says in scenario.clients["c1"].stopped[0]
    assert metrics["clients"]["c1"]["final"] is None and metrics["clients"]["c0"]["final"]


@pytest.mark.parametrize("key", COMMON)
def test_each_value_by_which_clients_act_is_compared(key: str) -> None:
    experiment = quick()
    settings = resolve_method(experiment.method)[1]
    ours = agreed(experiment, settings)
    assert key in ours
    check_agreed(ours, ours)
    with pytest.raises(ProtocolError, match=f"different settings: {key}"):
        check_agreed(ours, ours | {key: "another"})


def test_settings_of_the_method_are_compared_with_their_defaults() -> None:
    experiment = quick()
    ours = agreed(experiment, resolve_method("h2tune")[1])
    same = agreed(experiment, resolve_method({"name": "h2tune", "core_loss": ours["method"]["core_loss"]})[1])
    check_agreed(ours, same)
    with pytest.raises(ProtocolError, match=r"method\.accept"):
        check_agreed(ours, agreed(experiment, resolve_method({"name": "h2tune", "accept": "always"})[1]))


def test_no_path_of_the_servers_machine_is_told(tmp_path: Path) -> None:
    codes, questions = (str(tmp_path / name) for name in ("codes.safetensors", "questions.jsonl"))
    public = {"source": questions, "task": "gsm8k"}
    experiment = quick().model_copy(update={"public": PublicQuestions(**public)})
    settings = resolve_method({"name": "h2tune", "frames": "words", "codes": codes})[1]
    told = agreed(experiment, settings)
    assert str(tmp_path) not in json.dumps(told) and told["public"]["task"] == "gsm8k"
    other = agreed(
        experiment.model_copy(update={"public": PublicQuestions(**public | {"source": "demo:fill"})}), settings
    )
    with pytest.raises(ProtocolError, match=r"different settings: public\.source"):
        check_agreed(other, told)


def test_what_only_one_version_knows_and_where_files_lie_is_no_difference() -> None:
    ours = agreed(quick(), resolve_method("h2tune")[1])
    check_agreed(ours, None)  # an older server
    check_agreed(ours, ours | {"temperature": 1.0})
    check_agreed({"public": {"source": "public/q.jsonl"}}, {"public": {"source": "/srv/kits/server/public/q.jsonl"}})
