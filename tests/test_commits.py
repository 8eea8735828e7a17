"""Commits: what only grows is written once, commits of earlier versions are read, and a copy holds all that it needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from federations import build, core, equal, outcome, small
from safetensors.torch import save

from h2tune import federation
from h2tune.commits import Commits
from h2tune.methods.registry import method_of
from h2tune.session import Member
from h2tune.store import RunStore
from h2tune.utils.early_stopping import EarlyStopping
from h2tune.utils.files import write_atomic
from h2tune.utils.tensors import from_bytes


class Killed(BaseException):
    """Not an Exception: nothing may catch it, as nothing catches a kill."""


def stop_after(commits: int, patch: pytest.MonkeyPatch) -> None:
    """Let the process die right after so many commits."""
    original, calls = RunStore.commit, []

    def dying(*args: Any) -> None:
        original(*args)
        calls.append(1)
        if len(calls) == commits:
            raise Killed

    patch.setattr(RunStore, "commit", dying)


def rounds_of(metrics: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Every client's reports without what is never the same twice."""
    return {
        name: [{k: v for k, v in report.items() if k != "seconds"} for report in client["rounds"]]
        for name, client in metrics["clients"].items()
    }


def as_an_earlier_version_wrote_it(run: Path) -> None:
    """Put the last commit into the form that it had in schema 2: all records in the header, reports among them."""
    store, server = RunStore(run), run / "server"
    committed = store.committed()
    assert committed is not None
    number, tensors, records = committed
    for member in records["members"].values():
        member["rounds"] = []
    for name, report in store.reports(records.pop("reports")):
        records["members"][name]["rounds"].append(report)
    if vocabulary_of := records["method"].pop("vocabulary_of", None):
        kept = store.kept("frames")
        records["method"]["vocabularies"] = {name: from_bytes(kept[key]) for name, key in vocabulary_of.items()}
        (server / "frames.safetensors").unlink()
    header = {"round": str(number), "records": json.dumps(records)}
    write_atomic(server / "core.safetensors", save(tensors, metadata=header))
    (server / "reports.jsonl").unlink()
    about = run / "run.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"schema": 2, "version": "0.9"}))


@pytest.mark.parametrize("method", ["fedit", {"name": "fedmkt", "sentences": 4}], ids=["fedit", "fedmkt"])
def test_a_run_that_an_earlier_version_began_goes_on_bit_for_bit(
    method: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = small(same_model=True, method=method, rounds=3)
    whole = federation.run(experiment, tmp_path / "whole")
    for run, commits in (("now", 2), ("earlier", 2), ("earlier, at the start", 1)):
        with monkeypatch.context() as patch:
            stop_after(commits + (run == "now"), patch)
            with pytest.raises(Killed):
                federation.run(experiment, tmp_path / run)
        if run != "now":
            if commits == 1:
                (tmp_path / run / "server" / "reports.jsonl").touch()
            as_an_earlier_version_wrote_it(tmp_path / run)
        metrics = federation.run(experiment, tmp_path / run, resume=True)
        assert equal(outcome(tmp_path / "whole"), outcome(tmp_path / run)), run
        assert rounds_of(metrics) == rounds_of(whole), run
        assert json.loads((tmp_path / run / "run.json").read_text())["schema"] == 3


def test_a_commit_does_not_grow_with_the_rounds(tmp_path: Path) -> None:
    experiment = small(method="fedit", same_model=True)
    kind, settings = method_of(experiment)
    store = RunStore(tmp_path)
    commits = Commits(store, lambda: kind.server(experiment, settings))
    members, method = {f"c{i}": Member() for i in range(3)}, commits.new_method()
    path, sizes = tmp_path / "server" / "core.safetensors", []
    for number in range(1, 40):
        for member in members.values():
            member.rounds.append({"round": number, "loss": {"local": 0.1 / number}})
        commits.write(number, method, members, EarlyStopping(None))
        sizes.append(path.stat().st_size)
    assert max(sizes) < min(sizes) + 20
    again = Commits(store, lambda: kind.server(experiment, settings))
    assert {name: member.rounds for name, member in again.last(with_reports=True).members.items()} == {
        name: member.rounds for name, member in members.items()
    }
    members["c0"].rounds.append({"round": 40})
    again.write(40, method, members, EarlyStopping(None))
    assert len(path.with_name("reports.jsonl").read_text().splitlines()) == 3 * 39 + 1


def test_a_vocabulary_is_written_once_however_many_clients_have_it(tmp_path: Path) -> None:
    experiment = small(clients=2, same_model=True, method={"name": "fedmkt", "sentences": 4}, rounds=1)
    server, _ = build(experiment, tmp_path / "run")
    server.run()
    kept = RunStore(tmp_path / "run").kept("frames")
    assert len(kept) == 1 and sum(tensor.numel() for tensor in kept.values()) > 1000
    committed = RunStore(tmp_path / "run").committed()
    assert committed is not None and len(json.dumps(committed[2]["method"])) < 500


def late(method: Any) -> Any:
    """The third client, of a model that nobody else has, joins before round 2."""
    plain = small(clients=3, method=method, rounds=3)
    rows = [c.model_copy(update={"joins": 2}) if c.name == "c2" else c for c in plain.clients]
    return plain.model_copy(update={"clients": rows})


def test_the_vocabulary_of_a_late_joiner_outlives_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = late({"name": "fedmkt", "sentences": 4})
    federation.run(experiment, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(4, patch)  # the set-up, round 1, round 1 with the late client, round 2
        with pytest.raises(Killed):
            federation.run(experiment, tmp_path / "run")
    federation.run(experiment, tmp_path / "run", resume=True)
    assert core(tmp_path / "run")
    assert equal(outcome(tmp_path / "whole"), outcome(tmp_path / "run"))


def test_the_bases_that_a_late_joiner_brings_are_kept(tmp_path: Path) -> None:
    """Others of its model that join after a restart must get the same."""
    federation.run(late("fedsb"), tmp_path / "run")
    assert len({key.partition("/")[0] for key in RunStore(tmp_path / "run").kept("frames")}) == 3
