"""The server's end of the network: requests out, answers in, each with a deadline, whoever dies, hangs or comes back.

Clients say hello all the time. A client that restarts has a new process and must be given its place again before it
can be asked for anything else; `returned` names such clients. Requests carry a number, so that a late or repeated answer
is recognised and dropped.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from h2tune.config import NetworkConfig
from h2tune.errors import ProtocolError
from h2tune.transport.access import PUT_OUT, REPLACED, AccessList
from h2tune.transport.base import Absent, Reply, Revoked
from h2tune.transport.channel import Channel
from h2tune.transport.envelope import PROCESS, Envelope, OtherVersion, progress, unpack, writer
from h2tune.version import __version__

RETRY = 0.5  # seconds after which an envelope that could not be delivered is sent again
REPEAT = 3.0  # seconds after which a request is sent again to a client that is idle
REASON = 500  # characters of a reason; a client may have written some of it
MINUTE = 60.0  # seconds; a client that is refused is told of once in so many
REMIND = 30.0  # seconds between lines about whom we wait for
LINGER = 5.0  # seconds in which a last envelope must be delivered
MOST_EVENTS = 200  # of one kind that one client may bring about
OLDER = 100  # processes of a client that are remembered: who starts new ones without end fills no memory
LOOK = 1.0  # seconds between looks at who may take part
GLANCE = 100  # envelopes for each client that are taken in at a time
ADMITTED = "the lists of who may take part can be read again"
NOBODY: Mapping[str, str] = {}
Tell = Callable[..., None]


@dataclass
class Presence:
    """What a client's last hello said, and when it came."""

    process: str
    heard: float
    busy: bool = False
    doing: dict[str, Any] = field(default_factory=dict)
    replaced: list[str] = field(default_factory=list)  # older processes of the same identity, at most `OLDER`


@dataclass
class Open:
    """A request without an answer."""

    data: bytes
    number: str = field(default_factory=lambda: secrets.token_hex(8))
    process: str = ""  # for which it is meant, once it was sent
    due: float = 0.0  # not sent (again) before
    under_way: bool = False  # the channel has not yet said what became of it


class Network:
    """Implements `h2tune.transport.base.Transport` on a channel.

    Args:
        names: the participants; nobody else is heard.
        federation: identity of the kits; a client with a kit of another federation is refused.
        tell: told of what deserves to stand among the events: event, text, client.
        clock: seconds, monotonic.
        access: who may take part, as the coordinator may change it at any time.
    """

    def __init__(
        self,
        channel: Channel,
        names: Collection[str],
        federation: str,
        config: NetworkConfig,
        tell: Tell,
        clock: Callable[[], float] = time.monotonic,
        access: AccessList | None = None,
    ) -> None:
        self.channel, self.names, self.federation, self.config = channel, set(names), federation, config
        self.tell, self.clock, self.access, self._looked = tell, clock, access, -LOOK
        self._certificates = access.certificates if access else {}
        self._revoked, self._fault = set[str](), ""
        self.present: dict[str, Presence] = {}
        self.served: dict[str, str] = {}  # the process that has its place in the run
        self.open: dict[str, Open] = {}
        self._refused: dict[str, float] = {}  # when a refusal of this name was last told here
        self._answered: dict[str, float] = {}  # and to the one who is refused
        self._complaints: Counter[tuple[str, str]] = Counter()

    def exchange(self, requests: dict[str, bytes], fresh: bool = False) -> Iterator[Reply]:
        """Deliver a message to each client, yield answers as they come; who gives none is `Absent`.

        Args:
            fresh: these messages give clients their place in the run (join, resume).
        """
        self.open = {name: Open(data) for name, data in requests.items()}
        end = self.clock() + self.config.deadline
        while self.open:
            yield from self._put_out()
            yield from self._send_out(fresh)
            yield from self._give_up(end)
            if self.open:
                yield from self._take_in(0.1) or ()

    def returned(self) -> list[str]:
        """Clients that are here, idle, and have no place in the run: new ones, restarted ones, stragglers."""
        self._look_around()
        return sorted(n for n, p in self.present.items() if self._idle(n) and self.served.get(n) != p.process)

    def wait(self, names: Collection[str], count: int, first: bool = False) -> bool:
        """Wait until ``count`` of these clients are here and idle; False if that does not happen in time."""
        end = self.clock() + (self.config.gather if first else self.config.patience)
        told = self.clock()
        while len([n for n in names if self._idle(n)]) < count:
            if len(names) < count or self.clock() > end:
                return False
            if self.clock() - told > REMIND:
                told = self.clock()
                self.tell("waiting", f"waiting for {', '.join(sorted(n for n in names if not self._idle(n)))}")
            self._look_around(0.1)
        return True

    def revoked(self) -> Collection[str]:
        """Clients that the coordinator has put out by now."""
        self._look_at_access()
        return sorted(self._revoked)

    def dismiss(self, name: str, reason: str) -> None:
        """Tell a client that it takes no further part."""
        if name in self.present:
            self.served[name] = self.present[name].process
        self._stop(name, f"the server continues without this client: {reason}")

    def stop(self, reason: str, finished: bool, expected: Collection[str] = (), stay: float = 0.0,
             out: Mapping[str, str] = NOBODY, pause: bool = False) -> set[str]:  # fmt: skip
        """Tell every client that is here that nothing more will come; returns those that know.

        Args:
            expected: clients that should hear it, too, though they are away.
            stay: seconds for which to wait for them.
            out: clients that take no part any more, and why; they are told that instead.
            pause: whether the server may be started again, and clients wait for it.
        """
        told, known, begin = dict[str, str](), set[str](), self.clock()
        while True:
            for name in [n for n in self.present if self._here(n) and told.get(n) != self.present[n].process]:
                told[name] = self.present[name].process
                last = (out[name], False) if name in out else (reason, finished)
                self._stop(name, *last, done=partial(_note, known, told, name), pause=pause and name not in out)
            told_all = {name for name in self.present if self._here(name)} <= known
            passed = self.clock() - begin
            if (told_all or passed > LINGER) and (set(expected) <= known or passed > stay):
                return known
            self._look_around(0.05)

    def _stop(self, name: str, reason: str, finished: bool = False, process: str = "",
              done: Callable[[str], None] = lambda error: None, pause: bool = False) -> None:  # fmt: skip
        """Tell a process to end, or to wait. It believes whoever knows what it calls itself, and nobody else."""
        process = process or (self.present[name].process if name in self.present else "")
        fields: dict[str, Any] = {"reason": reason[:REASON], "process": process}
        last = Envelope("pause", fields) if pause else Envelope("stop", fields | {"finished": finished})
        self.channel.send(name, last.pack(), done)

    def _here(self, name: str) -> bool:
        return (
            name in self.present
            and name not in self._revoked
            and self.clock() - self.present[name].heard <= self.config.silence
        )

    def _idle(self, name: str) -> bool:
        return self._here(name) and not self.present[name].busy

    def _look_around(self, seconds: float = 0.0) -> None:
        """Take in all that there is, outside of any exchange."""
        for _ in range(GLANCE * len(self.names)):  # who writes without end must not keep us from the others
            if self._take_in(seconds) is None:
                return
            seconds = 0.0

    def _send_out(self, fresh: bool) -> Iterator[Reply]:
        """Hand open requests to clients that are here.

        The engine delivers to a name, and two processes may have it for a while: a request is for one process, the
        others leave it alone, and it is sent again for as long as that process is idle and has not answered.
        """
        for name, request in list(self.open.items()):
            if not self._here(name) or request.under_way or self.clock() < request.due:
                continue
            presence = self.present[name]
            if request.process and presence.busy:
                continue
            if fresh:
                self.served[name] = presence.process
            elif self.served.get(name) != presence.process:
                yield self._drop(name, "it was restarted")
                continue
            request.process, request.under_way = presence.process, True
            fields = {"number": request.number, "process": request.process}
            self.channel.send(name, Envelope("request", fields, request.data).pack(), partial(self._sent, request))

    def _sent(self, request: Open, error: str) -> None:
        """Called by the channel, from a thread of its own: what did not arrive is sent again soon."""
        request.due, request.under_way = self.clock() + (RETRY if error else REPEAT), False

    def _look_at_access(self) -> None:
        """Tell clients that were revoked, or whose certificate was replaced, as soon as that is known."""
        if self.access is None or self.clock() - self._looked < LOOK:
            return
        self._looked = self.clock()
        self.access.look()
        if self.access.fault != self._fault:
            self._fault = self.access.fault
            self.tell("revoked", f"{self._fault}; the lists of before stay in force" if self._fault else ADMITTED)
        for name in sorted((self.access.revoked & self.names) - self._revoked):
            self._tell_some("revoked", f"{name}: {PUT_OUT}", name)
            self._stop(name, PUT_OUT)
        self._revoked = set(self.access.revoked & self.names)
        before, self._certificates = self._certificates, self.access.certificates
        for name in sorted(self.names & self.present.keys()):
            if not set(before.get(name, ())) <= set(self._certificates.get(name, ())):
                self._tell_some("revoked", f"{name}: {REPLACED}", name)
                self._stop(name, REPLACED, process=self.present[name].process)

    def _put_out(self) -> list[Reply]:
        """Open requests to clients that are revoked come to nothing."""
        self._look_at_access()
        return [self._drop(name, Revoked(PUT_OUT)) for name in list(self.open) if name in self._revoked]

    def _give_up(self, end: float) -> list[Reply]:
        late = self.clock() > end
        reason = f"no answer within {self.config.deadline:g} s" if late else f"silent for {self.config.silence:g} s"
        return [self._drop(name, reason) for name in list(self.open) if late or not self._here(name)]

    def _drop(self, name: str, reason: str | Exception) -> Reply:
        """No longer wait for a client; it must be given its place again."""
        del self.open[name]
        self.served.pop(name, None)
        return name, Absent(reason) if isinstance(reason, str) else reason

    def _take_in(self, seconds: float) -> list[Reply] | None:
        """Take one envelope from the channel; what it means for open requests, or None if none came."""
        self._look_at_access()
        found = self.channel.receive(seconds)
        if found is None:
            return None
        name, data = found
        if name not in self.names or name in self._revoked:
            reason = PUT_OUT if name in self._revoked else "it is not a participant of this federation"
            self._refuse(name, reason, writer(data))
            return []
        try:
            envelope = unpack(data)
        except OtherVersion as error:
            self._refuse(name, str(error), error.process)
            return []
        except ProtocolError as error:
            self._tell_refusal(name, str(error))
            return []
        if envelope.kind == "hello":
            return self._hello(name, envelope)
        return self._answer(name, envelope) if envelope.kind == "answer" else []

    def _hello(self, name: str, envelope: Envelope) -> list[Reply]:
        said, known = envelope.fields, self.present.get(name)
        if said["federation"] != self.federation:
            self._refuse(name, "its kit belongs to another federation", said["process"])
        elif known and said["process"] in known.replaced:
            self._refuse(name, "another process runs with the same kit", said["process"])
        elif known and said["process"] == known.process:
            known.heard, known.busy, known.doing = self.clock(), said["busy"], progress(said["doing"])
        else:
            before = [*known.replaced, known.process][-OLDER:] if known else []
            self.present[name] = Presence(said["process"], self.clock(), said["busy"], progress(said["doing"]), before)
            self._tell_some("client_here", f"{name} is {'back' if before else 'here'}", name)
            if said["version"] != __version__:
                text = f"{name} runs h2tune {said['version'][:PROCESS]}, the server {__version__}"
                self._tell_some("other_version", text, name)
            if name in self.open and self.open[name].process:
                return [self._drop(name, "it was restarted")]
        return []

    def _answer(self, name: str, envelope: Envelope) -> list[Reply]:
        request = self.open.get(name)
        if request is None or envelope.fields["number"] != request.number:
            self._tell_some("late", f"{name}: an answer came to a request that is no longer open", name)
            return []
        del self.open[name]
        return [(name, envelope.body)]

    def _refuse(self, name: str, reason: str, process: str = "") -> None:
        """Say so on both sides, to the other one not more often than a hello comes."""
        self._tell_refusal(name, reason)
        if self.clock() - self._answered.get(name, -RETRY) >= RETRY:
            self._answered[name] = self.clock()
            self._stop(name, reason, process=process)

    def _tell_refusal(self, name: str, reason: str) -> None:
        """Told at most once a minute for each who is refused; of strangers, for all of them together."""
        now, key = self.clock(), name if name in self.names else ""
        if now - self._refused.get(key, -MINUTE) >= MINUTE:
            self._refused[key] = now
            address = self.channel.address(name)
            self.tell("refused", f"{name}{f' at {address}' if address else ''}: {reason}", client=name)

    def _tell_some(self, event: str, text: str, name: str) -> None:
        """An event that a client brings about by itself: it cannot fill the disk with them."""
        key = (name, event)
        self._complaints[key] += 1
        if self._complaints[key] <= MOST_EVENTS:
            self.tell(event, text, client=name)
        elif self._complaints[key] == MOST_EVENTS + 1:
            self.tell(event, f"{name}: further events of this kind are not listed", client=name)


def _note(known: set[str], told: dict[str, str], name: str, error: str) -> None:
    """Called by the channel when it is known what became of a last word: who did not get it is told again."""
    if error:
        told.pop(name, None)
    else:
        known.add(name)
