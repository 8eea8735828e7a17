"""A vertical federation over the network: kits for its parties, the active party's process, the passive parties' processes.

The active party has the server's kit and its own data. Every passive party has a client's kit, which holds the shared
salt and what concerns that party; names of classes are in the active party's kit alone.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from h2tune.config import ConfigError
from h2tune.deployment.answering import Answering
from h2tune.deployment.farewell import REASON, STAY, errors_told
from h2tune.deployment.kits import AGAIN, PUBLIC, THEIRS, Kit, KitError
from h2tune.deployment.outdated import outdated
from h2tune.deployment.process import Engine, Say, connection, take_part, teller
from h2tune.deployment.provision import Roster, carrier, make_kits
from h2tune.deployment.status import StatusFile, finished
from h2tune.errors import ProtocolError
from h2tune.protocol.codec import Message
from h2tune.store import ClientStore
from h2tune.tasks.fingerprint import keep_fingerprint
from h2tune.transport.access import AccessList
from h2tune.transport.network import Network
from h2tune.transport.nvflare.flare import Flare
from h2tune.utils.files import write_atomic
from h2tune.vertical.align import AlignmentError
from h2tune.vertical.attention import about_columns
from h2tune.vertical.config import VerticalConfig, parse_vertical
from h2tune.vertical.exchange import Exchange
from h2tune.vertical.federation import Federation, Watcher, alone, check_vectors, collect, salt_of, warn
from h2tune.vertical.fingerprint import check_data, data_fingerprint
from h2tune.vertical.methods import prepare
from h2tune.vertical.parties import load_party
from h2tune.vertical.passive import Passive
from h2tune.vertical.run_store import VerticalStore, keep_top

OWN = ("train", "test")  # a party's own, never in a kit


def provision_vertical(
    config: VerticalConfig, out: str | Path, renew: Iterable[str] = (), days: int = 360
) -> list[Path]:
    """Make the kits that are not there yet; returns their folders. See `h2tune.deployment.provision.provision`.

    Raises:
        KitError: with what to do about it.
    """
    config, out = prepare(config), Path(out)
    roster = Roster(config.name, config.network, [party.name for party in config.passive], "party")

    def shared(name: str, folder: Path) -> dict[str, Any]:
        plain = concerns(config, name, _salt(out / "authority", config))
        plain["label"]["vectors"] = carrier(folder / PUBLIC)(plain["label"]["vectors"])
        return plain

    return make_kits(roster, out, shared, renew, days)


def outdated_parties(config: VerticalConfig, out: Path) -> str:
    """What is to be said of kits that the config of today would make otherwise; see `h2tune.deployment.outdated`."""
    config = prepare(config)
    salt = _salt(out / "authority", config)
    names = ["server", *(party.name for party in config.passive)]
    return outdated(out, names, lambda name: concerns(config, name, salt))


def _salt(authority: Path, config: VerticalConfig) -> str:
    """The parties' shared secret; made with the authority, and kept."""
    path = authority / "salt"
    if not path.is_file():
        write_atomic(path, (config.align.salt or secrets.token_hex(16)).encode())
        path.chmod(0o600)
    return path.read_text(encoding="utf-8")


def concerns(config: VerticalConfig, name: str, salt: str) -> dict[str, Any]:
    """The config without data; for a passive party also without the others' columns and the names of classes."""
    plain = config.model_dump(mode="json")
    own = config.label.party if name == "server" else name
    plain["parties"] = [
        party | dict.fromkeys(OWN, THEIRS) if party["name"] == own else {"name": party["name"], "train": THEIRS}
        for party in plain["parties"]
    ]
    plain["align"]["salt"] = salt
    if name != "server":
        plain["label"] |= {"classes": None, "vectors": None}
        plain["method"]["unseen"] = "named" if config.method.unseen == "described" else config.method.unseen
    return plain


def config_of(kit: Kit, own: dict[str, Any]) -> tuple[VerticalConfig, str]:
    """A kit's config with the party's own values in their places, and the party's name.

    Raises:
        ConfigError: with every mistake at once.
        KitError: federation.yaml is damaged.
    """
    plain = kit.mapping("federation.yaml")
    try:
        name = plain["label"]["party"] if kit.about.role == "server" else kit.about.name
        (mine,) = (party for party in plain["parties"] if party["name"] == name)
        plain["label"]["vectors"] = kit.place(plain["label"].get("vectors"))
    except (AttributeError, LookupError, TypeError, ValueError):
        raise KitError(AGAIN.format(kit.folder / "federation.yaml")) from None
    mine |= {key: value for key, value in own.items() if key != "name"}
    if mine.get("train") == THEIRS:
        raise ConfigError(["--train is missing: it is not part of the kit"])
    mine["test"] = None if mine.get("test") == THEIRS else mine.get("test")
    return parse_vertical(plain), name


class VerticalParticipant(Answering):
    """Answers the active party's messages; builds the party anew whenever it joins or comes back."""

    word = "party"
    refused = (ProtocolError, AlignmentError)
    interrupt: Callable[[], None]  # exchanges are short: nobody calls it

    def __init__(self, kit: Kit, own: dict[str, Any]) -> None:
        self.config, self.name = config_of(kit, own)
        self.limit = self.config.network.largest
        party = next(p for p in self.config.passive if p.name == self.name)
        self.store, self.doing = ClientStore(kit.folder / "state"), dict[str, Any]()
        # Every mistake shows before we connect.
        cure = f"begin anew: move {self.store.folder} away and start the party again"
        check_data(self.store.folder, self.config, names=[self.name], cure=cure)
        self.data = load_party(self.config, party, salt_of(self.config, self.name))
        self._build()

    def _build(self) -> None:
        self.passive = Passive(self.config, self.data, salt_of(self.config, self.name), self.store)
        self.process = self.passive.process

    def handle(self, message: Message, data: bytes) -> bytes:
        if message.kind in ("join", "rejoin") and self.passive.sizes.classes >= 0:
            self._build()
        self.doing = {"round": message.round, "phase": message.kind}
        return self.passive.handle(data)

    def fingerprint(self) -> dict[str, str]:
        return data_fingerprint(self.config, names=[self.name])


def attend_vertical(kit: Kit, own: dict[str, Any], say: Say = lambda text: None, engine: Engine = Flare) -> str:
    """Take part as a passive party until the federation is over; returns the server's last words.

    Raises:
        KitError, StoreError, ConfigError, TableError, ChannelError, DismissedError
    """
    if words := finished(kit):
        return words
    kit.check_certificate()
    own = kit.own() | own
    with StatusFile(kit) as status:
        participant = VerticalParticipant(kit, own)
        for text in about_columns(participant.name, participant.data):
            say(f"warning: {text}")
        kit.keep_own(own)
        return take_part(kit, status, participant, engine, say, participant.config.network)


def serve_vertical(
    kit: Kit, own: dict[str, Any], watcher: Watcher | None = None, engine: Engine = Flare,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:  # fmt: skip
    """Run the kit's federation as its active party, from its last committed round; returns its metrics.

    Raises:
        KitError, StoreError, ConfigError, TableError, AlignmentError, ChannelError
    """
    kit.check_certificate()
    own = kit.own() | own
    config, name = config_of(kit, own)
    with StatusFile(kit) as status:
        return _serve(kit, own, config, name, status, watcher, engine, clock)


# The story of a vertical server from kit to metrics, in one read.
def _serve(
    kit: Kit, own: dict[str, Any], config: VerticalConfig, name: str, status: StatusFile, watcher: Watcher | None,
    engine: Engine, clock: Callable[[], float],
) -> dict[str, Any]:  # fmt: skip
    store, begin = VerticalStore(kit.folder / "run"), time.perf_counter()
    opened = store.exists and store.committed() is not None
    if opened:
        cure = f"begin anew: move {store.folder} away and start the server again"
        check_data(store.folder, config, names=[name], cure=cure)
    data = load_party(config, config.active, salt_of(config, name))
    check_vectors(config, data)
    kit.keep_own(own)
    identity = store.open_vertical(config) if opened else store.create_for(config, secrets.token_hex(16), resume=True)
    if not opened:
        keep_fingerprint(store.folder, data_fingerprint(config, names=[name]))

    tell, access = teller(store, watcher), AccessList(kit.engine)
    if not opened:
        warn(config, {name: data}, store, watcher, config)
    with connection(kit, status, engine, lambda text: tell("engine", text)) as channel:
        names = [party.name for party in config.passive]
        network = Network(channel, names, kit.about.federation, config.network, tell, clock, access)
        exchange = Exchange(identity, config.method.name, names, network, store, config.network.largest)
        federation = Federation(config, data, exchange, store)
        with status.kept(lambda: _standing(federation, network)), errors_told(network, store) as ending:
            ending.final, ending.out = lambda: False, lambda: exchange.excluded
            if not network.wait(names, len(names), first=True) and not opened:
                raise AlignmentError(f"Not all of {', '.join(names)} joined within {config.network.gather:g} s.")
            joined = time.perf_counter() - begin
            if opened:
                federation.resume()
            told = (lambda record: watcher.round_done(record, config.rounds)) if watcher else (lambda record: None)
            active = federation.run(told)
            metrics = collect(config, active, time.perf_counter() - begin) | {"seconds_to_join": joined}
            keep_top(store, active)
            metrics["alone"] = alone(config, data)  # when nothing more is asked: it takes as long as it takes
            store.write_metrics(metrics)
            store.event("run_finished", "finished")
            out = exchange.excluded
            network.stop(REASON, True, set(names) - out.keys(), STAY, out)
    return metrics


def _standing(federation: Federation, network: Network) -> dict[str, Any]:
    """How things stand, for status.json."""
    clients = {}
    for party in federation.config.passive:
        presence, here = network.present.get(party.name), party.name in federation.exchange.here
        heard = None if presence is None else round(network.clock() - presence.heard, 1)
        reason = federation.exchange.excluded.get(party.name)
        standing = f"stopped: {reason}" if reason else "ok" if here else "away"
        doing = presence.doing if presence and presence.busy else {}
        clients[party.name] = {"status": standing, "heard_seconds_ago": heard, "doing": doing}
    done = federation.active.round if federation.active else 0
    return {"round": done, "rounds": federation.config.rounds, "clients": clients, "listens": network.channel.ports}
