"""A vertical federation over a network: who dies, restarts or stays away; first on a simulated network, then on the real one."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from loopback import SECONDS, free_port
from safetensors.torch import load_file
from simulated_network import FEDERATION, SimulatedClient, SimulatedNetwork
from typer.testing import CliRunner
from vertical.tables import config, planted

from h2tune.cli import vertical as commands
from h2tune.cli.app import app
from h2tune.config import ConfigError
from h2tune.deployment import vertical
from h2tune.deployment.kits import SCHEMA, About, Kit, KitError, is_vertical_kit, write_kit
from h2tune.deployment.status import describe
from h2tune.deployment.vertical import (
    VerticalParticipant,
    concerns,
    config_of,
    provision_vertical,
    serve_vertical,
)  # fmt: skip
from h2tune.protocol.codec import Message, decode, encode
from h2tune.transport import access
from h2tune.utils.files import StoreError
from h2tune.version import __version__
from h2tune.vertical import meeting
from h2tune.vertical.align import AlignmentError
from h2tune.vertical.config import VerticalConfig
from h2tune.vertical.federation import run
from h2tune.vertical.passive import Passive
from h2tune.vertical.predictor import Predictor

SALT = "a shared secret"
WAITS = {"deadline": 60, "silence": 5, "gather": 30, "patience": 20}


class _Kit(Kit):
    def _life(self, name: str) -> tuple[datetime, datetime]:
        return datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)


def tables(folder: Path) -> dict[str, dict[str, str]]:
    """The planted tables as files; each party's own values."""
    folder.mkdir()
    own = {}
    for name, (train, test) in planted().items():
        train.to_csv(folder / f"{name}.csv", index=False)
        assert test is not None
        test.to_csv(folder / f"{name}_test.csv", index=False)
        own[name] = {"train": str(folder / f"{name}.csv"), "test": str(folder / f"{name}_test.csv")}
    return own


def settings(**changes: Any) -> VerticalConfig:
    return config(align={"salt": SALT}, network=WAITS, **changes)


def whole(folder: Path, own: dict[str, dict[str, str]], **changes: Any) -> Path:
    """The same federation in one process."""
    plain = settings(**changes).model_dump(mode="json")
    for party in plain["parties"]:
        party |= own[party["name"]]
    run(VerticalConfig.model_validate(plain), folder)
    return folder


class Scenario:
    """Two passive parties and the active one over a simulated network."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.folder, self.network, made = folder, SimulatedNetwork(), settings(**changes)
        self.own = tables(folder / "data")
        self.clients: dict[str, SimulatedClient] = {}
        for name in ("server", "clinic", "shop"):
            role = "server" if name == "server" else "client"
            about = About(SCHEMA, role, name, FEDERATION, "localhost", 1, __version__)
            write_kit(folder / name, about, concerns(made, name, SALT))
            if role == "client":
                kit = _Kit(folder / name)
                self.clients[name] = SimulatedClient(
                    self.network, name, lambda k=kit, n=name: VerticalParticipant(k, self.own[n]).answer
                )

    def serve(self, start: bool = True) -> dict[str, Any]:
        for client in self.clients.values() if start else ():
            client.start()
        return serve_vertical(
            _Kit(self.folder / "server"), self.own["bank"], engine=self.network.engine, clock=self.network.clock
        )

    def fault(self, name: str, kind: str, moment: str, action: Any) -> None:
        self.clients[name].faults[kind] = (moment, action)


def test_other_data_at_a_party_are_noticed_before_it_connects(tmp_path: Path):
    scenario = Scenario(tmp_path, rounds=1)
    scenario.serve()
    for name, kit in (("bank", "server"), ("shop", "shop")):
        with Path(scenario.own[name]["train"]).open("a", encoding="utf-8") as file:
            file.write("\n")
        with pytest.raises(
            StoreError, match=rf"changed since it began: {name}.train .*begin anew: move .*{kit}.* away"
        ):
            scenario.serve(start=False) if name == "bank" else VerticalParticipant(
                _Kit(tmp_path / "shop"), scenario.own["shop"]
            )


def same_result(scenario: Scenario, reference: Path) -> bool:
    """Whether the networks of both sides are those of a run in one process, bit for bit."""
    pairs = [
        (scenario.folder / "server" / "run" / "server" / "top.safetensors", reference / "server" / "top.safetensors"),
        (
            scenario.folder / "shop" / "state" / "encoder.safetensors",
            reference / "clients" / "shop" / "encoder.safetensors",
        ),
        (
            scenario.folder / "clinic" / "state" / "encoder.safetensors",
            reference / "clients" / "clinic" / "encoder.safetensors",
        ),
    ]
    return all(
        all(a.equal(b) for a, b in zip(load_file(x).values(), load_file(y).values(), strict=True)) for x, y in pairs
    )


def test_over_a_network_the_result_is_that_of_one_process(tmp_path: Path):
    scenario = Scenario(tmp_path)
    metrics = scenario.serve()
    assert same_result(scenario, whole(tmp_path / "whole", scenario.own))
    assert metrics["final"]["balanced"] > 0.5 and metrics["seconds_to_join"] >= 0
    assert 0 < metrics["alone"]["balanced"] < metrics["final"]["balanced"]
    answers = [
        json.loads(line) for line in (tmp_path / "server" / "run" / "predictions.jsonl").read_text().splitlines()
    ]
    assert len(answers) == 100 and answers[0]["parties"] == ["bank", "clinic", "shop"]
    answered = scenario.serve(start=False)  # a finished run is not run again
    assert answered["rounds"] == metrics["rounds"]


def test_a_party_hands_its_part_over_so_that_its_view_predicts(tmp_path: Path):
    scenario = Scenario(tmp_path, rounds=1)
    scenario.serve()
    run, clinic, out = tmp_path / "server" / "run", tmp_path / "clinic", str(tmp_path / "out.jsonl")
    files = ["--file", ",".join(f"{name}={scenario.own[name]['test']}" for name in ("bank", "clinic")), "--out", out]
    place = f"copy state/party.json and state/encoder.safetensors of its kit .* into {run}/clients/clinic/"
    refused = {
        clinic: "is the kit of clinic, a party of a vertical federation.*active party's, KIT/run",
        tmp_path / "server": f"is the active party's kit: name its run, {run}",
        run: f"The part of clinic is not in {run}.*decides to hand its part over, {place}",
    }
    for folder, text in refused.items():
        for words in (["predict", str(folder), *files], ["export", str(folder), "--client", "bank,clinic"]):
            found = CliRunner().invoke(app, words)
            assert found.exit_code == 1 and re.search(text, found.stderr), found.stderr
    for name in ("party.json", "encoder.safetensors"):
        (run / "clients" / "clinic").mkdir(exist_ok=True)
        shutil.copy(clinic / "state" / name, run / "clients" / "clinic" / name)
    assert CliRunner().invoke(app, ["predict", str(run), *files]).exit_code == 0
    reference = Predictor(whole(tmp_path / "whole", scenario.own, rounds=1))
    expected = reference.predict({name: scenario.own[name]["test"] for name in ("bank", "clinic")})
    assert [json.loads(line) for line in Path(out).read_text().splitlines()] == expected
    assert Predictor(commands.export(run, "clinic", tmp_path / "part")).here == ["clinic"]


@pytest.mark.parametrize("kind", ["step", "local", "predict"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_party_killed_in_mid_round_and_restarted_changes_nothing(tmp_path: Path, kind: str, moment: str):
    scenario = Scenario(tmp_path)
    scenario.fault("shop", kind, moment, lambda client: client.kill(back_after=3))
    scenario.serve()
    assert scenario.clients["shop"].lives == 2
    if kind != "predict":  # a round's test scores may miss a party; its training may not
        assert same_result(scenario, whole(tmp_path / "whole", scenario.own))


def test_a_party_that_stays_away_is_left_out(tmp_path: Path):
    scenario = Scenario(tmp_path)
    scenario.fault("shop", "local", "before", lambda client: client.kill())
    metrics = scenario.serve()
    assert metrics["rounds"] == settings().rounds and metrics["final"]["balanced"] > 0.4
    events = (tmp_path / "server" / "run" / "events.jsonl").read_text()
    assert "going on without them" in events
    answers = [
        json.loads(line) for line in (tmp_path / "server" / "run" / "predictions.jsonl").read_text().splitlines()
    ]
    assert all(answer["parties"] == ["bank", "clinic"] for answer in answers)


def test_a_server_that_stops_goes_on_where_it_was(tmp_path: Path):
    scenario = Scenario(tmp_path)

    class Stop(Exception):
        pass

    def stop(client: SimulatedClient) -> None:
        raise Stop

    scenario.fault("shop", "predict", "after", stop)
    with pytest.raises(Stop):
        scenario.serve()
    for client in scenario.clients.values():
        client.start()
    scenario.serve(start=False)
    assert same_result(scenario, whole(tmp_path / "whole", scenario.own))


def test_a_party_with_an_outdated_kit_is_named_with_the_settings(tmp_path: Path):
    scenario, kit = Scenario(tmp_path, rounds=1), tmp_path / "shop" / "federation.yaml"
    plain = yaml.safe_load(kit.read_text())
    plain["seed"], plain["training"]["steps"] = 7, 9
    kit.write_text(yaml.safe_dump(plain))
    text = "shop cannot take part: its kit and the server's hold different settings: seed, training.steps; `h2tune provision`"
    with pytest.raises(AlignmentError, match=text):
        scenario.serve()


def test_a_server_of_an_earlier_version_says_no_settings_and_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(meeting, "settings", lambda config: {})
    assert Scenario(tmp_path, rounds=1).serve()["rounds"] == 1


def test_kits_hold_only_what_concerns_a_party(tmp_path: Path):
    made = settings()
    kit = yaml.safe_dump(concerns(made, "shop", SALT))
    assert "class-1" not in kit and SALT in kit and "shop" in kit
    write_kit(
        tmp_path / "shop",
        About(SCHEMA, "client", "shop", FEDERATION, "localhost", 1, __version__),
        yaml.safe_load(kit),
    )
    assert is_vertical_kit(tmp_path / "shop") and not is_vertical_kit(tmp_path)
    with pytest.raises(ConfigError, match="--train is missing"):
        config_of(Kit(tmp_path / "shop"), {})


def test_the_active_party_is_running_while_it_trains_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    scenario, seen, train = Scenario(tmp_path, rounds=1), [], vertical.alone
    kit = _Kit(tmp_path / "server")

    def alone(*args: Any) -> Any:
        before, end = describe(kit), time.monotonic() + 20
        while (after := describe(kit))["time"] == before["time"] and time.monotonic() < end:
            time.sleep(0.05)
        seen.append((after["state"], sorted(after["clients"]), after["time"] > before["time"]))
        with pytest.raises(KitError, match="one process at a time"):
            serve_vertical(kit, scenario.own["bank"])
        return train(*args)

    monkeypatch.setattr(vertical, "alone", alone)
    scenario.serve()
    assert seen == [("running", ["clinic", "shop"], True)] and describe(kit)["state"] == "finished"


def test_a_message_that_cannot_be_answered_tells_nothing_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    scenario = Scenario(tmp_path, rounds=1)
    party = VerticalParticipant(_Kit(tmp_path / "shop"), scenario.own["shop"])

    def fail(self: Passive, data: bytes) -> bytes:
        raise AttributeError("row 'patient 7' of /home/someone/train.csv")

    monkeypatch.setattr(Passive, "handle", fail)
    for data, reason in ((encode(Message("join", "r", 0, "shop", "m")), "'join' could not be answered"), (b"", "")):
        said = decode(party.answer(data))
        assert (said.kind, said.client) == ("failure", "shop") and reason in said.payload.meta["reason"]
        assert "patient" not in str(said.payload.meta) and party.doing == {}
    said = decode(party.answer(encode(Message("step", "another", 1, "shop", "m"))))
    assert "this party's state belongs to run r" in said.payload.meta["reason"]


def test_the_servers_kit_carries_the_class_vectors(tmp_path: Path):
    """By their place in it, so that it works on another machine; a passive party's kit has none."""
    pytest.importorskip("nvflare", reason="NVFlare is not installed: pip install -e '.[network]'")
    vectors, folder = tmp_path / "vectors.csv", tmp_path / "kits"
    vectors.write_text("class,a\n" + "".join(f"class-{c},{c}\n" for c in range(4)))
    plain = config(network=WAITS).model_dump(mode="json")
    plain["label"] |= {"vectors": str(vectors), "classes": [f"class-{c}" for c in range(4)]}
    provision_vertical(VerticalConfig.model_validate(plain), folder)
    said = yaml.safe_load((folder / "server" / "federation.yaml").read_text())["label"]
    assert said["vectors"] == "public/vectors.csv"
    (folder / "server").rename(tmp_path / "moved")
    found, _ = config_of(Kit(tmp_path / "moved"), {"train": str(vectors)})
    assert Path(found.label.vectors).read_text() == vectors.read_text() and Path(found.label.vectors).is_absolute()
    shop = yaml.safe_load((folder / "shop" / "federation.yaml").read_text())["label"]
    assert shop["vectors"] is None and not (folder / "shop" / "public").exists()


def test_kits_of_parties_are_made_as_those_of_clients(tmp_path: Path):
    pytest.importorskip("nvflare", reason="NVFlare is not installed: pip install -e '.[network]'")
    made, folder = config(network=WAITS), tmp_path / "kits"
    assert [path.name for path in provision_vertical(made, folder)] == ["server", "clinic", "shop"]
    plain = {name: yaml.safe_load((folder / name / "federation.yaml").read_text()) for name in ("server", "shop")}
    assert plain["server"]["align"]["salt"] == plain["shop"]["align"]["salt"] != made.align.salt
    key = folder / "shop" / "engine" / "startup" / "client.key"
    assert key.stat().st_mode & 0o777 == 0o600 and not list(key.parent.glob("*.sh"))
    access.write_revoked(folder / "server" / "engine", ["clinic"])
    before = key.read_bytes()
    assert [path.name for path in provision_vertical(made, folder, renew=["shop", "server"])] == ["server", "shop"]
    assert key.read_bytes() != before and access.read_revoked(folder / "server" / "engine") == ["clinic"]
    assert yaml.safe_load((folder / "shop" / "federation.yaml").read_text())["align"] == plain["shop"]["align"]
    named = made.model_dump(mode="json")
    named["parties"][1]["name"] = "authority"
    with pytest.raises(KitError, match="No party can be named `server` or `authority`"):
        provision_vertical(VerticalConfig.model_validate(named), tmp_path / "more")


CHILD = """
import sys, json
from h2tune.deployment.kits import Kit
from h2tune.deployment.vertical import attend_vertical, serve_vertical
kit, own = Kit(sys.argv[1]), json.loads(sys.argv[2])
print((serve_vertical if kit.about.role == "server" else attend_vertical)(kit, own), flush=True)
"""


def start(kit: Path, own: dict[str, str]) -> subprocess.Popen[str]:
    log = open(kit / "log.txt", "a")  # noqa: SIM115 - lives as long as the process
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(kit), json.dumps(own)], stdout=log, stderr=log, text=True, env=env
    )


@pytest.mark.slow
def test_three_processes_on_the_real_engine_one_of_them_killed(tmp_path: Path):
    pytest.importorskip("nvflare", reason="NVFlare is not installed: pip install -e '.[network]'")
    changes = {"rounds": 60, "training": {"steps": 10, "local_steps": 4, "dim": 8, "hidden": 16, "batch": 32}}
    made = settings(**changes).model_dump(mode="json")
    made["network"] |= {"port": free_port(), "gather": SECONDS, "silence": 20, "patience": SECONDS}
    own, folder = tables(tmp_path / "data"), tmp_path / "kits"
    provision_vertical(VerticalConfig.model_validate(made), folder)
    processes = {
        name: start(folder / name, own["bank" if name == "server" else name]) for name in ("server", "clinic", "shop")
    }
    events = folder / "server" / "run" / "events.jsonl"

    def committed() -> int:
        return events.read_text().count("round_committed") if events.is_file() else 0

    end = time.monotonic() + 3 * SECONDS
    while committed() < 5 and time.monotonic() < end:
        time.sleep(0.05)
    processes["shop"].send_signal(signal.SIGKILL)
    processes["shop"].wait()
    processes["shop"] = start(folder / "shop", own["shop"])
    for process in processes.values():
        process.wait(timeout=4 * SECONDS)
    assert [p.returncode for p in processes.values()] == [0, 0, 0], (folder / "server" / "log.txt").read_text()[-2000:]
    metrics = json.loads((folder / "server" / "run" / "metrics.json").read_text())
    assert metrics["rounds"] == 60
    reference = whole(tmp_path / "whole", own, **changes)
    top = load_file(folder / "server" / "run" / "server" / "top.safetensors")
    assert all(t.equal(top[n]) for n, t in load_file(reference / "server" / "top.safetensors").items())
