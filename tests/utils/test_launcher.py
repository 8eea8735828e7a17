"""One process stays one process inside srun, mpirun, torchrun and a PyTorchJob."""

from __future__ import annotations

import os

import pytest
from federations import small

from h2tune.participant.context import make_accelerator
from h2tune.utils.launcher import no_launcher

LAUNCHERS = (
    {"PMI_SIZE": "2", "PMI_RANK": "0"},
    {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
    {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"},
    {"LOCAL_RANK": "0"},
    {"ACCELERATE_USE_FSDP": "true", "WORLD_SIZE": "2", "LOCAL_RANK": "1"},
)


@pytest.mark.parametrize("variables", LAUNCHERS, ids=lambda v: next(iter(v)))
def test_the_variables_are_gone_for_a_while(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    with no_launcher():
        assert not variables.keys() & os.environ.keys()
        assert os.environ["PATH"] == before["PATH"]
    assert dict(os.environ) == before


def test_the_accelerator_sees_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    for name, value in LAUNCHERS[1].items():
        monkeypatch.setenv(name, value)
    assert make_accelerator(small(1), "cpu").num_processes == 1


def test_a_later_run_in_the_process_gets_its_own_device() -> None:
    for device in ("cpu", "meta", "cpu"):
        assert str(make_accelerator(small(1), device).device) == device
