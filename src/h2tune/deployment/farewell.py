"""The end of a federation: every client is told, also one that was away, as long as the server is there to tell it.

RUN/aware.json names the clients that know. A server that is started again on a finished run tells the others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from h2tune.session import Status
from h2tune.store import RunStore
from h2tune.transport.network import Network
from h2tune.utils.files import write_atomic

FILE = "aware.json"
STAY = 60.0  # seconds for which the server stays at the end, if a client was away
REASON = "the federation has finished"


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


def _is_out(client: Mapping[str, Any]) -> bool:
    return str(client["status"]).startswith(Status.EXCLUDED)


def _keep(store: RunStore, names: set[str]) -> None:
    write_atomic(store.folder / FILE, json.dumps(sorted(names), indent=1).encode())
