"""The part that runs inside NVFlare's own processes: it carries bytes between the engine's network and our process.

NVFlare loads it as a component of its parent process (``local/resources.json`` of a kit), on the server and at every
site. No job is ever submitted, so no code is shipped and nothing ends when a site does. It holds no state and no secret.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext
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
THREADS = 32  # envelopes under way at a time


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
        self.under_way: dict[int, str] = {}  # number of an envelope to its addressee

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        if event_type == EventType.SYSTEM_START and Engine.relay is None:
            engine = fl_ctx.get_engine()
            self.cell = engine.get_cell()
            connections = self.cell.core_cell.communicator.conn_manager
            if self.server:
                self.guard = Guard(Engine.workspace, connections, engine.client_manager)
            self.cell.register_request_cb(channel=CHANNEL, topic=TOPIC, cb=self.arrived)
            self.cell.core_cell.set_cell_disconnected_cb(self.cut)
            Engine.relay = self
            Engine.link.send({"ready": True, "ports": listening(connections)})

    def take(self, header: dict[str, Any], body: bytes) -> None:
        """An envelope of our process, to be sent without making the next one wait."""
        self.under_way[header["number"]] = header["to"]
        self.senders.submit(self.send, header, body)

    def cut(self, peer: Any) -> None:
        """A connection was lost: the engine would wait for answers that cannot come, we say so at once."""
        name = peer.get_fqcn()
        for number, to in list(self.under_way.items()):
            if to == name:
                self.settle(number, "the connection was lost")

    def settle(self, number: int, error: str) -> None:
        """Say once what became of an envelope."""
        if self.under_way.pop(number, None) is not None:
            Engine.link.send({"sent": number, "error": error})

    def send(self, header: dict[str, Any], body: bytes) -> None:
        try:
            reply = self.cell.send_request(
                target=header["to"], channel=CHANNEL, topic=TOPIC, request=new_cell_message({}, body),
                timeout=header["seconds"], optional=True,
            )  # fmt: skip
            code = reply.get_header(MessageHeaderKey.RETURN_CODE)
            error = "" if code == ReturnCode.OK else f"{code} {reply.get_header(MessageHeaderKey.ERROR) or ''}".strip()
        except Exception as problem:  # whatever the engine throws, the envelope was not delivered
            error = f"{type(problem).__name__}: {problem}"
        self.settle(header["number"], error)

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
