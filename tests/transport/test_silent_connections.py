"""Connections that break without a word, as when a router restarts: neither side is told that the other is gone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from federations import small
from loopback import Tap, free_port, receive, send, through, until

pytest.importorskip("nvflare", reason="NVFlare is not installed: pip install -e '.[network]'")

from h2tune.deployment.kits import Kit
from h2tune.deployment.provision import provision
from h2tune.transport.channel import SERVER
from h2tune.transport.nvflare import flare
from h2tune.transport.nvflare.flare import Flare
from h2tune.transport.nvflare.relay import THREADS

LOST = "the connection was lost"
FOREVER = 86_400.0  # seconds
ENVELOPE = 200  # bytes on the way, at least


@pytest.fixture(scope="module")
def tapped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Flare, Flare, Tap]]:
    """A server and a client that have talked, and the relay between them."""
    experiment = small(clients=2, network={"port": free_port()})
    folder = tmp_path_factory.mktemp("federation") / "kits"
    provision(experiment, folder)
    tap, ends = Tap(experiment.network.port), list[Flare]()
    through(folder / "c0", tap.door)
    try:
        for name, role in ((SERVER, "server"), ("c0", "client")):
            ends.append(Flare(Kit(folder / name).engine, role, name))
        send(ends[1], SERVER, b"hello")
        assert receive(ends[0]) == ("c0", b"hello")
        yield ends[0], ends[1], tap
    finally:
        for end in ends:
            end.close()
        tap.close()


def test_what_the_server_sent_into_a_silent_connection_is_told_when_the_client_connects_again(
    tapped: tuple[Flare, Flare, Tap], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client, tap = tapped
    monkeypatch.setattr(flare, "SECONDS", FOREVER)  # nothing ends by waiting
    fate: list[str] = []
    tap.silence()
    server.send("c0", b"into the void", fate.append)
    tap.hang_up()  # the client's side is closed, the server's is not
    assert until(lambda: fate, "the server knows") == [LOST]
    send(server, "c0", b"again")
    assert receive(client) == (SERVER, b"again")


def test_what_waits_for_confirmation_keeps_nothing_else_back(
    tapped: tuple[Flare, Flare, Tap], monkeypatch: pytest.MonkeyPatch
) -> None:
    """More envelopes than the engine sends at a time are under way: all are told, and the next one travels."""
    server, client, tap = tapped
    monkeypatch.setattr(flare, "SECONDS", FOREVER)
    fates: list[str] = []
    tap.silence()
    for _ in range(THREADS + 8):
        client.send(SERVER, b"a sign of life", fates.append)
    until(lambda: tap.swallowed > THREADS * ENVELOPE, "all threads wait")
    tap.hang_up()
    until(lambda: len(fates) == THREADS + 8, "the client knows")
    assert all(fates)  # none arrived
    send(client, SERVER, b"here again")
    assert receive(server) == ("c0", b"here again")


def test_a_client_leaves_a_silent_connection(
    tapped: tuple[Flare, Flare, Tap], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client, tap = tapped
    monkeypatch.setattr(flare, "SECONDS", 4.0)
    tap.silence()
    send(client, SERVER, b"by another way")
    assert receive(server) == ("c0", b"by another way")
