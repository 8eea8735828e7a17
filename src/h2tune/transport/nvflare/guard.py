"""Who may connect, enforced inside the server's engine: certificates that were replaced, participants that were revoked.

NVFlare reads its list of disabled clients when it starts and asks it when a client registers. A client that is connected
or reconnects does not register again. So the guard looks at every connection when it is made, and at all connections
whenever a list changes. NVFlare has no interface for that: the guard stands before `ConnManager.update_endpoint`, where
NVFlare itself compares a connection's certificate with the name that is claimed. It also stands before the receiver of
messages: NVFlare forwards what one client writes to another, and does not bind the name of its writer to the connection.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
from nvflare.fuel.f3.cellnet.fqcn import FQCN
from nvflare.fuel.f3.comm_error import CommError
from nvflare.fuel.f3.drivers.connector_info import Mode
from nvflare.fuel.f3.drivers.driver_params import DriverParams

from h2tune.transport.access import PUT_OUT, REVOKED, AccessList
from h2tune.transport.nvflare.engine_log import OnceAMinute

SECONDS = 1.0  # between two looks at the lists
EVERY = ("", "None", "0", "0.0.0.0", "::")  # hosts of a listener that stand for all addresses of the machine
MOST = (
    100_000  # sentences in a minute; each is about a participant and a reason, of which there are so many and no more
)
GRACE = 3.0  # seconds in which a revoked client's process is told why, before its connection is closed


def say(text: str) -> None:
    """A line of the engine's log that `h2tune.transport.nvflare.engine_log` passes on to people."""
    print(f"h2tune: {text}", flush=True)


class Guard:
    """Refuses connections and participants by the lists in the server's kit.

    Args:
        folder: the engine's folder in the kit.
        connections: NVFlare's `ConnManager`. registry: its `ClientManager`.
    """

    def __init__(self, folder: Path, connections: Any, registry: Any) -> None:
        self.access, self.connections, self.registry = AccessList(folder), connections, registry
        self._told = OnceAMinute(most=MOST)
        self._pending = True  # connections may have been made before the guard stood here
        self._due: dict[str, float] = {}  # revoked participants, and when their connections are closed
        connections.update_endpoint = self._judged(connections.update_endpoint)
        for receiver in connections.receivers.values():
            receiver.process_message = self._direct(receiver.process_message)
        threading.Thread(target=self._watch, daemon=True, name="h2tune-guard").start()

    def objection(self, name: str) -> str:
        """Why an envelope of this participant is refused, or an empty text."""
        if reason := self.access.objection(name):
            self._say(f"{name} at {self.address(name)} was refused: {reason}", f"refused {name}: {reason}")
        return reason

    def _say(self, text: str, key: str = "") -> None:
        """Say it, at most once a minute: a participant may bring it about again and again, and from many addresses."""
        if self._told.passes(text, key):
            with suppress(OSError, ValueError):  # the disk is full, say: what is to be done is done all the same
                say(text)

    def address(self, name: str) -> str:
        """From where a participant is connected."""
        endpoint = self.connections.find_endpoint(name)
        return host_of(endpoint.conn_props if endpoint else {})

    def _judged(self, update: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
        """`update_endpoint`, for certificates that are in force."""

        def judged(connection: Any, handshake: Any) -> None:
            name, serial, address = identity(connection.conn)
            # Who is revoked may connect: its registration is refused with the reason, and it is sent nothing.
            if (reason := self.access.objection(name, serial)) and reason != PUT_OUT:
                connection.conn.close()
                self._say(f"{name} at {address} was refused: {reason}", f"refused {name}: {reason}")
                raise CommError(CommError.BAD_DATA, f"{name}: {reason}")
            update(connection, handshake)

        return judged

    def _direct(self, process: Callable[..., None]) -> Callable[..., None]:
        """`process_message`, for what a participant writes in its own name to the server: clients do not talk to each other."""

        def judged(endpoint: Any, connection: Any, app: int, message: Any) -> None:
            written, to = (message.get_header(key) for key in (MessageHeaderKey.ORIGIN, MessageHeaderKey.DESTINATION))
            if written == endpoint.name and to == FQCN.ROOT_SERVER:
                process(endpoint, connection, app, message)
            else:
                self._say(f"{endpoint.name} wrote in another's name or to another participant: refused")

        return judged

    def _watch(self) -> None:
        """For as long as the engine runs. Whatever goes wrong is said, and tried again: nobody else puts out who is revoked."""
        while True:
            try:
                self._look()
            except Exception as error:
                self._say(
                    f"the lists of who may take part could not be applied ({type(error).__name__}); trying again"
                )
            time.sleep(SECONDS)

    def _look(self) -> None:
        try:
            self._pending = self.access.look() or self._pending
            if self._pending:
                self._apply()
                self._pending = False
        finally:
            self._close_due()

    def _apply(self) -> None:
        """Let the registry know who is revoked, and close connections with replaced certificates."""
        # First: their connections are closed whatever fails here.
        new = dict.fromkeys(self.access.revoked, time.monotonic() + GRACE)
        self._due = new | {name: due for name, due in self._due.items() if name in new}
        self.registry.set_disabled_clients_file(str(self.access.folder / REVOKED))
        for token in [t for t, client in list(self.registry.clients.items()) if client.name in new]:
            self.registry.remove_client(token)
        time.sleep(SECONDS)  # the server's process tells the client why
        self._close(lambda name, serial: self.access.objection(name, serial) not in ("", PUT_OUT))

    def _close_due(self) -> None:
        now = time.monotonic()
        if due := {name for name, at in self._due.items() if at <= now}:
            self._close(lambda name, serial: name in due)
            self._due |= dict.fromkeys(due, now + GRACE)  # who connects again is told again, and closed again

    def _close(self, wanted: Callable[[str, int | None], bool]) -> None:
        failed: Exception | None = None
        for connection in list(self.connections.sfm_conns.values()):
            try:
                name, serial, address = identity(connection.conn)
                if name and wanted(name, serial):
                    connection.conn.close()
                    reason = self.access.objection(name, serial)
                    self._say(f"{name} at {address} was cut off: {reason}", f"cut off {name}: {reason}")
            except Exception as error:  # the others are closed all the same
                failed = error
        if failed:
            raise failed


def identity(connection: Any) -> tuple[str, int | None, str]:
    """Common name and serial number of a connection's certificate, and the address without the port."""
    properties = connection.get_conn_properties()
    socket = getattr(connection, "websocket", None)
    certificate = socket.get_extra_info("peercert") if socket is not None else None
    serial = (certificate or {}).get("serialNumber")
    address = host_of(properties)
    name = properties.get(DriverParams.PEER_CN.value) if serial else None
    return name or "", int(serial, 16) if serial else None, address


def host_of(properties: Any) -> str:
    """The other side's address without the port."""
    return str(properties.get(DriverParams.PEER_ADDR.value, "")).rpartition(":")[0] or "an unknown address"


def listening(connections: Any) -> list[str]:
    """Addresses on which an engine waits for connections."""
    found = [c.params for c in connections.connectors.values() if c.mode == Mode.PASSIVE]
    places = {(str(p.get(DriverParams.HOST.value)), str(p.get(DriverParams.PORT.value))) for p in found}
    return sorted(f"{'every address' if host in EVERY else host}:{port}" for host, port in places)
