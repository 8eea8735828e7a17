"""What every error that a person can do something about has in common."""

from __future__ import annotations


class H2TuneError(Exception):
    """The base of all expected errors: a mistake in a file, a folder that does not fit, a client that is gone.

    Its text says what is wrong and what to do. The command line prints it without a traceback. Each error also derives
    from a built-in one (`ValueError`, `RuntimeError`, ...), which callers may catch instead.
    """


class ProtocolError(H2TuneError, ValueError):
    """A message was refused; the text says why."""


class MethodError(H2TuneError, ValueError):
    """A method cannot run on this federation; the text says which clients and why."""


class ClientError(H2TuneError, RuntimeError):
    """A client cannot do what it is asked for; the server is told the text, so it holds nothing private."""


class QuorumError(H2TuneError, RuntimeError):
    """Too few clients answered for a round to be committed."""
