"""Handshakes that failed at the server's port, one line each in the engine's log: asyncio says nothing about them.

Anybody may bring them about, so each address and reason has one line in a minute, and there are few lines in all.
"""

from __future__ import annotations

from asyncio import sslproto
from contextlib import suppress
from typing import Any

from h2tune.transport.nvflare.engine_log import OnceAMinute

LINES = 30  # in a minute, of all addresses together
# What OpenSSL says, and what it means for the one who tried to connect.
REASONS = [
    ("certificate has expired", "its certificate has expired"),
    ("certificate is not yet valid", "its certificate is not valid yet"),
    ("ALERT_CERTIFICATE_EXPIRED", "it holds this server's certificate to be expired: is its clock right?"),
    ("ALERT_UNKNOWN_CA", "its kit is of another authority than this server's"),
    ("CERTIFICATE_VERIFY_FAILED", "its certificate is not of this federation's authority"),
    ("PEER_DID_NOT_RETURN_A_CERTIFICATE", "it has no certificate"),
    ("HTTP_REQUEST", "it does not use encryption"),
    ("WRONG_VERSION_NUMBER", "it does not use encryption"),
]
# A client that refuses our certificate mostly just closes the connection.
LEFT = "it left before the handshake was over; its kit may be of another authority"


def reason_of(error: BaseException) -> str:
    """Why a handshake failed, in words."""
    said = str(error).lower().replace(" ", "_")
    return next((words for mark, words in REASONS if mark.lower().replace(" ", "_") in said), LEFT)


def watch() -> None:
    """From now on every TLS handshake that fails in this process is told, with the address."""
    complete, told = sslproto.SSLProtocol._on_handshake_complete, OnceAMinute(most=LINES)

    def observed(protocol: Any, error: BaseException | None) -> None:
        if error is not None and protocol._server_side:
            peer = protocol._transport.get_extra_info("peername") if protocol._transport else None
            host = peer[0] if peer else "an unknown address"
            text = f"h2tune: a connection from {host} was refused: {reason_of(error)}"
            if told.passes(text):
                with suppress(OSError, ValueError):  # the disk is full, say: the handshake ends all the same
                    print(text, flush=True)
        complete(protocol, error)

    setattr(sslproto.SSLProtocol, "_on_handshake_complete", observed)  # noqa: B010 - asyncio offers no other place
