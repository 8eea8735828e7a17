"""The answer with which a client ended a round, on its own disk: a round that is asked for again is not trained again.

The server may be stopped in the middle of a round, the connection be cut for minutes, or a round be begun again because
another client left. A client that has ended the round then sends the same update, and stands where it stood after it.
That is sound in rounds of one exchange: the update follows from the request, the private state before the round, the
client's settings and its data, and all of these are compared. In rounds of several exchanges an answer also depends on
what was said before, and with secure aggregation on secrets that are made anew: such rounds are begun again.
"""

from __future__ import annotations

from dataclasses import replace

from h2tune.client import Client
from h2tune.errors import ProtocolError
from h2tune.protocol.codec import Message, decode, encode
from h2tune.store import ClientStore
from h2tune.utils.digest import digest_of
from h2tune.utils.files import write_atomic

FILE, KEY = "answer", 32  # bytes of the key before the message


class KeptAnswer:
    """The last answer that ended a round of one exchange.

    Args:
        store: of the client. settings: stand for all that the answer depends on beside request and state.
    """

    def __init__(self, store: ClientStore, settings: str) -> None:
        self.path, self.settings = store.folder / FILE, settings

    def find(self, request: Message, client: Client) -> bytes | None:
        """The answer to a request that was answered before; the client then stands as after that round."""
        if not (client.ready and self._ends(request, client) and self.path.is_file()):
            return None
        data = self.path.read_bytes()
        if data[:KEY] != self._key(request, client):
            return None
        try:
            answer = decode(data[KEY:], run=request.run, limit=len(data))
        except ProtocolError:  # damaged on the disk: the round is trained again
            return None
        if not client.rounds.stand_after(request.round):
            return None
        return encode(replace(answer, attempt=request.attempt, process=client.process))

    def keep(self, request: Message, client: Client, answer: bytes) -> None:
        """Keep an answer if it ended a round of one exchange."""
        if self._ends(request, client) and client.rounds.done == request.round:
            write_atomic(self.path, self._key(request, client) + answer)

    def _ends(self, request: Message, client: Client) -> bool:
        return request.kind == client.method.ends and request.step == 0

    def _key(self, request: Message, client: Client) -> bytes:
        payload = request.payload
        names = (
            self.settings,
            request.run,
            request.round,
            request.kind,
            request.state,
            len(client.context.data.train),
        )
        said = sorted(payload.meta.items()), sorted(payload.texts.items())
        return digest_of(payload.tensors, *names, *said).encode()
