"""A participant with a valid certificate that writes what it may not write."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from federations import small
from loopback import free_port, receive, send, until

pytest.importorskip("nvflare", reason="NVFlare is not installed: pip install -e '.[network]'")

from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
from nvflare.private.defs import CellMessageHeaderKeys

from h2tune.deployment.kits import Kit
from h2tune.deployment.provision import provision
from h2tune.transport.channel import SERVER
from h2tune.transport.nvflare import flare
from h2tune.transport.nvflare.flare import Flare

FORGER = Path(__file__).with_name("forging_engine.py")


class Forger(subprocess.Popen):
    """Starts the forging engine in place of ours."""

    def __init__(self, command: list[str], **rest: Any) -> None:
        super().__init__([command[0], str(FORGER), *command[3:]], **rest)


@pytest.fixture
def federation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Flare, Flare, Flare, Path]]:
    """A server, an honest client and a forger, who have all talked; and the forger's lies."""
    experiment, lies, ends = small(clients=2, network={"port": free_port()}), tmp_path / "lies.json", list[Flare]()
    provision(experiment, tmp_path / "kits")
    lies.write_text("{}")
    monkeypatch.setenv("H2TUNE_TEST_FORGE", str(lies))
    told: list[str] = []
    try:
        ends.append(Flare(Kit(tmp_path / "kits" / SERVER).engine, "server", SERVER, told.append))
        ends[0].told = told
        ends.append(Flare(Kit(tmp_path / "kits" / "c0").engine, "client", "c0"))
        with monkeypatch.context() as patch:
            patch.setattr(flare.subprocess, "Popen", Forger)
            ends.append(Flare(Kit(tmp_path / "kits" / "c1").engine, "client", "c1"))
        for end in ends[1:]:
            send(end, SERVER, end.name.encode())
            assert receive(ends[0]) == (end.name, end.name.encode())
        yield *ends, lies
    finally:
        for end in ends:
            end.close()


def tried(channel: Flare, to: str) -> list[str]:
    fate: list[str] = []
    channel.send(to, b"a forged word", fate.append)
    return fate


def test_no_client_speaks_as_the_server_or_to_another_client(federation: tuple[Flare, Flare, Flare, Path]) -> None:
    server, honest, forger, lies = federation
    lies.write_text(json.dumps({MessageHeaderKey.ORIGIN: SERVER}))
    tried(forger, "c0")
    until(lambda: any("c1 wrote in another's name" in text for text in server.told), "the server's side says so")
    lies.write_text("{}")
    tried(forger, "c0")
    send(server, "c0", b"from the server")
    assert receive(honest) == (SERVER, b"from the server") and honest.receive(0.5) is None


def test_what_a_client_writes_into_the_servers_log_does_not_end_it(
    federation: tuple[Flare, Flare, Flare, Path],
) -> None:
    server, honest, forger, lies = federation
    log = server.log
    lies.write_text(
        json.dumps({MessageHeaderKey.CHANNEL: "Address already in use", CellMessageHeaderKeys.CLIENT_NAME: None})
    )
    tried(forger, SERVER)
    until(lambda: "Address already in use" in log.read_text(), "it stands in the log")
    send(honest, SERVER, b"still here")
    until(
        lambda: any("the port is taken" in text for text in server.told) or server.receive(0.1), "the server goes on"
    )
    send(server, "c0", b"still here, too")
    assert receive(honest) == (SERVER, b"still here, too")
