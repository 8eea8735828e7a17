"""The guard in the server's engine goes on whatever happens, and who connects without end fills no disk."""

from __future__ import annotations

import json
import os
import threading
from asyncio import sslproto
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from h2tune.deployment.provision import _log_once
from h2tune.transport import access as access_module
from h2tune.transport.access import CERTIFICATES, REVOKED, AccessError, AccessList, read_certificates, read_revoked
from h2tune.transport.access import write_revoked as revoked
from h2tune.transport.nvflare import flare, guard, handshakes
from h2tune.transport.nvflare.engine_log import OnceAMinute
from h2tune.transport.nvflare.guard import Guard, listening


class Registry:
    """NVFlare's list of clients; at the first look something goes wrong."""

    def __init__(self) -> None:
        self.tokens, self.fails = {"t": SimpleNamespace(name="c1")}, 1
        self.removed = threading.Event()

    @property
    def clients(self) -> dict[str, Any]:
        if self.fails:
            self.fails -= 1
            raise RuntimeError("dictionary changed size during iteration")
        return self.tokens

    def set_disabled_clients_file(self, path: str) -> None:
        pass

    def remove_client(self, token: str) -> None:
        assert self.tokens.pop(token).name == "c1"
        self.removed.set()


def guarded(folder: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Guard:
    monkeypatch.setattr(guard, "SECONDS", 0.01)
    connections = SimpleNamespace(update_endpoint=None, receivers={}, sfm_conns={})
    return Guard(folder, connections, registry)


def test_an_error_in_the_guard_is_said_once_and_the_revocation_is_carried_out_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = Registry()
    registry.fails = 5
    revoked(tmp_path, ["c1"])
    guarded(tmp_path, registry, monkeypatch)
    assert registry.removed.wait(20)
    said = capsys.readouterr().out.splitlines()
    assert said == ["h2tune: the lists of who may take part could not be applied (RuntimeError); trying again"]


class Connection:
    """Of a participant, with whom it may be hard to have to do."""

    def __init__(self, name: str, broken: bool = False) -> None:
        self.name, self.broken, self.closed = name, broken, threading.Event()

    def get_conn_properties(self) -> dict[str, Any]:
        if self.broken:
            raise RuntimeError("it is just being closed")
        return {guard.DriverParams.PEER_CN.value: self.name, guard.DriverParams.PEER_ADDR.value: "10.0.0.3:5"}

    @property
    def websocket(self) -> Any:
        return SimpleNamespace(get_extra_info=lambda name: {"serialNumber": "AB"})

    def close(self) -> None:
        self.closed.set()


@pytest.mark.parametrize("trouble", ["the disk is full", "the registry fails", "another connection fails"])
def test_the_connection_of_who_is_revoked_is_closed_whatever_fails(
    trouble: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(guard, "GRACE", 0.02)
    registry = Registry()
    registry.fails = 0
    if trouble == "the disk is full":
        monkeypatch.setattr(guard, "say", full)
    if trouble == "the registry fails":
        monkeypatch.setattr(registry, "set_disabled_clients_file", full)
    made = guarded(tmp_path, registry, monkeypatch)
    wanted = Connection("c1")
    connections = [Connection("c0", broken=trouble == "another connection fails"), wanted]
    made.connections.sfm_conns = {place: SimpleNamespace(conn=each) for place, each in enumerate(connections)}
    revoked(tmp_path, ["c1"])
    assert wanted.closed.wait(20) and not connections[0].closed.is_set()
    wanted.closed.clear()
    assert wanted.closed.wait(20)  # the guard lives: who connects again is closed again


def test_a_handshake_ends_as_it_should_though_nothing_can_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, text: str) -> None:
            raise OSError(28, "No space left on device")

        flush = write

    ended: list[BaseException | None] = []
    monkeypatch.setattr(sslproto.SSLProtocol, "_on_handshake_complete", lambda protocol, error: ended.append(error))
    handshakes.watch()
    monkeypatch.setattr("sys.stdout", Full())
    error = OSError("PEER_DID_NOT_RETURN_A_CERTIFICATE")
    sslproto.SSLProtocol._on_handshake_complete(SimpleNamespace(_server_side=True, _transport=None), error)
    assert ended == [error]


def test_a_list_that_is_no_list_is_refused_in_words_and_the_one_before_stays_in_force(tmp_path: Path) -> None:
    revoked(tmp_path, ["c1"])
    access = AccessList(tmp_path)
    damaged = ('"c1"', "3", '[["c1"]]', '["c1", 3]', "null")
    for text in (
        *(f'{{"disabled_clients": {names}}}' for names in damaged),
        '{"others": []}',
        "[]",
        "{",
        "[" * 100_000,
    ):
        (tmp_path / REVOKED).write_text(text)
        with pytest.raises(AccessError, match=f"{REVOKED} is damaged: it must hold .*Put it back from a backup"):
            read_revoked(tmp_path)
        assert not access.look() and access.revoked == {"c1"} and access.fault
    for serials in ("[1]", '"ab"', "{}", "null"):
        (tmp_path / CERTIFICATES).write_text(f'{{"c1": {serials}}}')
        with pytest.raises(AccessError, match="a list of serial numbers for each participant"):
            read_certificates(tmp_path)


def test_a_list_that_is_gone_stays_in_force_and_an_empty_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    revoked(tmp_path, ["c1"])
    access = AccessList(tmp_path)
    (tmp_path / REVOKED).rename(tmp_path / "away")
    for _ in range(2):
        assert not access.look() and access.revoked == {"c1"} and "cannot be read" in access.fault
    (tmp_path / "away").rename(tmp_path / REVOKED)
    assert not access.look() and access.revoked == {"c1"} and not access.fault
    with monkeypatch.context() as patch:  # it goes in the middle of a look
        revoked(tmp_path, ["c1", "c2"])
        patch.setattr(access_module, "read_revoked", lambda folder: (folder / REVOKED).unlink() or [])
        assert not access.look() and access.revoked == {"c1"} and access.fault
    revoked(tmp_path, [])
    assert access.look() and not access.revoked and not access.fault


def test_a_list_that_vanishes_between_two_looks_at_it_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = AccessList(tmp_path)
    monkeypatch.setattr(Path, "is_file", lambda path: path.name == REVOKED)
    assert not access.look()


def test_of_endless_refusals_few_are_written_down(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Anybody who reaches the port brings them about, from as many addresses as it has."""
    monkeypatch.setattr(sslproto.SSLProtocol, "_on_handshake_complete", lambda protocol, error: None)
    handshakes.watch()

    def refused(host: str) -> None:
        transport = SimpleNamespace(get_extra_info=lambda name: (host, 1))
        protocol = SimpleNamespace(_server_side=True, _transport=transport)
        sslproto.SSLProtocol._on_handshake_complete(protocol, OSError("PEER_DID_NOT_RETURN_A_CERTIFICATE"))

    for _ in range(50):
        refused("10.0.0.3")
    assert capsys.readouterr().out == "h2tune: a connection from 10.0.0.3 was refused: it has no certificate\n"
    for last in range(200):
        refused(f"2001:db8::{last:x}")
    assert len(capsys.readouterr().out.splitlines()) == handshakes.LINES - 1


def test_a_sentence_passes_once_a_minute() -> None:
    now = [0.0]
    told = OnceAMinute(lambda: now[0], most=2)
    assert [told.passes(text) for text in "aabc"] == [True, False, True, False]
    now[0] = 60.0
    assert [told.passes(text) for text in "caab"] == [True, True, False, False]


def test_a_participant_with_a_replaced_certificate_is_told_of_once_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / CERTIFICATES).write_text('{"c1": ["ff"]}')
    made = guarded(tmp_path, Registry(), monkeypatch)
    monkeypatch.setattr(guard, "identity", lambda connection: ("c1", 7, "10.0.0.3"))
    connection = SimpleNamespace(conn=SimpleNamespace(close=lambda: None))
    for _ in range(50):
        with pytest.raises(Exception, match="its certificate was replaced"):
            made.connections.update_endpoint(connection, None)
    assert capsys.readouterr().out.count("was refused") == 1


def test_a_participant_that_is_revoked_is_told_of_once_from_however_many_addresses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = guarded(tmp_path, Registry(), monkeypatch)
    monkeypatch.setattr(made.access, "objection", lambda name, serial=None: "it is revoked")
    for last in range(150):
        monkeypatch.setattr(guard, "identity", lambda connection, last=last: ("c1", 7, f"2001:db8::{last:x}"))
        made.connections.sfm_conns = {1: SimpleNamespace(conn=Connection("c1"))}
        made._close(lambda name, serial: True)
    made._say("the lists of who may take part could not be applied (OSError); trying again")
    said = capsys.readouterr().out
    assert said.count("was cut off") == 1 and "the lists of who" in said


def test_the_engines_log_begins_anew_when_it_is_long_and_is_written_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = flare.Flare.__new__(flare.Flare)
    engine.role, engine.name, engine.workspace = "client", "c1", tmp_path
    engine._listener, engine._read = SimpleNamespace(environment={}), lambda found: None
    monkeypatch.setattr(flare.subprocess, "Popen", lambda *_, **__: SimpleNamespace(poll=lambda: 0))
    log = tmp_path / "engine.log"
    for size, kept in ((10, False), (flare.LOG + 1, True)):
        log.write_bytes(b"")
        os.truncate(log, size)
        engine._start()
        assert (tmp_path / "engine.log.1").is_file() == kept
        assert log.stat().st_size == (0 if kept else size)
    path = tmp_path / "log_config.json"
    handlers = {name: {} for name in ("consoleHandler", "logFileHandler", "jsonFileHandler")}
    path.write_text(json.dumps({"handlers": handlers, "loggers": {"root": {"handlers": list(handlers)}}}))
    _log_once(path)
    after = json.loads(path.read_text())
    assert list(after["handlers"]) == ["consoleHandler"] == after["loggers"]["root"]["handlers"]


def test_an_engine_that_listens_on_all_addresses_says_so() -> None:
    def listener(host: str | None) -> Any:
        params = {guard.DriverParams.HOST.value: host, guard.DriverParams.PORT.value: 18443}
        return SimpleNamespace(params=params, mode=guard.Mode.PASSIVE)

    for host in ("", None, "0", "0.0.0.0", "::"):
        assert listening(SimpleNamespace(connectors={1: listener(host)})) == ["every address:18443"]
    assert listening(SimpleNamespace(connectors={1: listener("127.0.0.1")})) == ["127.0.0.1:18443"]
