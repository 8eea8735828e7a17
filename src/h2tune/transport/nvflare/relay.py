"""The part that runs inside NVFlare's own processes: it carries bytes between the engine's network and our process.

NVFlare loads it as a component of its parent process (``local/resources.json`` of a kit), on the server and at every
site. No job is ever submitted, so no code is shipped and nothing ends when a site does. It holds no state and no secret.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext
from nvflare.apis.signal import Signal
from nvflare.fuel.f3.cellnet.core_cell import Message, make_reply
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, ReturnCode
from nvflare.fuel.f3.cellnet.fqcn import FQCN
from nvflare.private.defs import CellMessageHeaderKeys, new_cell_message

from h2tune.transport.channel import REFUSED
from h2tune.transport.nvflare.engine import Engine
from h2tune.transport.nvflare.guard import Guard, listening
from h2tune.transport.nvflare.listener import LinkClosed

CHANNEL, TOPIC = "h2tune", "envelope"
SERVER = FQCN.ROOT_SERVER
THREADS, SHARE = 32, 8  # envelopes under way at a time; of a server to one client
REASON = 500  # characters of what went wrong: the other side writes some of it


class Relay(FLComponent):
    """Carries envelopes between the cell of an NVFlare parent process and the link to ours.

    Frames from our process: ``{"to": name, "number": n, "seconds": s}`` with the envelope; the answer is ``{"sent": n,
    "error": reason or ""}``. Frames to our process: ``{"from": name, "address": host}`` with the envelope; ``name`` is what
    the sender's certificate says. ``{"ready": true, "ports": [...]}`` comes first.

    Args:
        server: whether this is the coordinator's side.
        limit: most bytes of an envelope that is passed on.
    """

    def __init__(self, server: bool = False, limit: int = 1 << 30) -> None:
        super().__init__()
        self.server, self.limit = server, limit
        self.guard: Guard | None = None
        self.senders = ThreadPoolExecutor(THREADS, "h2tune-send")
        # number of an envelope to its addressee, and to what ends the engine's wait for a confirmation
        self.under_way: dict[int, tuple[str, Signal]] = {}

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        if event_type == EventType.SYSTEM_START and Engine.relay is None:
            engine = fl_ctx.get_engine()
            self.cell = engine.get_cell()
            self.connections = connections = self.cell.core_cell.communicator.conn_manager
            connections.update_endpoint = self.renewed(connections.update_endpoint)
            if self.server:
                self.guard = Guard(Engine.workspace, connections, engine.client_manager)
            self.cell.register_request_cb(channel=CHANNEL, topic=TOPIC, cb=self.arrived)
            self.cell.core_cell.set_cell_disconnected_cb(self.cut)
            Engine.relay = self
            Engine.link.send({"ready": True, "ports": listening(connections)})

    def take(self, header: dict[str, Any], body: bytes) -> None:
        """An envelope of our process, to be sent without making the next one wait."""
        number, to = header["number"], header["to"]
        taken = sum(other == to for other, _ in list(self.under_way.values()))
        self.under_way[number] = to, Signal()
        if self.server and taken >= SHARE:  # who confirms nothing keeps nobody else waiting
            return self.settle(number, "too many envelopes wait for it")
        self.senders.submit(self.send, header, body)

    def renewed(self, update: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
        """`update_endpoint`, after which nobody waits for what went into an older connection.

        A connection that breaks without a word (a router that restarts) is noticed here only when the other side connects again.
        """

        def update_and_tell(connection: Any, handshake: Any) -> None:
            update(connection, handshake)
            self.lost(connection.sfm_endpoint.endpoint.name)

        return update_and_tell

    def cut(self, peer: Any) -> None:
        """A connection was closed."""
        self.lost(peer.get_fqcn())

    def lost(self, name: str) -> None:
        """The engine would wait for confirmations that cannot come: say so at once, and free its threads."""
        for number, (to, abort) in list(self.under_way.items()):
            if to == name:
                abort.trigger("the connection was lost")
                self.settle(number, "the connection was lost")

    def settle(self, number: int, error: str) -> None:
        """Say once what became of an envelope."""
        if self.under_way.pop(number, None) is not None:
            Engine.link.send({"sent": number, "error": error[:REASON]})

    def send(self, header: dict[str, Any], body: bytes) -> None:
        to, number, seconds = header["to"], header["number"], header["seconds"]
        waiting = self.under_way.get(number)
        if waiting is None:
            return  # the connection was lost while the envelope waited for its turn
        _, abort = waiting
        try:
            reply = self.cell.send_request(
                target=to, channel=CHANNEL, topic=TOPIC, request=new_cell_message({}, body), timeout=seconds,
                optional=True, abort_signal=abort,
            )  # fmt: skip
            code = reply.get_header(MessageHeaderKey.RETURN_CODE)
            error = "" if code == ReturnCode.OK else f"{code} {reply.get_header(MessageHeaderKey.ERROR) or ''}".strip()
            if code == ReturnCode.TIMEOUT:
                self.close_silent(to, seconds / 2)
        except Exception as problem:  # whatever the engine throws, the envelope was not delivered
            error = f"{type(problem).__name__}: {problem}"
        self.settle(number, error)

    def close_silent(self, name: str, seconds: float) -> None:
        """Close a connection on which nothing came for so long: the engine makes a new one."""
        for connection in self.connections.get_connections(name) or ():
            if time.time() - connection.last_activity > seconds:
                connection.conn.close()

    def arrived(self, request: Message) -> Message:
        """An envelope from the network: judge its sender and size, pass it on."""
        sender, body = self.sender(request), request.payload
        if sender is None or not isinstance(body, (bytes, bytearray, memoryview)):
            return make_reply(ReturnCode.INVALID_REQUEST, "not an envelope of a participant")
        if len(body) > self.limit:
            return make_reply(ReturnCode.INVALID_REQUEST, f"{len(body):,} bytes, the limit is {self.limit:,}")
        if self.guard and (reason := self.guard.objection(sender)):
            return make_reply(ReturnCode.UNAUTHENTICATED, f"{REFUSED}{reason}")
        try:
            address = self.guard.address(sender) if self.guard else ""
            Engine.link.send({"from": sender, "address": address}, bytes(body))
        except LinkClosed:
            return make_reply(ReturnCode.SERVICE_UNAVAILABLE, "the participant's process has stopped")
        return make_reply(ReturnCode.OK)

    def sender(self, request: Message) -> str | None:
        """Who wrote, as far as the engine has verified it; None if he may not write to us."""
        if self.server:
            # The engine's filter has checked the token behind this name before any callback is called.
            name: str | None = request.get_header(CellMessageHeaderKeys.CLIENT_NAME)
            return name
        return SERVER if request.get_header(MessageHeaderKey.ORIGIN) == SERVER else None
