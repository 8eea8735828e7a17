"""A vertical federation over the network: kits for its parties, the active party's process, the passive parties' processes.

The active party has the server's kit and its own data. Every passive party has a client's kit, which holds the shared
salt and what concerns that party; names of classes are in the active party's kit alone.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from h2tune.config import ConfigError, NetworkConfig
from h2tune.deployment import provision as kits
from h2tune.deployment.farewell import REASON, STAY
from h2tune.deployment.kits import SCHEMA, THEIRS, About, Kit, KitError, write_kit
from h2tune.deployment.process import Engine, Say, connection, take_part, teller
from h2tune.deployment.status import StatusFile, finished
from h2tune.errors import ProtocolError
from h2tune.protocol.codec import Message, Payload, decode, encode
from h2tune.store import ClientStore
from h2tune.tasks.fingerprint import keep_fingerprint
from h2tune.transport import access
from h2tune.transport.access import AccessList
from h2tune.transport.network import Network
from h2tune.transport.nvflare.flare import Flare
from h2tune.utils.files import write_atomic
from h2tune.version import __version__
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


@dataclass(frozen=True)
class _Name:
    name: str


@dataclass(frozen=True)
class _Roster:
    """What provisioning needs to know of a federation."""

    name: str
    network: NetworkConfig
    clients: list[_Name]


def is_vertical_kit(folder: str | Path) -> bool:
    """Whether a kit belongs to a vertical federation."""
    path = Path(folder) / "federation.yaml"
    return path.is_file() and "parties" in (yaml.safe_load(path.read_text(encoding="utf-8")) or {})


def provision_vertical(
    config: VerticalConfig, out: str | Path, renew: Iterable[str] = (), days: int = 360
) -> list[Path]:
    """Make the kits that are not there yet; returns their folders. See `h2tune.deployment.provision.provision`.

    Raises:
        KitError: with what to do about it.
    """
    config = prepare(config)
    out, roster = Path(out), _Roster(config.name, config.network, [_Name(p.name) for p in config.passive])
    participants = ["server", *(client.name for client in roster.clients)]
    if {"server", "authority"} & set(participants[1:]):
        raise KitError("No party can be named `server` or `authority`: the coordinator's folders have these names.")
    kits.check_names(renew, participants)
    authority: Any = out / "authority"
    federation = kits._identity(authority, roster)  # type: ignore[arg-type]
    wanted = [name for name in participants if name in set(renew) or not (out / name).exists()]
    if not wanted:
        return []
    salt = _salt(authority, config)
    made = kits._certificates(roster, authority, days)  # type: ignore[arg-type]
    for name in wanted:
        role = "server" if name == "server" else "client"
        engine = out / name / "engine"
        refused = access.read_revoked(engine)
        shutil.rmtree(engine, ignore_errors=True)
        (out / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.copytree(made / kits._engine_name(roster, name), engine)  # type: ignore[arg-type]
        for script in (*engine.glob("startup/*.sh"), engine / "readme.txt"):
            script.unlink(missing_ok=True)  # the engine is started by h2tune alone
        (engine / "startup" / f"{role}.key").chmod(0o600)
        if refused:
            access.write_revoked(engine, refused)
        kits._settle(engine, role, roster)  # type: ignore[arg-type]
        about = About(SCHEMA, role, name, federation, config.network.host, config.network.port, __version__)
        write_kit(out / name, about, concerns(config, name, salt))
    kits._forget_private_keys(authority / kits.experiment_slug(roster))  # type: ignore[arg-type]
    kits.record_certificates(out, wanted, renew)
    return [out / name for name in wanted]


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
    """
    plain = yaml.safe_load((kit.folder / "federation.yaml").read_text(encoding="utf-8"))
    name = plain["label"]["party"] if kit.about.role == "server" else kit.about.name
    mine = next(party for party in plain["parties"] if party["name"] == name)
    mine |= {key: value for key, value in own.items() if key != "name"}
    if mine.get("train") == THEIRS:
        raise ConfigError(["--train is missing: it is not part of the kit"])
    mine["test"] = None if mine.get("test") == THEIRS else mine.get("test")
    return parse_vertical(plain), name


class VerticalParticipant:
    """Answers the active party's messages; builds the party anew whenever it joins or comes back."""

    interrupt: Callable[[], None]  # exchanges are short: nobody calls it

    def __init__(self, kit: Kit, own: dict[str, Any]) -> None:
        self.config, self.name = config_of(kit, own)
        party = next(p for p in self.config.passive if p.name == self.name)
        self.store, self.doing = ClientStore(kit.folder / "state"), dict[str, Any]()
        # Every mistake shows before we connect.
        cure = f"begin anew: move {self.store.folder} away and start the party again"
        check_data(self.store.folder, self.config, names=[self.name], cure=cure)
        self.data = load_party(self.config, party, salt_of(self.config, self.name))
        self.passive = self._build()

    def _build(self) -> Passive:
        return Passive(self.config, self.data, salt_of(self.config, self.name), self.store)

    def answer(self, data: bytes) -> bytes:
        """The answer to one message; a refused message is answered with the reason."""
        message = Message("unknown", "", -1, "", "")
        try:
            message = decode(data, limit=self.config.network.largest)
            self._check_run(message)
            if message.kind in ("join", "resume") and self.passive.sizes.classes >= 0:
                self.passive = self._build()
            self.doing = {"round": message.round, "phase": message.kind}
            return self.passive.handle(data)
        except (ProtocolError, AlignmentError) as error:  # a full disk or a bug ends the process instead
            reason = str(error)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            logging.getLogger(__name__).exception("a message of the server could not be answered")
            # Only what kind of error: its text may hold a path or a row of this machine.
            reason = f"a message of kind {message.kind[:20]!r} could not be answered ({type(error).__name__})"
        finally:
            self.doing = {}
        failure = Payload(meta={"reason": reason})
        return encode(message.reply("failure", failure, self.name, self.passive.process))

    def _check_run(self, message: Message) -> None:
        """Private state belongs to one run; the first join decides which."""
        known = self.store.read_json("run.json")
        if known is None and message.kind == "join":
            self.store.write_json("run.json", {"run": message.run})
            keep_fingerprint(self.store.folder, data_fingerprint(self.config, names=[self.name]))
        elif known is not None and known["run"] != message.run:
            raise ProtocolError(
                f"this party's state belongs to run {known['run'][:8]}, the server is at run {message.run[:8]};"
                " to begin anew, move the kit's folder `state` away and start the party again"
            )


def attend_vertical(kit: Kit, own: dict[str, Any], say: Say = lambda text: None, engine: Engine = Flare) -> str:
    """Take part as a passive party until the federation is over; returns the server's last words.

    Raises:
        KitError, ConfigError, TableError, ChannelError, DismissedError
    """
    if words := finished(kit):
        return words
    kit.check_certificate()
    status, own = StatusFile(kit), kit.own() | own
    participant = VerticalParticipant(kit, own)
    for text in about_columns(participant.name, participant.data):
        say(f"warning: {text}")
    kit.keep_own(own)
    return take_part(kit, status, participant, engine, say, participant.config.network)


# The story of a vertical server from kit to metrics, in one read.
def serve_vertical(
    kit: Kit, own: dict[str, Any], watcher: Watcher | None = None, engine: Engine = Flare,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:  # fmt: skip
    """Run the kit's federation as its active party, from its last committed round; returns its metrics.

    Raises:
        KitError, ConfigError, TableError, AlignmentError, ChannelError
    """
    kit.check_certificate()
    own = kit.own() | own
    config, name = config_of(kit, own)
    store, status, begin = VerticalStore(kit.folder / "run"), StatusFile(kit), time.perf_counter()
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

    tell = teller(store, watcher)
    if not opened:
        warn(config, {name: data}, store, watcher)
    with connection(kit, status, engine, lambda text: tell("engine", text)) as channel:
        names = [party.name for party in config.passive]
        network = Network(channel, names, kit.about.federation, config.network, tell, clock, AccessList(kit.engine))
        exchange = Exchange(identity, config.method.name, names, network, store, config.network.largest)
        federation = Federation(config, data, exchange, store)
        with status.kept(lambda: _standing(federation, network)):
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
