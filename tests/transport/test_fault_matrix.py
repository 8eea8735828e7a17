"""Every method under every fault: the tensors of an undisturbed run where that is promised, else a refusal that says why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from distill.lada_federation import PUBLIC
from fault_scenario import FaultScenario
from safetensors.torch import load_file
from torch import Tensor

from h2tune.methods.base import MethodError
from h2tune.methods.registry import known_methods
from h2tune.store import RunStore

METHODS = sorted(name for name in known_methods() if not name.startswith("toy"))
# One of each kind of server: a core, factors in turns, every round in the base weights, logits.
KINDS = ("h2tune", "rolora", "fedex", "fedmkt")
MATRIX = [pytest.param(m, marks=[] if m in KINDS else pytest.mark.slow) for m in METHODS]
WHOLE_ROUNDS = ("fedex", "flora")  # a client that missed a round cannot go on: its base weights are others


TEXTS = {"teacher": "c0", "slice": 8, "filter": "all", "gate": False, "accept": False}  # paths flow in every round
OPTIONS: dict[str, dict[str, Any]] = {"fedmkt": {"sentences": 4}, "lada": TEXTS, "lada-published": TEXTS}


def scenario(method: str, folder: Path, **changes: Any) -> FaultScenario:
    training = {"steps": 2, "batch_size": 2, "learning_rate": 0.01, "warmup": 0}
    common = {"same_model": True, "rounds": 3, "rank": 2, "training": training, "evaluation": {"every": 9}}
    if method.startswith("lada"):
        common["public"] = PUBLIC
    return FaultScenario(folder, **(common | {"method": {"name": method} | OPTIONS.get(method, {})} | changes))


def adapters(run: FaultScenario) -> dict[str, Tensor]:
    found = {}
    for name in run.clients:
        path = run.folder / name / "state" / "adapter" / "adapter_model.safetensors"
        found |= {f"{name}.{key}": tensor for key, tensor in load_file(path).items()}
    return found


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Tensor]]:
    known: dict[str, dict[str, Tensor]] = {}

    def of(method: str) -> dict[str, Tensor]:
        if method not in known:
            run = scenario(method, tmp_path_factory.mktemp(method))
            run.serve()
            known[method] = adapters(run)
        return known[method]

    return of


@pytest.mark.parametrize("method", MATRIX)
def test_a_missed_quorum_changes_nothing(method: str, undisturbed: Any, tmp_path: Path) -> None:
    """In round 2 one client answers and the other does not; the round is held again when it is back."""
    run = scenario(method, tmp_path, quorum=2)
    second_round(run, lambda client: client.kill(back_after=20))
    run.serve()
    assert run.events("quorum_missed") and same(adapters(run), undisturbed(method))


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("method", MATRIX)
def test_a_client_killed_in_a_round_and_restarted_changes_nothing(
    method: str, moment: str, undisturbed: Any, tmp_path: Path
) -> None:
    run = scenario(method, tmp_path)
    second_round(run, lambda client: client.kill(back_after=2), moment)
    run.serve()
    assert same(adapters(run), undisturbed(method))


class Killed(BaseException):
    """Nothing may catch it, as nothing catches a kill."""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("method", MATRIX)
def test_the_server_killed_at_a_commit_changes_nothing(
    method: str, when: str, undisturbed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, commit, calls = scenario(method, tmp_path), RunStore.commit, []

    def dying(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 3 and when == "before":  # the third is that of round 2
            raise Killed
        commit(*args)
        if len(calls) == 3:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "commit", dying)
        with pytest.raises(Killed):
            run.serve()
    run.serve(start=False)
    assert same(adapters(run), undisturbed(method))


@pytest.mark.parametrize("method", MATRIX)
def test_a_client_away_for_a_round_goes_on_or_is_refused_with_the_reason(method: str, tmp_path: Path) -> None:
    run = scenario(method, tmp_path, rounds=5)
    second_round(run, lambda client: client.kill(back_after=9))
    metrics = run.serve()
    c0, c1 = metrics["clients"]["c0"], metrics["clients"]["c1"]
    assert c0["final"] and [r["round"] for r in c0["rounds"]] == [1, 2, 3, 4, 5]
    if method in WHOLE_ROUNDS:
        assert c1["status"].startswith("stopped: it missed round 2, in which the others' base weights changed")
        return
    rounds = [r["round"] for r in c1["rounds"]]
    assert c1["final"] and 2 not in rounds and rounds[-1] == 5


@pytest.mark.parametrize("method", MATRIX)
def test_a_client_that_joins_late_is_taken_in_or_refused_before_anything_runs(method: str, tmp_path: Path) -> None:
    run = scenario(method, tmp_path)
    late = [client.model_copy(update={"joins": 1 + (client.name == "c1")}) for client in run.experiment.clients]
    experiment = run.experiment.model_copy(update={"clients": late})
    run = scenario(method, tmp_path / "late", experiment=experiment)
    if method in WHOLE_ROUNDS:
        with pytest.raises(MethodError, match="nobody may miss one: c1 join"):
            run.serve()
        return
    metrics = run.serve()
    assert [r["round"] for r in metrics["clients"]["c1"]["rounds"]] == [2, 3] and metrics["clients"]["c1"]["final"]
    assert [r["round"] for r in metrics["clients"]["c0"]["rounds"]] == [1, 2, 3] and metrics["clients"]["c0"]["final"]


def second_round(run: FaultScenario, fault: Callable[[Any], None], moment: str = "before") -> None:
    """Plant a fault in the client c1 when it is asked to train for the second time."""
    client = run.clients["c1"]

    def again(other: Any) -> None:
        other.faults = {"train": (moment, fault)}

    client.faults = {"train": ("before", again)}
