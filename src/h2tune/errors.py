"""What all expected errors have in common: the command line shows their text and no traceback."""

from __future__ import annotations


class H2TuneError(Exception):
    """Something that a user, a peer or a file did wrong; the text says what, and what to do."""


class ProtocolError(H2TuneError, ValueError):
    """A message was refused; the text says why."""


class MethodError(H2TuneError, ValueError):
    """A method cannot run on this federation; the text says which clients and why."""


class ClientError(H2TuneError, RuntimeError):
    """A client cannot do what it is asked for; the server is told the text, so it holds nothing private."""


class QuorumError(H2TuneError, RuntimeError):
    """Too few clients answered for a round to be committed."""
