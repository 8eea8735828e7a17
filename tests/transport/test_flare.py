"""The real engine: NVFlare's processes on loopback, with certificates; who may connect, and what can be seen on the way."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch
from federations import core, small
from loopback import SECONDS, Session, Tap, begun, engines, free_port, receive, send, through, until

pytest.importorskip("nvflare", reason="NVFlare is not installed: pip install -e '.[network]'")

from h2tune import federation
from h2tune.config import Experiment
from h2tune.deployment.kits import Kit, KitError
from h2tune.deployment.provision import provision, revoke
from h2tune.deployment.status import describe
from h2tune.transport.access import write_revoked
from h2tune.transport.channel import SERVER, ChannelError
from h2tune.transport.client_loop import ClientLoop
from h2tune.transport.envelope import Envelope
from h2tune.transport.nvflare.flare import Flare
from h2tune.transport.nvflare.inbox import SPARE


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, Path]:
    """A federation, and its kits."""
    experiment = small(clients=3, network={"port": free_port()})
    folder = tmp_path_factory.mktemp("federation") / "kits"
    provision(experiment, folder)
    return experiment, folder


@pytest.fixture(scope="module")
def server(made: tuple[Experiment, Path]) -> Iterator[Flare]:
    channel = Flare(Kit(made[1] / "server").engine, "server", "server", lambda text: channel.told.append(text))
    channel.told = []
    until(lambda: channel.ready, "the server's engine is ready")
    yield channel
    channel.close()


def test_kits_hold_only_what_concerns_them(made: tuple[Experiment, Path]) -> None:
    _, folder = made
    keys = {path: path.read_bytes() for path in folder.rglob("*.key")}
    assert len(keys) == 4 and len(set(keys.values())) == 4
    for path in keys:
        assert path.stat().st_mode & 0o077 == 0 and path.parents[2].stat().st_mode & 0o077 == 0
    for name in ("c0", "c1", "c2"):
        text = (folder / name / "federation.yaml").read_text()
        assert f"name: {name}" in text and not any(f"name: {o}" in text for o in {"c0", "c1", "c2"} - {name})
        assert "demo:" not in text and "zoo:" not in text  # data and models are the client's own
    kept = (folder / "authority" / "small" / "state" / "cert.json").read_text()
    assert not any(key.decode().splitlines()[2] in kept for key in keys.values())


def test_two_families_over_the_real_engine_are_in_process_bit_for_bit(tmp_path: Path) -> None:
    training = {"steps": 2, "batch_size": 4}
    network = {"port": free_port(), "gather": SECONDS, "silence": 20}
    experiment, folder = small(network=network, rounds=2, training=training), tmp_path / "kits"
    provision(experiment, folder)
    federation.run(experiment, tmp_path / "run")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "h2tune"]
    processes = [subprocess.Popen([*command, "server", str(folder / "server"), "--json"], env=environment,
                                  stdout=subprocess.PIPE, text=True)]  # fmt: skip
    for client in experiment.clients:
        own = [
            "--model",
            client.model,
            "--train",
            client.train,
            "--test",
            client.test,
            "--validation",
            client.validation,
        ]
        processes.append(subprocess.Popen([*command, "client", str(folder / client.name), *own, "--device", "cpu"],
                                          env=environment, stdout=subprocess.DEVNULL))  # fmt: skip
    try:
        assert [process.wait(300) for process in processes] == [0, 0, 0]
        lines = [json.loads(line) for line in processes[0].stdout.read().splitlines()]
        assert lines[-1]["event"] == "result"
    finally:
        for process in processes:
            process.kill()
    over, inside = core(folder / "server" / "run"), core(tmp_path / "run")
    assert over.keys() == inside.keys() and all(torch.equal(over[k], inside[k]) for k in inside)
    assert (folder / "c0" / "state" / "adapter" / "adapter_model.safetensors").is_file()
    assert not (folder / "server" / "run" / "clients").exists()  # private state lies with the clients
    until(lambda: not engines(folder), "no process is left")


def test_letters_travel_encrypted_and_outlive_a_cut(made: tuple[Experiment, Path], server: Flare) -> None:
    experiment, folder = made
    kit, tap = Kit(folder / "c0"), Tap(experiment.network.port)
    through(kit.folder, tap.door)
    client = Flare(kit.engine, "client", "c0")
    try:
        canary = b"a sentence that must not be readable on the way " * 1000
        send(client, SERVER, canary)
        assert receive(server) == ("c0", canary)
        send(server, "c0", canary)
        assert receive(client) == (SERVER, canary)
        assert len(tap.seen) > 2 * len(canary) and canary[:20] not in tap.seen
        large = os.urandom(20_000_000)
        tap.cut_after = len(tap.seen) + 5_000_000  # in the middle of the next envelope
        send(client, SERVER, large)
        assert tap.cuts == 1 and receive(server) == ("c0", large)
        assert server.receive(0.2) is None  # never half, never twice
    finally:
        client.close()
        tap.close()
        through(kit.folder, experiment.network.port)


def test_what_waits_is_bounded_by_the_largest_message_of_the_kit(made: tuple[Experiment, Path], server: Flare) -> None:
    kit, most = Kit(made[1] / "c1"), made[0].network.largest
    client, room = Flare(kit.engine, "client", "c1"), server._inbox.room
    assert room == most + SPARE == client._inbox.room
    try:
        server._inbox.room = 1_000_000
        send(client, SERVER, b"a" * 900_000)
        send(client, SERVER, b"b" * 900_000)  # reaches the server, and is dropped there
        send(client, SERVER, b"c" * 900)
        assert [receive(server)[1][:1] for _ in range(2)] == [b"a", b"c"] and server.receive(0.2) is None
        assert any("c1 sends more than is read" in text for text in server.told)
        send(client, SERVER, b"d" * 900_000)  # once there is room it is taken
        assert receive(server)[1][:1] == b"d"
    finally:
        server._inbox.room = room
        client.close()


@pytest.mark.slow
def test_a_proxy_that_closes_idle_connections_closes_none(made: tuple[Experiment, Path], server: Flare) -> None:
    """Closed after four quiet seconds here, after sixty in the world: a sign of life a second keeps a connection open."""
    experiment, folder = made
    kit, tap = Kit(folder / "c0"), Tap(experiment.network.port)
    tap.idle = 4.0
    through(kit.folder, tap.door)
    client = Flare(kit.engine, "client", "c0")
    loop = ClientLoop(client, kit.about.federation)
    try:
        until(lambda: client.ready, "the client's engine is ready")
        threading.Thread(target=lambda: loop.run(bytes), daemon=True).start()
        until(lambda: loop.heard, "the first hello")
        time.sleep(12)
        assert tap.cuts == 0 and time.time() - loop.heard < 3
    finally:
        server.send("c0", Envelope("stop", {"reason": "over", "finished": True, "process": loop.process}).pack())
        client.close()
        tap.close()
        through(kit.folder, experiment.network.port)


def test_who_has_no_certificate_of_the_federation_is_not_let_in(
    made: tuple[Experiment, Path], server: Flare, tmp_path: Path
) -> None:
    experiment, folder = made
    port, startup = experiment.network.port, folder / "c0" / "engine" / "startup"
    provision(small(clients=1, name="another"), tmp_path / "other")
    other = tmp_path / "other" / "c0" / "engine" / "startup"
    expired = expired_certificate(folder, tmp_path)
    assert greeted(port, startup / "client.crt", startup / "client.key")  # the control
    assert not greeted(port, None, None)
    assert not greeted(port, other / "client.crt", other / "client.key")
    assert not greeted(port, *expired)
    with socket.create_connection(("127.0.0.1", port), 5) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert not said(plain)
    for reason in ("it has no certificate", "its certificate is not of this federation's authority",
                   "its certificate has expired", "it does not use encryption"):  # fmt: skip
        until(lambda r=reason: f"a connection from 127.0.0.1 was refused: {r}" in server.told, f"an event: {reason}")


@pytest.mark.slow
def test_a_kit_of_another_authority_is_told_on_both_sides_and_the_client_gives_up(
    made: tuple[Experiment, Path], server: Flare, tmp_path: Path
) -> None:
    experiment, _ = made
    network = {"port": experiment.network.port}
    provision(small(clients=1, name="another", network=network), tmp_path / "other")
    client = Flare(Kit(tmp_path / "other" / "c0").engine, "client", "c0")
    try:
        with pytest.raises(ChannelError, match="not of this kit's authority; ask the coordinator for a kit"):
            until(lambda: client.receive(0.1), "nothing")
        until(lambda: any("may be of another authority" in text for text in server.told), "the server says so")
    finally:
        client.close()


def greeted(port: int, certificate: Path | None, key: Path | None) -> bool:
    """Whether a connection with this certificate gets as far as an answer."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if certificate:
        context.load_cert_chain(certificate, key)
    try:
        with (
            socket.create_connection(("127.0.0.1", port), 5) as raw,
            context.wrap_socket(raw, server_hostname="localhost") as wrapped,
        ):
            wrapped.sendall(b"GET /f3 HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")  # fmt: skip
            return said(wrapped).startswith(b"HTTP/1.1 101")
    except (ssl.SSLError, ConnectionError):
        return False


def said(connection: socket.socket) -> bytes:
    connection.settimeout(5)
    try:
        return connection.recv(64)
    except OSError:
        return b""


def expired_certificate(folder: Path, target: Path) -> tuple[Path, Path]:
    """A certificate of c0 by the right authority whose time has passed."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    state = json.loads((folder / "authority" / "small" / "state" / "cert.json").read_text())
    key = serialization.load_pem_private_key(state["root_pri_key"].encode(), None)
    old = x509.load_pem_x509_certificate((folder / "c0" / "engine" / "startup" / "client.crt").read_bytes())
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(old.issuer, old.subject, old.public_key(), x509.random_serial_number(),
                                      now - timedelta(days=2), now - timedelta(days=1))  # fmt: skip
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    path = target / "expired.crt"
    path.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    return path, folder / "c0" / "engine" / "startup" / "client.key"


def test_nobody_can_take_anothers_name(made: tuple[Experiment, Path], server: Flare) -> None:
    impostor = Flare(Kit(made[1] / "c0").engine, "client", "c1")  # its certificate says c0
    try:
        until(lambda: "c0 tried to connect as c1 and was refused" in server.told, "the server's side knows")
        impostor.send(SERVER, b"let me in")
        assert not impostor.ready
        while received := server.receive(0):
            assert received[0] != "c1"
    finally:
        impostor.close()


def test_who_is_revoked_is_told_so(made: tuple[Experiment, Path], server: Flare) -> None:
    _, folder = made
    assert revoke(folder, ["c2"]) == ["c2"]
    client = Flare(Kit(folder / "c2").engine, "client", "c2")
    try:
        with pytest.raises(ChannelError, match="the coordinator has revoked this participant"):
            until(lambda: client.receive(0.1), "nothing")
        until(lambda: any("c2 was refused: it is revoked" in t for t in server.told), "the server's side knows, too")
    finally:
        client.close()
        write_revoked(folder / "server" / "engine", [])


def test_a_second_server_with_the_same_kit_finds_the_port_taken(
    made: tuple[Experiment, Path], server: Flare, tmp_path: Path
) -> None:
    shutil.copytree(made[1] / "server", tmp_path / "copy")
    second = Flare(Kit(tmp_path / "copy").engine, "server", "server")
    try:
        with pytest.raises(ChannelError, match="the port is taken"):
            until(lambda: second.receive(0.1), "nothing")
    finally:
        second.close()


def test_an_expired_certificate_says_when_and_what_to_do(made: tuple[Experiment, Path]) -> None:
    kit = Kit(made[1] / "c0")
    end = kit.check_certificate()
    # The authority was made with it, so that it ends at the same time.
    with pytest.raises(KitError, match=rf"expired on {end:%Y-%m-%d}: .* all kits are made anew"):
        kit.check_certificate(end + timedelta(days=1))
    with pytest.raises(KitError, match="set the clock"):
        kit.check_certificate(datetime(2001, 1, 1, tzinfo=UTC))


def test_kits_are_added_and_renewed_without_touching_the_others(made: tuple[Experiment, Path], tmp_path: Path) -> None:
    two, three = small(clients=2), small(clients=3)
    provision(two, tmp_path / "kits")
    before = {p: p.read_bytes() for p in (tmp_path / "kits").rglob("client.crt")}
    assert [p.name for p in provision(three, tmp_path / "kits")] == ["c2"]
    assert all(p.read_bytes() == data for p, data in before.items())
    assert [p.name for p in provision(three, tmp_path / "kits", renew=["c0"])] == ["c0"]
    changed = [p.parts[-4] for p, data in before.items() if p.read_bytes() != data]
    assert changed == ["c0"]
    with pytest.raises(KitError, match="There is no participant 'c9'"):
        provision(three, tmp_path / "kits", renew=["c9"])
    with pytest.raises(KitError, match="belongs to the federation 'small'"):
        provision(small(name="else"), tmp_path / "kits")


@pytest.mark.slow
def test_a_service_that_is_stopped_ends_tidily_and_goes_on(tmp_path: Path) -> None:
    with begun(tmp_path, rounds=6) as session:
        for name in ("server", "c1"):
            session.processes[name].terminate()
            assert session.processes[name].wait(30) == 1
            assert "Stopped." in (tmp_path / "kits" / f"{name}.log").read_text()
            assert describe(Kit(tmp_path / "kits" / name))["state"] == "stopped"
            session.start(name)
        session.finish()


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["client", "server", "client's engine", "server's engine", "both"])
def test_kill_9_of_real_processes_changes_nothing(victim: str, tmp_path: Path) -> None:
    network = {"port": free_port(), "gather": SECONDS, "silence": 60}
    experiment = small(clients=3, network=network, rounds=6, training={"steps": 10, "batch_size": 4})
    federation.run(experiment, tmp_path / "run")
    provision(experiment, tmp_path / "kits")
    session = Session(experiment, tmp_path / "kits")
    try:
        for name in ("server", "c0", "c1", "c2"):
            session.start(name)
        until(lambda: session.committed(2), "two rounds")
        for name in {"both": ["c1", "server"], "client": ["c1"], "server": ["server"]}.get(victim, []):
            session.processes[name].kill()
            session.processes[name].wait()
            session.start(name)
        if "engine" in victim:
            session.engine_of("server" if "server" in victim else "c1").kill()
        session.finish()
    finally:
        session.close()
    found, wanted = core(tmp_path / "kits" / "server" / "run"), core(tmp_path / "run")
    assert all(torch.equal(found[k], wanted[k]) for k in wanted)
    until(lambda: not engines(tmp_path), "no process is left")
