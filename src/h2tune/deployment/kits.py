"""A kit: the folder that one participant gets from the coordinator, and all that it needs.

KIT/kit.json          who this is, which federation, which server
KIT/federation.yaml   what all have agreed on; of the clients a client's kit names only its own
KIT/public/           public files that all need: anchors, words, codes, practice problems
KIT/own.yaml          a client's own: model and data paths, written on its machine, never sent
KIT/engine/           the engine's folder: certificate, key, authority's certificate, settings
KIT/run/ or state/    the server's run directory, or a client's private state
KIT/status.json       health and progress, for `h2tune status`
KIT/.lock             locked by the process that works on the kit
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from h2tune.config import SOURCES, Experiment, meant_path, parse_config
from h2tune.errors import H2TuneError
from h2tune.utils.files import write_atomic

SCHEMA = 1
OWN = ("model", "train", "test", "validation")  # a client's own, never in a kit
PUBLIC = "public"
THEIRS = "(the client's own)"
SOON = 30  # days before the end of a certificate from which on every start says so
AGAIN = "{} cannot be read: ask the coordinator for the kit again."
NOT_YOURS = (
    "This user may not read {}. A kit belongs to who made or unpacked it: run h2tune as that user, or give the kit to this"
    " one with `chown -R USER KIT`."
)
NO_NETWORK = "The network's libraries are not installed: pip install 'h2tune[network]'"


class KitError(H2TuneError, RuntimeError):
    """A kit cannot be used; the text says what to do."""


@dataclass(frozen=True)
class About:
    """What kit.json says."""

    schema: int
    role: str  # server or client
    name: str
    federation: str  # identity of the federation that the kits were made for
    host: str
    port: int
    version: str  # of h2tune


class Kit:
    """A participant's kit.

    Raises:
        KitError: if the folder is not a kit, or is one of the other role or of a newer version.
    """

    def __init__(self, folder: str | Path, role: str | None = None) -> None:
        self.folder = Path(folder)
        self.about = _about(self.folder)
        if role and self.about.role != role:
            raise KitError(
                f"{self.folder} is the kit of a {self.about.role}: start it with `h2tune {self.about.role}`."
            )

    @property
    def engine(self) -> Path:
        return self.folder / "engine"

    def experiment(self, own: dict[str, Any] | None = None) -> Experiment:
        """What all have agreed on, with a client's own values in their places.

        Raises:
            ConfigError: with every mistake at once.
            KitError: federation.yaml is missing or damaged.
        """
        data = self.mapping("federation.yaml")
        try:
            if own:
                data["device"] = own.get("device", data["device"])
                data["clients"][0] |= {k: v for k, v in own.items() if k != "device"}
            if isinstance(data["method"], dict):
                data["method"] = {k: self.place(v) for k, v in data["method"].items()}
        except (LookupError, TypeError):
            raise KitError(AGAIN.format(self.folder / "federation.yaml")) from None
        return parse_config(data, self.folder)

    def place(self, value: Any) -> Any:
        """A public file of the kit by its path on this machine."""
        inside = isinstance(value, str) and value.startswith(PUBLIC + "/")
        return str((self.folder / value).resolve()) if inside else value

    def own(self) -> dict[str, Any]:
        """own.yaml as plain data; nothing if there is none yet.

        Raises:
            KitError: it holds something else than keys and values.
        """
        return self.mapping("own.yaml") if (self.folder / "own.yaml").is_file() else {}

    def mapping(self, name: str) -> dict[str, Any]:
        """What a YAML file of the kit holds.

        Raises:
            KitError: it is missing, damaged, or holds something else than keys and values.
        """
        path = self.folder / name
        cure = "write it anew" if name == "own.yaml" else "ask the coordinator for the kit again"
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except PermissionError:
            raise KitError(NOT_YOURS.format(path)) from None
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise KitError(f"{path} cannot be read: {cure}. {' '.join(str(error).split())[:200]}") from None
        if not isinstance(found, dict):
            raise KitError(f"{path} holds no keys and values: {cure}.")
        return found

    def keep_own(self, values: dict[str, Any]) -> None:
        write_atomic(self.folder / "own.yaml", yaml.safe_dump(values, sort_keys=False).encode())

    def validity(self) -> tuple[datetime, datetime]:
        """Beginning and end of the certificate's life.

        Raises:
            KitError: the certificate cannot be read.
        """
        return self._life(f"{self.about.role}.crt")

    def cure(self, now: datetime | None = None) -> str:
        """What the coordinator does about a certificate that ends, or has ended."""
        if self._life("rootCA.pem")[1] - (now or datetime.now(UTC)) < timedelta(days=SOON):
            return "the authority of the federation ends, too: all kits are made anew, as docs/upgrade.md says"
        return f"the coordinator makes a new kit with `h2tune provision FILE --out FOLDER --renew {self.about.name}`"

    def _life(self, name: str) -> tuple[datetime, datetime]:
        """From when to when a certificate of the kit is valid."""
        try:
            from cryptography import x509
        except ModuleNotFoundError:
            raise KitError(NO_NETWORK) from None
        path = self.engine / "startup" / name
        try:
            certificate = x509.load_pem_x509_certificate(path.read_bytes())
        except PermissionError:
            raise KitError(NOT_YOURS.format(path)) from None
        except (OSError, ValueError):
            raise KitError(AGAIN.format(path)) from None
        return certificate.not_valid_before_utc, certificate.not_valid_after_utc

    def check_certificate(self, now: datetime | None = None) -> datetime:
        """The end of the certificate's life.

        Raises:
            KitError: if it lies in the past, or the beginning in the future, or this user may not read the key.
        """
        now, key = now or datetime.now(UTC), self.engine / "startup" / f"{self.about.role}.key"
        try:
            key.open("rb").close()
        except PermissionError:  # the engine would only say so in its log
            raise KitError(NOT_YOURS.format(key)) from None
        except OSError:  # it is not there: the engine says so
            pass
        begin, end = self.validity()
        if now > end:
            raise KitError(
                f"The certificate of {self.about.name} expired on {end:%Y-%m-%d}: {self.cure(now)}; own.yaml and state/ may"
                " be moved over."
            )
        if now < begin:
            raise KitError(
                f"The certificate of {self.about.name} is not valid before {begin:%Y-%m-%d %H:%M} UTC, and this machine's"
                f" clock says {now:%Y-%m-%d %H:%M} UTC: set the clock."
            )
        return end


def is_vertical_kit(folder: str | Path) -> bool:
    """Whether a kit belongs to a vertical federation.

    Raises:
        KitError: its federation.yaml is damaged.
    """
    path = Path(folder) / "federation.yaml"
    return path.is_file() and "parties" in Kit(folder).mapping(path.name)


def _about(folder: Path) -> About:
    """What kit.json says. Which version made it is read first: a newer one may say other things."""
    path = folder / "kit.json"
    try:
        if not path.is_file():
            raise KitError(f"{folder} is not a kit: kit.json is missing. `h2tune provision` makes kits.")
        said = json.loads(path.read_text(encoding="utf-8"))
        if said["schema"] > SCHEMA:
            raise KitError(f"The kit was made by h2tune {said.get('version')}, which is newer than this one: update.")
        return About(**said)
    except PermissionError:
        raise KitError(NOT_YOURS.format(path)) from None
    except (ValueError, LookupError, TypeError):
        raise KitError(AGAIN.format(path)) from None


def write_kit(folder: Path, about: About, shared: dict[str, Any]) -> None:
    """Write what is ours in a kit; ``engine/`` is written by `h2tune.deployment.provision`."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomic(folder / "kit.json", json.dumps(asdict(about), indent=1).encode())
    write_atomic(folder / "federation.yaml", yaml.safe_dump(shared, sort_keys=False, allow_unicode=True).encode())


def own_values(given: dict[str, Any], settings: list[str]) -> dict[str, Any]:
    """A client's own values from options and ``KEY=VALUE``.

    Paths are meant from the current folder, and become absolute, for the next start elsewhere.

    Raises:
        KitError: if a setting is malformed or not a client's own to decide.
    """
    own = dict(given)
    for text in settings:
        key, separator, value = text.partition("=")
        if not separator:
            raise KitError(f"--set takes KEY=VALUE, got {text!r}")
        if key in ("name", "joins", "keep", "task"):
            raise KitError(f"`{key}` is the same for all clients and cannot be set here: ask the coordinator")
        try:
            own[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise KitError(f"--set {key}: {value!r} is not a value as YAML writes it") from None
    paths = {k: meant_path(v, Path.cwd(), k == "model") for k, v in own.items() if k in ("model", *SOURCES)}
    return own | paths
