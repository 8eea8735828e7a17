"""What an engine writes into its log, in words for the person at the machine.

The engine tells reasons only there. Lines that match a known trouble become one sentence each; the rest stays in the log.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from h2tune.transport.access import PUT_OUT

MINUTE = 60.0  # seconds; a sentence is told once in so many
MOST = 100  # sentences of a kind, about different participants or addresses, that are told in a minute
TAIL = 4096  # bytes
GIVE_UP, TIMES = 45.0, 3  # seconds and number of refusals after which a client no longer tries


class Trouble(StrEnum):
    """What follows from a trouble."""

    PASSING = "it is tried again"
    REFUSED = "it is tried again for a minute: nothing will change by itself"
    FINAL = "it is of no use to try again"
    NONE = "somebody has connected: this engine listens"


P, R, F, N = Trouble.PASSING, Trouble.REFUSED, Trouble.FINAL, Trouble.NONE
NO_ENGINE = "NVFlare is not installed: pip install 'h2tune[network]'"
PORT_TAKEN = "the port is taken: stop what listens on it, or provision with another `network.port`"
AUTHORITY = ("a connection was refused: the other side's certificate is not of this kit's authority; ask the coordinator for"
             " a kit of this federation")  # fmt: skip
EXPIRED = (
    "a certificate has expired: the coordinator makes a new kit with `h2tune provision FILE --out FOLDER --renew NAME`"
)
CLOSED = ("the server closes the connections of this kit: it may have been renewed or revoked; ask the coordinator for the"
          " newest kit")  # fmt: skip
# pattern, sentence, what follows
TROUBLES: list[tuple[str, str, Trouble]] = [
    (r"^h2tune: (?P<text>\S+ at .+ was refused: .+)", "{text}", P),
    (r"^h2tune: (?P<text>\S+ at .+ was cut off: .+)", "{text}", P),
    (r"^h2tune: (?P<text>the lists of who may take part .+)", "{text}", P),
    (r"^h2tune: (?P<text>a connection from .+)", "{text}", P),
    (r"^h2tune: (?P<text>.+)", "{text}", P),
    (r" - conn_manager - INFO - Connection \[CN\d+ [^\]]*<= ", "a connection was made", N),
    (r"Client '[^']*' is disabled", PUT_OUT, F),
    (r"Reject disabled client (?:registration|heartbeat): (?P<who>\S+)", "{who} was refused: it is revoked", P),
    (r"authenticated as '(?P<who>[^']+)' but claimed endpoint '(?P<other>[^']+)'", "{who} tried to connect as {other} and"
     " was refused", P),
    (r"expected server identity is", "another server answers under this address than the one of this kit", F),
    (r"certificate has expired|CERTIFICATE_EXPIRED", EXPIRED, R),
    (r"certificate is not yet valid", "a certificate is not valid yet: is the clock of this machine right?", R),
    (r"CERTIFICATE_VERIFY_FAILED|certificate verify failed|UNKNOWN_CA|unknown ca", AUTHORITY, R),
    (r"PEER_DID_NOT_RETURN_A_CERTIFICATE|peer did not return a certificate", "a connection without a certificate was"
     " refused", R),
    (r"WRONG_VERSION_NUMBER|HTTP_REQUEST|wrong version number|http request", "a connection without encryption was"
     " refused", R),
    (r"[Aa]ddress already in use", PORT_TAKEN, F),
    (r"Name or service not known|nodename nor servname|Temporary failure in name resolution", "the server's name cannot"
     " be resolved; trying again", P),
    (r"Connection refused|Connect call failed|TARGET_UNREACHABLE|target_unreachable", "the server cannot be reached;"
     " trying again", P),
    (r"Connection \[CN\d+ Not Connected\] is closed", CLOSED, R),
    (r"ModuleNotFoundError: No module named 'nvflare'", NO_ENGINE, F),
]  # fmt: skip


class Found(NamedTuple):
    """What a line of the log comes to.

    Attributes:
        kind: of the trouble; each has its own room, so that one participant, or a stranger, does not crowd out the rest.
        who: the participant whom it is about. With a kind it is told of once a minute, whatever else it makes up.
    """

    text: str
    follows: Trouble
    kind: str = ""
    who: str = ""


def judge(line: str) -> Found | None:
    """The sentence for a line of the log, and what follows from it; None for ordinary lines."""
    for pattern, sentence, follows in TROUBLES:
        if match := re.search(pattern, line):
            said = match.groupdict()
            return Found(sentence.format(**said), follows, pattern, said.get("who") or "")
    return None


def follow(log: Path, place: int, process: subprocess.Popen[bytes], tell: Callable[[Found], None]) -> None:
    """Read the log from ``place`` on for as long as the process runs."""
    with open(log, encoding="utf-8", errors="replace") as file:
        file.seek(place)
        while True:
            ended = process.poll() is not None
            for line in file:
                if found := judge(line):
                    tell(found)
            if ended:
                return
            time.sleep(0.2)


def last_line(log: Path) -> str:
    """Of the log's last kilobytes, however long it has become over the runs."""
    with open(log, "rb") as file:
        file.seek(max(0, file.seek(0, 2) - TAIL))
        lines = file.read(TAIL).decode("utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


class OnceAMinute:
    """Lets every text pass once a minute, and no more than so many different ones: who connects without end fills no disk.

    Texts with the same key count as one.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, most: int = MOST) -> None:
        self.clock, self.most = clock, most
        self._passed: dict[str, float] = {}

    def passes(self, text: str, key: str = "") -> bool:
        """Whether the text is told now."""
        now, text = self.clock(), key or text
        self._passed = {other: at for other, at in list(self._passed.items()) if now - at < MINUTE}
        if text in self._passed or len(self._passed) >= self.most:
            return False
        self._passed[text] = now
        return True


class Sentences:
    """Decides what of an engine's log a person is told, and when we give up.

    A client's log holds what the server's side says of it. A server's log also holds what clients write (names, channels):
    nothing that stands there ends a server to which somebody has connected, and before that only what keeps it from beginning.

    Args:
        role: ``server`` or ``client``; a server is not told that connections are closed.
        clock: seconds, monotonic.
    """

    def __init__(self, role: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.client, self.clock = role == "client", clock
        self._told: dict[str, OnceAMinute] = defaultdict(lambda: OnceAMinute(clock))  # by kind
        self._refusals: list[float] = []
        self._connected = False  # nobody has been able to write into this log before

    def contact(self) -> None:
        """An envelope was delivered: whatever was in the way no longer is."""
        self._refusals.clear()

    def take(self, text: str, trouble: Trouble, kind: str = "", who: str = "") -> tuple[bool, bool]:
        """Whether a sentence is told (at most once a minute each), and whether it is the end."""
        if trouble is Trouble.NONE:
            self._connected = True
            return False, False
        now = self.clock()
        if trouble is Trouble.REFUSED and self.client:
            self._refusals.append(now)
        elif self.client:
            self._refusals.clear()  # the server is away, or something else: not a refusal
        lasting = len(self._refusals) >= TIMES and now - self._refusals[0] > GIVE_UP
        final = trouble is Trouble.FINAL and (self.client or (not self._connected and text in (NO_ENGINE, PORT_TAKEN)))
        ends = final or lasting
        if text == CLOSED and not lasting:
            return False, False  # connections also close for other reasons
        return self._told[kind].passes(text, who) or ends, ends
