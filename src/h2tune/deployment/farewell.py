"""The end of a federation: every client is told, also one that was away, as long as the server is there to tell it.

The same where it ends with an error: clients need not wait for a server that cannot go on, or they learn why it is away.
RUN/aware.json names the clients that know. A server that is started again on a finished run tells the others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from h2tune.errors import H2TuneError, MethodError, QuorumError
from h2tune.session import EventLog, Status
from h2tune.store import RunStore
from h2tune.transport.channel import ChannelError
from h2tune.transport.network import Network
from h2tune.utils.files import write_atomic

FILE = "aware.json"
STAY = 60.0  # seconds for which the server stays at the end, if a client was away
REASON = "the federation has finished"
SOON = 10.0  # seconds for which a server that ends before it heard anybody waits for clients that are about to connect
CANNOT = "The server has ended and cannot go on: {}"
# What a client is told: the text itself may hold other clients' names, what they said, or paths of the server.
MISFIT = "the method does not fit the clients' models or the settings; the coordinator has the reason"
FEW, OTHER = "too few clients take part", "an error whose text its operator has"


def open_farewell(store: RunStore) -> None:
    """Before the figures are written, which end the run: from now on nobody knows it yet."""
    _keep(store, set())


def unaware(store: RunStore, clients: Mapping[str, Any]) -> set[str]:
    """Clients of a finished run that take part and were not told; ``clients`` as in its metrics."""
    path = store.folder / FILE
    if not path.is_file():  # a run of an earlier version
        return set()
    aware = set(json.loads(path.read_text(encoding="utf-8")))
    return {name for name, client in clients.items() if not _is_out(client)} - aware


def say_farewell(network: Network, store: RunStore, clients: Mapping[str, Any], stay: float) -> None:
    """Tell all clients that are here; wait up to ``stay`` seconds for the others. Ctrl-C ends the waiting."""
    before = {name for name, client in clients.items() if not _is_out(client)} - unaware(store, clients)
    out = {name: client["status"] for name, client in clients.items() if _is_out(client)}
    try:
        known = before | network.stop(REASON, True, out=out)
        _keep(store, known)
        if left := unaware(store, clients):
            names = ", ".join(sorted(left))
            network.tell("waiting", f"{REASON}; {names} may not know it: waiting up to {stay:g} s to say so")
            _keep(store, known | network.stop(REASON, True, left, stay, out))
    except KeyboardInterrupt:  # everything is written: there is nothing to go on with
        return


@dataclass
class Ending:
    """What matters if an error ends the server; filled in as the server gets on.

    Attributes:
        final: whether a MethodError would come again with every start. Before the server stands, it is of the settings alone.
        out: clients that take no part any more, and why.
    """

    final: Callable[[], bool] = lambda: True
    out: Callable[[], Mapping[str, str]] = dict


@contextmanager
def errors_told(network: Network, log: EventLog) -> Iterator[Ending]:
    """An error that ends the server stands among the events, and the clients that are here are told.

    After a MethodError with which it would end every time, clients end, too. After any other error the server may be
    started again, and they wait for it.
    """
    ending = Ending()
    try:
        yield ending
    except Exception as error:
        # Nobody has checked the text of an error that nobody expected: its kind must do.
        text = str(error) if isinstance(error, H2TuneError) else type(error).__name__
        with suppress(Exception):  # the error may be that the disk is full
            log.event("run_stopped", f"the server has ended: {text}")
        if not isinstance(error, ChannelError):  # then nobody can be told
            with suppress(Exception, KeyboardInterrupt):  # whatever comes now, the first error is the reason
                _tell_error(network, error, ending)
        raise


def _tell_error(network: Network, error: Exception, ending: Ending) -> None:
    out, misfit = ending.out(), isinstance(error, MethodError)
    expected = () if network.present else network.names
    if misfit and ending.final():
        network.stop(CANNOT.format(MISFIT), finished=False, expected=expected, stay=SOON, out=out)
    else:
        reason = MISFIT if misfit else FEW if isinstance(error, QuorumError) else OTHER
        network.stop(reason, finished=False, expected=expected, stay=SOON, out=out, pause=True)


def _is_out(client: Mapping[str, Any]) -> bool:
    return str(client["status"]).startswith(Status.EXCLUDED)


def _keep(store: RunStore, names: set[str]) -> None:
    write_atomic(store.folder / FILE, json.dumps(sorted(names), indent=1).encode())
