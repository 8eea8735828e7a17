"""The server's process: rounds over the network, from a kit, resumable by the same command."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from h2tune.caveats import about_sharing
from h2tune.config import Experiment
from h2tune.deployment.farewell import STAY, errors_told, open_farewell, say_farewell, unaware
from h2tune.deployment.kits import PUBLIC, Kit
from h2tune.deployment.process import Engine, connection, teller
from h2tune.deployment.status import StatusFile
from h2tune.federation import WatchedStore, Watcher, collect
from h2tune.server import Server
from h2tune.session import Status
from h2tune.store import RunStore, differences
from h2tune.transport.access import PUT_OUT, AccessList
from h2tune.transport.network import Network
from h2tune.transport.nvflare.flare import Flare


def serve(
    kit: Kit,
    watcher: Watcher | None = None,
    engine: Engine = Flare,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Run the kit's federation to its end, from its last committed round; returns its metrics.

    Args:
        engine: makes the channel.
        clock: seconds, for deadlines.

    Raises:
        KitError, StoreError, ConfigError, ChannelError, QuorumError
    """
    kit.check_certificate()
    experiment = kit.experiment()
    with StatusFile(kit) as status:
        return _serve(kit, experiment, status, watcher, engine, clock)


def _serve(
    kit: Kit, experiment: Experiment, status: StatusFile, watcher: Watcher | None, engine: Engine,
    clock: Callable[[], float],
) -> dict[str, Any]:  # fmt: skip
    begin = time.perf_counter()
    store = WatchedStore(kit.folder / "run", watcher)
    identity = store.open(experiment, moved(store, experiment))[0] if store.exists else store.create(experiment)
    tell, metrics = teller(store, watcher), store.metrics()
    if metrics is not None and not unaware(store, metrics["clients"]):
        return metrics

    access = AccessList(kit.engine)
    with connection(kit, status, engine, lambda text: tell("engine", text)) as channel:
        names, about = [client.name for client in experiment.clients], kit.about
        network = Network(channel, names, about.federation, experiment.network, tell, clock, access)
        if metrics is not None:  # only clients that were away at the end have something to hear
            done, standings = metrics["rounds"], {n: str(c["status"]) for n, c in metrics["clients"].items()}
            with status.kept(lambda: _standing(network, done, experiment.rounds, standings)):
                say_farewell(network, store, metrics["clients"], experiment.network.gather)
            return metrics
        with errors_told(network, store) as ending:
            server = Server(experiment, identity, names, network, store)
            ending.final, ending.out = server.fails_again, server.excluded
            with status.kept(partial(_server_standing, network, server, experiment.rounds)):
                _run(experiment, server, store, watcher)
                metrics = collect(experiment, server, store, time.perf_counter() - begin)
                open_farewell(store)
                store.write_metrics(metrics)
                store.event("run_finished", "finished")
                say_farewell(network, store, metrics["clients"], STAY)
    return metrics


def moved(store: RunStore, experiment: Experiment) -> tuple[str, ...]:
    """Keys of the run's settings that differ only because the kit, with its public files, lies in another folder now."""
    old, new = (each.model_dump(mode="json") for each in (store.open()[1], experiment))
    return tuple(set(differences(old, new)) - set(differences(_in_the_kit(old), _in_the_kit(new))))


def _in_the_kit(value: Any) -> Any:
    """Paths of public files as seen from the kit's folder."""
    if isinstance(value, dict):
        return {key: _in_the_kit(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_in_the_kit(inner) for inner in value]
    public = isinstance(value, str) and Path(value).parent.name == PUBLIC
    return f"{PUBLIC}/{Path(value).name}" if public else value


def _run(experiment: Experiment, server: Server, store: RunStore, watcher: Watcher | None) -> None:
    last = store.committed()
    text = f"{server.method_name}, {len(server.members)} clients, {experiment.rounds} rounds"
    store.event("run_started", text, resumed=last is not None)
    if unshared := about_sharing(experiment):
        store.event("warning", unshared)
    if watcher:
        rows = [{"name": c.name, "model": "-", "task": "-"} for c in experiment.clients]
        watcher.start(rows, experiment.rounds)
        watcher.message(f"method {server.method_name}; waiting for {', '.join(server.members)}")
    if last:
        server.resume()
    server.run()


def _server_standing(network: Network, server: Server, rounds: int) -> dict[str, Any]:
    standings = {name: member.standing for name, member in server.members.items()}
    return _standing(network, server.round, rounds, standings)


def _standing(network: Network, done: int, rounds: int, standings: Mapping[str, str]) -> dict[str, Any]:
    """How things stand, for status.json."""
    now, clients, out = network.clock(), {}, network.access.revoked if network.access else ()
    for name, standing in standings.items():
        presence = network.present.get(name)
        heard = None if presence is None else round(now - presence.heard, 1)
        doing = presence.doing if presence and presence.busy else {}
        standing = f"{Status.EXCLUDED}: {PUT_OUT}" if name in out else standing
        clients[name] = {"status": standing, "heard_seconds_ago": heard, "doing": doing}
    return {"round": done, "rounds": rounds, "clients": clients, "listens": network.channel.ports}
