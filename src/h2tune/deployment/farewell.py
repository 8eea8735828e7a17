"""The end of a federation: every client is told, also one that was away, as long as the server is there to tell it.

The same where it ends with an error: clients need not wait for a server that cannot go on, or they learn why it is away.
RUN/aware.json names the clients that know. A server that is started again on a finished run tells the others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from h2tune.errors import H2TuneError, MethodError, QuorumError
from h2tune.session import EventLog, Status
from h2tune.store import RunStore
from h2tune.transport.channel import ChannelError
from h2tune.transport.network import Network
from h2tune.utils.files import StoreError, write_atomic

FILE = "aware.json"
STAY = 60.0  # seconds for which the server stays at the end, if a client was away
REASON = "the federation has finished"
CANNOT = "The server has ended and cannot go on: {}"
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


@contextmanager
def errors_told(network: Network, log: EventLog) -> Iterator[None]:
    """An error that ends the server stands among the events, and the clients that are here are told.

    After a MethodError, with which it would end every time, clients end, too, with the reason. After any other error the
    server may be started again, and they wait for it.
    """
    try:
        yield
    except H2TuneError as error:
        with suppress(StoreError):  # the error may be that the disk is full
            log.event("run_stopped", f"the server has ended: {error}")
        if not isinstance(error, ChannelError):  # then nobody can be told
            with suppress(H2TuneError, KeyboardInterrupt):  # whatever comes now, the first error is the reason
                _tell_error(network, error)
        raise


def _tell_error(network: Network, error: H2TuneError) -> None:
    if isinstance(error, MethodError):
        network.stop(CANNOT.format(error), finished=False)
    else:  # its text may hold what another client said, or paths of the server
        network.stop(FEW if isinstance(error, QuorumError) else OTHER, finished=False, pause=True)


def _is_out(client: Mapping[str, Any]) -> bool:
    return str(client["status"]).startswith(Status.EXCLUDED)


def _keep(store: RunStore, names: set[str]) -> None:
    write_atomic(store.folder / FILE, json.dumps(sorted(names), indent=1).encode())
