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


def test_a_list_that_is_no_list_is_refused_in_words_and_the_one_before_stays_in_force(tmp_path: Path) -> None:
    revoked(tmp_path, ["c1"])
    access = AccessList(tmp_path)
    for text in ('{"disabled_clients": "c1"}', '{"disabled_clients": 3}', '{"others": []}', "[]", "{"):
        (tmp_path / REVOKED).write_text(text)
        with pytest.raises(AccessError, match=f"{REVOKED} is damaged: it must hold .*Put it back from a backup"):
            read_revoked(tmp_path)
        assert not access.look() and access.revoked == {"c1"} and access.fault
    (tmp_path / CERTIFICATES).write_text('{"c1": [1]}')
    with pytest.raises(AccessError, match="a list of serial numbers for each participant"):
        read_certificates(tmp_path)


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


def test_the_engines_log_begins_anew_when_it_is_long_and_is_written_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = flare.Flare.__new__(flare.Flare)
    engine.role, engine.name, engine.workspace = "client", "c1", tmp_path
    engine._listener, engine._read = SimpleNamespace(environment={}), lambda text, trouble: None
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
