"""One process at a time works on a kit, and `h2tune status` knows whether it lives, from its first moment to its last."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fault_scenario import FaultScenario
from federations import small
from filelock import FileLock
from simulated_network import kits
from typer.testing import CliRunner

from h2tune.cli.app import app
from h2tune.cli.output import status_lines
from h2tune.deployment import join, serve, status
from h2tune.deployment.kits import Kit, KitError
from h2tune.deployment.status import StatusFile, describe, running
from h2tune.store import RunStore
from h2tune.utils.files import Claim, StoreError

WORKS = """
import sys
from h2tune.deployment.kits import Kit
from h2tune.deployment.status import StatusFile
with StatusFile(Kit(sys.argv[1])):
    print("works", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another(kit: Kit) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that works on the kit."""
    other = subprocess.Popen(
        [sys.executable, "-c", WORKS, str(kit.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert other.stdout is not None and other.stdout.readline() == b"works\n"
        yield other
    finally:
        other.kill()  # as kill -9: nothing is tidied up
        other.wait()


def rewritten(kit: Kit, **said: Any) -> None:
    path = kit.folder / "status.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | said))


def refused(kit: Kit) -> bool:
    """Whether a second process would be refused."""
    try:
        with StatusFile(kit):
            return False
    except KitError:
        return True


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "SECONDS", 0.02)
    monkeypatch.setattr(status, "PATIENCE", 0.05)


def written_again(kit: Kit) -> bool:
    """Whether the file is written while we look."""
    before, end = json.loads((kit.folder / "status.json").read_text())["time"], time.monotonic() + 20
    while time.monotonic() < end:
        if json.loads((kit.folder / "status.json").read_text())["time"] > before:
            return True
        time.sleep(0.01)
    return False


def test_one_process_at_a_time_works_on_a_kit(tmp_path: Path) -> None:
    kit = kits(small(), tmp_path)["c0"]
    assert describe(kit)["state"] == "never started" and not (kit.folder / ".lock").exists()
    with another(kit) as other:
        with pytest.raises(KitError, match=f"is in use by process {other.pid}: one process at a time"):
            StatusFile(kit).__enter__()
        assert running(kit) and describe(kit)["state"] == "starting" and describe(kit)["pid"] == other.pid
        os.kill(other.pid, 0)  # who asks does it no harm
    # The number of a process that lives, and a fresh file, make no process of this kit.
    rewritten(kit, pid=os.getpid(), time=time.time())
    assert not running(kit) and describe(kit)["state"] == "stopped unexpectedly"
    with StatusFile(kit):
        assert describe(kit)["state"] == "starting"
    assert describe(kit)["state"] == "finished" and not running(kit)


def test_neither_its_number_nor_a_pause_hides_a_process(tmp_path: Path) -> None:
    """In containers every process is number 1, and a machine that sleeps writes nothing."""
    kit = kits(small(), tmp_path)["c0"]
    with another(kit):
        for said in ({"pid": os.getpid()}, {"time": time.time() - 3600}, {"over": "finished"}):
            rewritten(kit, begun=True, **said)
            assert describe(kit)["state"] == "running" and refused(kit)


def test_who_asks_does_not_keep_a_process_from_starting(tmp_path: Path) -> None:
    kit, claim, taken = kits(small(), tmp_path)["c0"], Claim(tmp_path / "c0"), threading.Event()

    def ask() -> None:
        claim.take()
        taken.set()
        time.sleep(0.2)
        claim.give_up()

    thread = threading.Thread(target=ask)
    thread.start()
    taken.wait()
    with StatusFile(kit):
        pass
    thread.join()


def test_a_client_has_its_kit_before_it_loads_model_and_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    kit, seen = kits(small(), tmp_path)["c0"], []

    def loading(kit: Kit, *_: Any) -> Any:
        seen.append((describe(kit)["state"], refused(kit)))
        raise StoreError("the disk is full")

    monkeypatch.setattr(join, "Participant", loading)
    with pytest.raises(StoreError):
        join.attend(kit, {})
    assert seen == [("starting", True)] and describe(kit)["state"] == "stopped: the disk is full"
    assert not refused(kit)


def test_a_server_has_its_kit_until_the_last_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    scenario, seen = FaultScenario(tmp_path, rounds=1), dict[str, Any]()
    kit, create, farewell = scenario.kits["server"], RunStore.create, serve.say_farewell

    def creating(*args: Any, **named: Any) -> Any:
        seen["create"] = refused(kit)
        return create(*args, **named)

    def saying(*args: Any) -> None:
        shown = describe(kit)
        seen["farewell"] = refused(kit), shown["state"], sorted(shown["clients"]), written_again(kit)
        farewell(*args)

    monkeypatch.setattr(RunStore, "create", creating)
    monkeypatch.setattr(serve, "say_farewell", saying)
    scenario.serve()
    standing = (True, "running", sorted(scenario.clients), True)
    assert seen == {"create": True, "farewell": standing} and describe(kit)["state"] == "finished"
    (kit.folder / "run" / "aware.json").write_text("[]")  # nobody knows: the server started again tells them
    seen.clear()
    scenario.serve()
    assert seen["farewell"] == standing and describe(kit)["state"] == "finished"


def test_a_client_that_trains_alone_is_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    scenario, seen = FaultScenario(tmp_path, rounds=1, baseline="local"), []
    client = scenario.experiment.clients[1]
    own = {key: getattr(client, key) for key in ("model", "train", "test", "validation")}
    scenario.serve()
    kit = scenario.kits["c1"]

    def take_part(kit: Kit, status: StatusFile, *_: Any) -> str:
        status.end("finished")
        return "over"

    def alone(kit: Kit, own: dict[str, Any]) -> str:
        seen.append((describe(kit)["state"], written_again(kit), refused(kit)))
        assert json.loads((kit.folder / "status.json").read_text())["over"] == "finished"  # should it be killed now
        return "alone"

    monkeypatch.setattr(join, "take_part", take_part)
    monkeypatch.setattr(join, "train_alone", alone)
    assert join.attend(kit, own) == "alone"
    assert "the federation has finished" in join.attend(kit, own)  # again, as after a kill
    assert seen == [("running", True, True)] * 2 and describe(kit)["state"] == "finished"


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kit = kits(small(), tmp_path)["c0"]
    with StatusFile(kit):
        pass

    def no_locks(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(FileLock, "acquire", no_locks)
    with pytest.raises(StoreError, match=r"c0 could not be written: No locks available"):
        StatusFile(kit).__enter__()
    assert describe(kit)["state"] == "finished"  # what the file says is all there is
    rewritten(kit, over="", time=time.time())
    assert running(kit)
    rewritten(kit, time=time.time() - 60)
    assert not running(kit)


@pytest.mark.parametrize("days", [-3, 3])
def test_status_shows_the_state_also_after_the_certificate_has_expired(tmp_path: Path, days: int) -> None:
    kit, end = Kit(kits(small(), tmp_path)["c0"].folder), datetime.now(UTC) + timedelta(days=days)
    path = kit.engine / "startup" / "client.crt"
    path.parent.mkdir(parents=True)
    path.write_bytes(certificate(end))
    with another(kit):
        found = describe(kit)
        assert found["state"] == "starting" and found["certificate_until"] == f"{end:%Y-%m-%d}"
        lines = status_lines(found)
        assert ("which has expired" in lines[1]) == (days < 0) == found["certificate_expired"]


def certificate(end: datetime) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "c0")])
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(end - timedelta(days=360)).not_valid_after(end)
    return made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def test_a_process_that_imports_its_libraries_or_loads_models_is_starting(quick: None, tmp_path: Path) -> None:
    kit = kits(small(), tmp_path)["c0"]
    with status.starting(kit):
        assert describe(kit)["state"] == "starting" and refused(kit)
        with status.starting(kit):  # a second one is refused by its own work, in words
            pass
        assert describe(kit)["state"] == "starting"
    assert describe(kit)["state"] == "never started"
    with StatusFile(kit) as file:
        assert describe(kit)["state"] == "starting"
        with file.kept(dict):  # it has loaded what it needs and begins to connect
            assert describe(kit)["state"] == "running" and "begun" not in describe(kit)
        assert describe(kit)["state"] == "running"


def test_a_client_says_what_it_is_doing_and_since_when_it_has_not_heard_the_server() -> None:
    found = {"role": "client", "name": "c0", "state": "running", "server": "h:1", "certificate_expired": False,
             "certificate_until": "2030-01-01", "time": 5000.0, "server_heard": 4999.0, "busy": True,
             "doing": {"round": 2, "phase": "local", "step": 17, "steps": 150}}  # fmt: skip
    assert status_lines(found)[2:] == ["round 2, local 17/150"]
    away = status_lines(found | {"server_heard": 4000.0, "doing": {}, "busy": False})[2:]
    when = datetime.fromtimestamp(4000.0).astimezone()
    assert away[0] == "waiting for the server's next request"
    assert f"the server was not heard since {when:%Y-%m-%d %H:%M:%S}, " in away[1]
    assert status_lines(found | {"doing": {"round": 1, "phase": "predict"}})[2:] == ["round 1, predict"]  # a party
    assert status_lines(found | {"server_heard": 0.0, "doing": {}})[2:] == ["busy", "the server was not reached yet"]
    assert len(status_lines(found | {"state": "finished"})) == 2


def test_what_a_server_that_is_stopped_says_is_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = FaultScenario(tmp_path, rounds=1)

    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    def says() -> str:
        found = CliRunner().invoke(app, ["server", str(scenario.kits["server"].folder)])
        assert found.exit_code == 1
        return found.output

    monkeypatch.setattr(serve, "serve", stopped)
    assert "Stopped before anything was committed; the same command begins again." in says()
    store = RunStore(scenario.kits["server"].folder / "run")
    store.create(scenario.kits["server"].experiment())
    assert "Stopped before anything was committed" in says()
    store.commit(0, {}, {})
    assert "No round was committed yet, what was set up is kept; the same command goes on." in says()
    store.commit(1, {}, {})
    assert "Stopped. The last committed round is safe; the same command goes on." in says()
    (store.folder / "server" / "core.safetensors").write_bytes(b"damaged")
    assert says() == "Stopped.\n"
