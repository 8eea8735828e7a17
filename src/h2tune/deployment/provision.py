"""Kits for all participants of a federation: certificates, keys, addresses, and the part of the config that concerns each.

OUT/authority/     the authority's key and who has been given a kit; stays with the coordinator, best offline
OUT/server/        the server's kit
OUT/NAME/          a client's kit

Certificates are made by NVFlare's provisioning. Private keys of participants are in their kits only.
"""

from __future__ import annotations

import difflib
import json
import re
import shutil
import uuid
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from h2tune.config import Experiment, NetworkConfig
from h2tune.deployment.kits import NO_NETWORK, OWN, PUBLIC, SCHEMA, THEIRS, About, KitError, write_kit
from h2tune.transport import access
from h2tune.utils.files import write_atomic
from h2tune.version import __version__

RELAY = "h2tune.transport.nvflare.relay.Relay"
ORG = "h2tune"  # NVFlare wants one; authority comes from certificates alone
# Bytes under way before the other side has confirmed them. The engine's own 64 MiB fill a slow line for minutes, and signs
# of life wait behind them.
WINDOW = {"streaming_window_size": 4 << 20, "streaming_ack_interval": 1 << 20}
_HOST = re.compile(r"{0}(\.{0})*".format("[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?"))
LONGEST_HOST = 64  # characters; a certificate holds no longer name
NO_FEDERATION = "{} holds no kits of a federation: is --out the folder in which they were made?"
Shared = Callable[[str, Path], dict[str, Any]]


@dataclass(frozen=True)
class Roster:
    """What provisioning needs to know of a federation; ``word`` is what it calls a participant."""

    name: str
    network: NetworkConfig
    clients: list[str]
    word: str = "client"


def provision(experiment: Experiment, out: str | Path, renew: Iterable[str] = (), days: int = 360) -> list[Path]:
    """Make the kits that are not there yet; returns their folders.

    Args:
        experiment: the federation; clients' models and data in it are left out of the kits.
        out: where kits are written. An authority that is there already is used again, so that later kits fit.
        renew: participants that get a new certificate (a kit in place of the one that is there). Their old ones are
            refused from now on; who was revoked is admitted again.
        days: validity of the authority, when it is made; certificates are valid for at most 360 days.

    Raises:
        KitError: with what to do about it.
    """
    roster = Roster(experiment.name, experiment.network, [client.name for client in experiment.clients])

    def shared(name: str, folder: Path) -> dict[str, Any]:
        return with_public_files(concerns(experiment, name), folder / PUBLIC)

    return make_kits(roster, Path(out), shared, renew, days)


def make_kits(roster: Roster, out: Path, shared: Shared, renew: Iterable[str], days: int) -> list[Path]:
    """Make the kits that are not there yet, of any kind of federation; the rest as in `provision`.

    Args:
        shared: makes what federation.yaml holds in the kit of a participant, given its name and the kit's folder.

    Raises:
        KitError: with what to do about it.
    """
    authority, participants = out / "authority", ["server", *roster.clients]
    if {"server", "authority"} & set(roster.clients):
        raise KitError(f"No {roster.word} can be named `server` or `authority`: the coordinator's folders have these"
                       " names.")  # fmt: skip
    _check_for_engine(roster)
    check_names(renew, participants)
    if renew and not _holds_federation(out):
        raise KitError(NO_FEDERATION.format(out))
    federation = _identity(authority, roster)
    wanted = [name for name in participants if name in set(renew) or not (out / name / "kit.json").is_file()]
    workspace, made = authority / _slug(roster), list[Path]()
    try:
        certificates = _certificates(roster, authority, days) if wanted else out
        for name in wanted:
            _make_engine(roster, name, certificates / _engine_name(roster, name), out)
            role, network = _role(name), roster.network
            about = About(SCHEMA, role, name, federation, network.host, network.port, __version__)
            write_kit(out / name, about, shared(name, out / name))
            made.append(out / name)
    finally:  # also of a start that was stopped here: no private key stays, and no certificate is unknown
        _forget_private_keys(workspace)
        known = access.read_certificates(authority)
        record_certificates(out, [n for n in participants if n in wanted or n not in known], renew)
    return made


def _check_for_engine(roster: Roster) -> None:
    """Names that the engine does not take, said before anything is made."""
    host = roster.network.host
    if not _HOST.fullmatch(host):
        raise KitError(f"`network.host` must be a machine's name or address, got {host!r}")
    if len(host) > LONGEST_HOST:
        raise KitError(f"`network.host` has {len(host)} characters, and a certificate holds at most {LONGEST_HOST}: use a"
                       " shorter name that leads to the same machine, or its address.")  # fmt: skip
    for name in roster.clients:
        if "." in name or name == host:
            raise KitError(f"Over a network no {roster.word} can be named {name!r}: a name has no dot and is not"
                           " `network.host`")  # fmt: skip


def _holds_federation(out: Path) -> bool:
    return (out / "authority" / "federation.json").is_file()


def check_names(names: Iterable[str], known: Collection[str]) -> None:
    """Raise KitError for the first name that no participant has."""
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            meant = f" did you mean {near[0]}?" if near else f" there are {', '.join(sorted(known))}."
            raise KitError(f"There is no participant {name!r};{meant}")


def record_certificates(out: Path, made: Iterable[str], renewed: Iterable[str]) -> None:
    """Write down which certificates are in force: with the authority, and for the server, which looks at every connection."""
    from cryptography import x509

    known = access.read_certificates(out / "authority")
    for name in made:
        path = out / name / "engine" / "startup" / "client.crt"
        if name == "server" or not path.is_file():
            continue
        serial = x509.load_pem_x509_certificate(path.read_bytes()).serial_number
        if serial not in known.get(name, ()):
            # A kit that is made again because it was not there leaves the one that was handed out in force.
            known[name] = (serial,) if name in renewed else (*known.get(name, ()), serial)
    _write_lists(out, _refused(out) - set(renewed), known)


def _refused(out: Path) -> set[str]:
    """Who is revoked. The authority's folder remembers it, too: the server's kit may have moved to another machine."""
    return {name for folder in (out / "authority", out / "server" / "engine") for name in access.read_revoked(folder)}


def _write_lists(out: Path, refused: Iterable[str], certificates: dict[str, tuple[int, ...]]) -> None:
    for folder in (out / "authority", out / "server" / "engine"):
        if folder.is_dir():
            access.write_certificates(folder, certificates)
            access.write_revoked(folder, refused)


def revoke(out: str | Path, names: Iterable[str]) -> list[str]:
    """Refuse participants from now on: written into the server's kit, where a running server sees it within seconds.

    If the server's kit is not here, the lists in ``out/authority`` are to be copied into its folder ``engine``.

    Returns:
        all that are refused.

    Raises:
        KitError: there are no kits here, or nobody has this name.
    """
    out, names = Path(out), list(names)
    if not _holds_federation(out):
        raise KitError(NO_FEDERATION.format(out))
    certificates = access.read_certificates(out / "authority")
    made = {path.parent.name for path in out.glob("*/kit.json")} | set(certificates)
    check_names(names, made - {"server"})
    _write_lists(out, {*_refused(out), *names}, certificates)
    return sorted(_refused(out))


def _slug(roster: Roster) -> str:
    """The federation's name as the engine accepts it."""
    return "".join(c if c.isalnum() else "-" for c in roster.name.lower())


def _role(name: str) -> str:
    return "server" if name == "server" else "client"


def _identity(authority: Path, roster: Roster) -> str:
    """Identity of the federation; made with the authority, and kept."""
    path = authority / "federation.json"
    if path.is_file():
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["name"] != roster.name:
            raise KitError(f"{authority} belongs to the federation {known['name']!r}, not {roster.name!r}: use"
                           " another --out.")  # fmt: skip
        return str(known["federation"])
    authority.mkdir(parents=True, mode=0o700, exist_ok=True)
    identity = uuid.uuid4().hex
    write_atomic(path, json.dumps({"name": roster.name, "federation": identity}, indent=1).encode())
    return identity


def _engine_name(roster: Roster, name: str) -> str:
    """The server's certificate must carry the name of its machine."""
    return roster.network.host if name == "server" else name


def _certificates(roster: Roster, authority: Path, days: int) -> Path:
    """Let NVFlare make its startup kits; returns the folder that holds one for each participant."""
    try:
        from nvflare.lighter.constants import CtxKey
    except ModuleNotFoundError:
        raise KitError(NO_NETWORK) from None
    from nvflare.lighter.impl.cert import CertBuilder
    from nvflare.lighter.impl.signature import SignatureBuilder
    from nvflare.lighter.impl.static_file import StaticFileBuilder
    from nvflare.lighter.impl.workspace import WorkspaceBuilder
    from nvflare.lighter.provision import prepare_project
    from nvflare.lighter.provisioner import Provisioner

    network = roster.network
    server = {"name": network.host, "type": "server", "org": ORG, "fed_learn_port": network.port,
              "admin_port": network.port}  # fmt: skip
    clients = [{"name": name, "type": "client", "org": ORG} for name in roster.clients]
    project = prepare_project({"api_version": 3, "name": _slug(roster), "participants": [server, *clients]})
    builders = [
        WorkspaceBuilder(["master_template.yml"]),
        StaticFileBuilder(config_folder="config", scheme="http"),
        CertBuilder(root_valid_days=days),
        SignatureBuilder(),
    ]
    context = Provisioner(str(authority), builders).provision(project, logger=_Silence())
    if context.get(CtxKey.BUILD_ERROR):
        raise KitError("NVFlare could not make the certificates; its reasons stand above.")
    return Path(context[CtxKey.CURRENT_PROD_DIR])


class _Silence:
    """NVFlare tells its progress to a logger; only errors are of interest."""

    def debug(self, text: str) -> None: ...

    info = warning = debug

    def error(self, text: str) -> None:
        print(text)


def _make_engine(roster: Roster, name: str, made: Path, out: Path) -> None:
    """The engine's folder in a kit, anew; who was refused is refused by the new one from its first moment."""
    role, folder = _role(name), out / name
    engine, fresh, old = (folder / place for place in ("engine", "engine.new", "engine.old"))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for rest in (fresh, old):  # of a start that was stopped here
        shutil.rmtree(rest, ignore_errors=True)
    shutil.copytree(made, fresh)
    for script in (*fresh.glob("startup/*.sh"), fresh / "readme.txt"):
        script.unlink(missing_ok=True)  # the engine is started by h2tune alone
    (fresh / "startup" / f"{role}.key").chmod(0o600)
    _settle(fresh, role, roster)
    if role == "server":
        access.write_revoked(fresh, _refused(out))
        access.write_certificates(fresh, access.read_certificates(out / "authority"))
    if engine.exists():
        engine.rename(old)
    fresh.rename(engine)
    shutil.rmtree(old, ignore_errors=True)


def _settle(engine: Path, role: str, roster: Roster) -> None:
    """The engine's own settings: our relay, nothing that could run a job, nothing outside the kit."""
    local = engine / "local"
    for default in local.glob("*.default"):
        default.rename(default.with_suffix(""))
    path = local / "resources.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    unwanted = {"site_log_streamer", "log_receiver", "process_launcher"}
    components = [c for c in settings["components"] if c["id"] not in unwanted]
    relay = {"id": "h2tune", "path": RELAY, "args": {"server": role == "server", "limit": roster.network.largest}}
    settings["components"] = [*components, relay]
    settings["class_allow_list"] = [RELAY, *(c["path"] for c in components)]
    settings["allow_log_streaming"] = False
    if role == "server":
        settings["servers"][0] |= {"max_num_clients": 10_000, "heart_beat_timeout": 60}
    path.write_text(json.dumps(settings, indent=1), encoding="utf-8")
    _log_once(local / "log_config.json")
    (local / "comm_config.json").write_text(
        json.dumps({"max_message_size": roster.network.largest} | WINDOW, indent=1), encoding="utf-8"
    )


def _log_once(path: Path) -> None:
    """What the engine prints is in engine.log: NVFlare would write the same into four files more."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["handlers"] = {"consoleHandler": settings["handlers"]["consoleHandler"]}
    settings["loggers"]["root"]["handlers"] = ["consoleHandler"]
    path.write_text(json.dumps(settings, indent=1), encoding="utf-8")


def concerns(experiment: Experiment, name: str) -> dict[str, Any]:
    """The config without what is a client's own; for a client also without the others."""
    plain = experiment.model_dump(mode="json")
    plain |= {"baseline": "none", "select": "federated", "methods": {}, "tracking": []}
    clients = [{k: v for k, v in client.items() if k not in OWN} for client in plain["clients"]]
    if experiment.secure_aggregation:
        # A client must know it without knowing how many others there are, and never take the server's word for it.
        plain["secure_aggregation"] = {"threshold": experiment.secure_threshold}
    if name != "server":
        # Each client trains alone after the rounds, if the file asks for it (`h2tune.deployment.alone`).
        plain["baseline"] = "local" if "local" in experiment.baselines else "none"
        clients = [client for client in clients if client["name"] == name]
        plain |= {"quorum": 1, "participation": 1.0}
    plain["clients"] = [client | dict.fromkeys(("model", "train", "test"), THEIRS) for client in clients]
    return plain


def carrier(folder: Path) -> Callable[[Any], Any]:
    """What copies a file that the config names into a kit's folder, and returns its place there; other values stay.

    Files of the same name from different folders are numbered: words.txt, words-2.txt.
    """
    names: dict[Path, str] = {}

    def carry(value: Any) -> Any:
        # The config's own paths are absolute by now; a name like `builtin` is none, whatever lies in this folder.
        if not isinstance(value, str) or not Path(value).is_absolute() or not Path(value).is_file():
            return value
        source = Path(value).resolve()
        if source not in names:
            names[source] = _free_name(source, names.values())
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / names[source])
        return f"{PUBLIC}/{names[source]}"

    return carry


def with_public_files(plain: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Copy the files that all need into the kit, and name them by their place in it."""
    carry = carrier(folder)
    clients = [client | {"practice": carry(client["practice"])} for client in plain["clients"]]
    method = plain["method"]
    if isinstance(method, dict):
        method = {k: carry(v) if k != "name" else v for k, v in method.items()}
    common = {k: carry(plain[k]) for k in ("anchors", "anchor_words")}
    if plain.get("public"):
        common["public"] = plain["public"] | {"source": carry(plain["public"]["source"])}
    return plain | common | {"clients": clients, "method": method}


def _free_name(source: Path, taken: Collection[str]) -> str:
    """The file's name, with a number where another file has it; upper and lower case count as equal."""
    lower, name, number = {other.lower() for other in taken}, source.name, 1
    while name.lower() in lower:
        number += 1
        name = f"{source.stem}-{number}{source.suffix}"
    return name


def _forget_private_keys(workspace: Path) -> None:
    """Of what NVFlare keeps, only the authority itself is needed again."""
    state = workspace / "state" / "cert.json"
    if state.is_file():
        kept = json.loads(state.read_text(encoding="utf-8"))
        authority = {k: v for k, v in kept.items() if not isinstance(v, dict)}
        write_atomic(state, json.dumps(authority).encode())
        state.chmod(0o600)
    for made in workspace.glob("prod_*"):
        shutil.rmtree(made)
