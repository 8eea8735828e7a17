"""Runs that stop and go on: kills, interrupts and full disks; late joiners; what may change when a run is resumed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from federations import equal, outcome, small
from model_folders import write_rows

from h2tune import federation
from h2tune.config import Experiment
from h2tune.methods.core_server import CoreServer
from h2tune.session import RoundInterrupted
from h2tune.store import ClientStore, RunStore, StoreError
from h2tune.tasks.demo_problems import demo_rows


class Killed(BaseException):
    """Not an Exception: nothing may catch it, as nothing catches a kill."""


KILLS = {
    "before a commit": (RunStore, "commit", 2, "before"),
    "after a commit": (RunStore, "commit", 1, "after"),
    "before the first commit": (RunStore, "commit", 1, "before"),
    "between two clients of a round": (ClientStore, "save_state", 4, "before"),
    "after a client's own save": (ClientStore, "save_state", 3, "after"),
    "while results are written": (ClientStore, "save_adapter", 1, "before"),
}


@pytest.mark.parametrize("moment", KILLS)
def test_killed_and_resumed_equals_never_killed(
    moment: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name, count, when = KILLS[moment]
    original, calls = getattr(owner, name), []

    def dying(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == count and when == "before":
            raise Killed
        result = original(*args, **kwargs)
        if len(calls) == count:
            raise Killed
        return result

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dying)
        with pytest.raises(Killed):
            federation.run(small(), tmp_path / "run")
    federation.run(small(), tmp_path / "run", resume=True)
    assert equal(outcome(finished), outcome(tmp_path / "run"))


def test_kill_9_of_the_process_and_resume(finished: Path, tmp_path: Path) -> None:
    script = (
        "import torch; torch.set_num_threads(1)\n"
        "from federations import small\nfrom h2tune import federation\n"
        f"federation.run(small(), {str(tmp_path / 'run')!r})\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    )
    core = tmp_path / "run" / "server" / "core.safetensors"
    deadline = time.monotonic() + 120
    while not core.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert core.exists()
    federation.run(small(), tmp_path / "run", resume=True)
    assert equal(outcome(finished), outcome(tmp_path / "run"))


def test_interrupt_and_full_disk_lose_nothing_committed(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        if (tmp_path / "run" / "server" / "core.safetensors").exists():
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="No space left"):
            federation.run(small(), tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.partial"))
    federation.run(small(), tmp_path / "run", resume=True)
    assert equal(outcome(finished), outcome(tmp_path / "run"))


def test_a_run_is_never_overwritten_nor_resumed_with_another_config(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds a run already"):
        federation.run(small(), finished)
    with pytest.raises(StoreError, match=r"differs from the run's in rank, training\.batch_size.*--changed rank"):
        changed = small(rank=8, training={"steps": 4, "batch_size": 8})
        federation.run(changed, finished, resume=True)
    (tmp_path / "run.json").write_text(json.dumps({"schema": 99, "run": "x", "version": "9.0"}))
    with pytest.raises(StoreError, match="newer"):
        RunStore(tmp_path).open()


def test_a_run_that_was_cut_off_before_it_had_an_identity_begins_again(tmp_path: Path) -> None:
    config = small(rounds=1, method="local", baseline="local", training={"steps": 1})
    for folder in (tmp_path / "run", tmp_path / "run" / "baselines" / "local"):
        store = RunStore(folder)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("h2tune.store._plain", lambda value: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                store.create(config)
        assert [path.name for path in folder.iterdir()] == ["config.yaml"]
        store.create(config)
        (folder / "run.json").unlink()
        other = config.model_copy(update={"seed": 5})
        with pytest.raises(StoreError, match="not empty and is not a run"):  # a file that somebody wrote stays
            store.create(other)


@pytest.mark.parametrize(
    "name",
    ["run.json", "data.json", "config.yaml", "server/core.safetensors", "server/frames.safetensors",
     "server/reports.jsonl", "clients/c0/state-000003.safetensors"],
)  # fmt: skip
@pytest.mark.parametrize("cut", [True, False])
def test_a_damaged_file_of_a_run_is_named(name: str, cut: bool, finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    for result in folder.glob("clients/*/adapter"):
        shutil.rmtree(result)
    (folder / "metrics.json").unlink()
    data = (folder / name).read_bytes()
    # A config that was cut off may still be YAML: then it differs from the file's, which is said.
    (folder / name).write_bytes(data[: len(data) // 2] if cut and name != "config.yaml" else b"\xff" + data)
    with pytest.raises(StoreError, match=f"{re.escape(str(folder / name))} is damaged: put it back"):
        federation.run(small(), folder, resume=True)


def test_more_rounds_may_be_added_when_said(finished: Path, tmp_path: Path) -> None:
    federation.run(small(rounds=1, training={"steps": 4, "batch_size": 4, "schedule": "constant"}), tmp_path / "run")
    longer = small(rounds=2, training={"steps": 4, "batch_size": 4, "schedule": "constant"})
    metrics = federation.run(longer, tmp_path / "run", resume=True, changed=["rounds"])
    assert metrics["rounds"] == 2


def one_update(rounds: int) -> Experiment:
    training = {"steps": 1, "batch_size": 4, "schedule": "constant"}
    return small(rounds=rounds, method="fedit", same_model=True, baseline=["local"], training=training)


def baseline_rounds(run: Path) -> list[int]:
    metrics = json.loads((run / "baselines" / "local" / "metrics.json").read_text())
    return [len(client["rounds"]) for client in metrics["clients"].values()]


def test_a_baseline_is_made_anew_where_the_config_was_changed_and_only_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, fresh = tmp_path / "run", tmp_path / "fresh"
    federation.run(one_update(1), run)
    account = run / "baselines" / "local" / "clients" / "c0" / "row_privacy.json"
    account.write_text("{}")  # what was spent stays spent
    metrics = federation.run(one_update(2), run, resume=True, changed=["rounds"])
    assert baseline_rounds(run) == [2, 2] and account.is_file()
    alone = federation.run(one_update(2), fresh)
    assert equal(outcome(run / "baselines" / "local"), outcome(fresh / "baselines" / "local"))
    assert metrics["mean"]["local"] == alone["mean"]["local"]

    began: list[str] = []
    real = federation._federate
    monkeypatch.setattr(federation, "_federate", lambda *args: (began.append(args[0].method), real(*args))[1])
    federation.run(one_update(2), run, resume=True)
    assert began == ["fedit"]


def test_a_run_that_was_stopped_in_its_baseline_goes_on_with_a_changed_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(*args: Any, **kwargs: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(ClientStore, "save_adapter", dying)
        with pytest.raises(Killed):
            federation.run(one_update(1), tmp_path / "run")
    metrics = federation.run(one_update(2), tmp_path / "run", resume=True, changed=["rounds"])
    assert metrics["rounds"] == 2 and baseline_rounds(tmp_path / "run") == [2, 2]


def test_a_baseline_is_made_anew_where_the_data_were_changed(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", demo_rows("train", "fill", 8, 0))
    experiment, run = one_update(1), tmp_path / "run"
    first = experiment.clients[0].model_copy(update={"train": str(rows)})
    experiment = experiment.model_copy(update={"clients": [first, *experiment.clients[1:]]})
    federation.run(experiment, run)
    before = outcome(run / "baselines" / "local")
    write_rows(rows, demo_rows("train", "fill", 8, 1))
    federation.run(experiment, run, resume=True, changed=["data"])
    after = outcome(run / "baselines" / "local")
    federation.run(experiment, tmp_path / "fresh")
    assert not equal(before, after)
    assert equal(after, outcome(tmp_path / "fresh" / "baselines" / "local"))


def with_late(experiment: Any, name: str = "c1", joins: int = 3) -> Any:
    rows = [c.model_copy(update={"joins": joins}) if c.name == name else c for c in experiment.clients]
    return experiment.model_copy(update={"clients": rows})


def test_late_joiner_regresses_on_the_stored_frames_and_takes_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = with_late(small(rounds=4))
    metrics = federation.run(experiment, tmp_path / "whole")
    rounds = {name: [r["round"] for r in c["rounds"]] for name, c in metrics["clients"].items()}
    assert rounds == {"c0": [1, 2, 3, 4], "c1": [3, 4]}
    assert metrics["clients"]["c1"]["final"] is not None
    original, calls = RunStore.commit, []

    def dying(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        calls.append(1)
        if len(calls) == 2:  # the round before it joins: the frames must come back from disk
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "commit", dying)
        with pytest.raises(Killed):
            federation.run(experiment, tmp_path / "run")
    federation.run(experiment, tmp_path / "run", resume=True)
    assert equal(outcome(tmp_path / "whole"), outcome(tmp_path / "run"))


@pytest.mark.parametrize("error", [RoundInterrupted("c9 was revoked"), Killed()])
def test_a_round_that_begins_again_still_knows_the_client_that_joined_before_it(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = with_late(small(rounds=4))
    federation.run(experiment, tmp_path / "whole")
    original, calls = CoreServer.run_round, []

    def failing(self: Any, ask: Any, number: int, selected: list[str]) -> None:
        original(self, ask, number, selected)
        calls.append(number)
        if calls == [1, 2, 3]:  # the first round of the late client, after its answer
            raise error

    monkeypatch.setattr(CoreServer, "run_round", failing)
    if isinstance(error, Killed):
        with pytest.raises(Killed):
            federation.run(experiment, tmp_path / "run")
    federation.run(experiment, tmp_path / "run", resume=isinstance(error, Killed))
    assert calls == [1, 2, 3, 3, 4]
    assert equal(outcome(tmp_path / "whole"), outcome(tmp_path / "run"))


def test_late_joiner_with_slots_that_the_core_lacks_is_refused_and_the_others_go_on(tmp_path: Path) -> None:
    metrics = federation.run(with_late(small(rounds=2), "c0", 2), tmp_path / "run")
    assert "c0 joins late with slots that the core lacks: gate" in metrics["clients"]["c0"]["status"]
    assert metrics["rounds"] == 2 and metrics["clients"]["c1"]["final"] and metrics["clients"]["c0"]["final"] is None


def test_a_run_that_an_older_version_has_begun_is_refused_with_the_reason(tmp_path: Path) -> None:
    federation.run(small(rounds=1), tmp_path / "run")
    about = tmp_path / "run" / "run.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"schema": 1, "version": "0.1.0"}))
    assert RunStore(tmp_path / "run").open(small(rounds=1))[0]  # a finished one is read as before
    (tmp_path / "run" / "metrics.json").unlink()
    with pytest.raises(StoreError, match=r"was begun by h2tune 0\.1\.0.*finish it with h2tune 0\.1\.0"):
        federation.run(small(rounds=1), tmp_path / "run", resume=True)
