"""What an engine writes into its log, in words for the person at the machine.

The engine tells reasons only there. Lines that match a known trouble become one sentence each; the rest stays in the log.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

MINUTE = 60.0  # seconds
# pattern, sentence, whether it is of no use to try again
TROUBLES: list[tuple[str, str, bool]] = [
    (r"^h2tune: (?P<text>.+)", "{text}", False),
    (r"Client '[^']*' is disabled", "the coordinator has revoked this participant", True),
    (r"Reject disabled client registration: (?P<who>\S+)", "{who} was refused: it is revoked", False),
    (r"authenticated as '(?P<who>[^']+)' but claimed endpoint '(?P<other>[^']+)'", "{who} tried to connect as {other} and"
     " was refused", False),
    (r"expected server identity is", "another server answers under this address than the one of this kit", True),
    (r"certificate has expired|CERTIFICATE_EXPIRED", "a certificate has expired", False),
    (r"certificate is not yet valid", "a certificate is not valid yet: is the clock of this machine right?", False),
    (r"CERTIFICATE_VERIFY_FAILED|certificate verify failed|UNKNOWN_CA|unknown ca", "a connection was refused: the"
     " other side's certificate is not of this federation's authority", False),
    (r"PEER_DID_NOT_RETURN_A_CERTIFICATE|peer did not return a certificate", "a connection without a certificate was"
     " refused", False),
    (r"WRONG_VERSION_NUMBER|HTTP_REQUEST|wrong version number|http request", "a connection without encryption was"
     " refused", False),
    (r"[Aa]ddress already in use", "the port is taken: stop what listens on it, or provision with another `network.port`",
     True),
    (r"Name or service not known|nodename nor servname|Temporary failure in name resolution", "the server's name cannot"
     " be resolved; trying again", False),
    (r"Connection refused|Connect call failed|TARGET_UNREACHABLE|target_unreachable", "the server cannot be reached;"
     " trying again", False),
    (r"ModuleNotFoundError: No module named 'nvflare'", "NVFlare is not installed: pip install 'h2tune[network]'", True),
]  # fmt: skip


def judge(line: str) -> tuple[str, bool] | None:
    """The sentence for a line of the log, and whether it is final; None for ordinary lines."""
    for pattern, sentence, final in TROUBLES:
        if match := re.search(pattern, line):
            return sentence.format(**match.groupdict()), final
    return None


def follow(log: Path, place: int, process: subprocess.Popen[bytes], tell: Callable[[str, bool], None]) -> None:
    """Read the log from ``place`` on for as long as the process runs; each sentence is told at most once a minute."""
    told: dict[str, float] = {}
    with open(log, encoding="utf-8", errors="replace") as file:
        file.seek(place)
        while True:
            ended = process.poll() is not None
            for line in file:
                if (found := judge(line)) and time.monotonic() - told.get(found[0], -MINUTE) >= MINUTE:
                    told = {text: at for text, at in told.items() if time.monotonic() - at < MINUTE}
                    told[found[0]] = time.monotonic()
                    tell(*found)
            if ended:
                return
            time.sleep(0.2)
