"""The run directory. Everything is written beside its place and renamed: a kill at any moment leaves the last commit.

RUN/config.yaml            the resolved experiment
RUN/run.json               identity, version, schema
RUN/events.jsonl           what happened, a line each
RUN/metrics.json           figures per client and round
RUN/server/core.safetensors    the committed round: shared tensors and records
RUN/server/reports.jsonl       what clients reported of every round, a line each
RUN/server/frames.safetensors  what never changes after the start
RUN/clients/NAME/          a client's own: state-*.safetensors, adapter/; on real clients this lies on their machine
"""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from h2tune.config import Experiment, parse_config
from h2tune.utils.files import StoreError, append, damaged, extend, sound, write_atomic
from h2tune.utils.tensors import as_bytes, from_bytes, on_cpu
from h2tune.version import __version__

SCHEMA = 3
OLDEST = 2  # schema of a run that this version can go on with
_RECORDS = "_records"  # among the names of a commit's tensors
_STATE = re.compile(r"state-(\d+)\.safetensors")
_IDENTITY = ("config.yaml", "run.json", "data.json", "events.jsonl")  # what a run is, and its history


def _plain(value: Any) -> bytes:
    return json.dumps(value, indent=1, allow_nan=False).encode() + b"\n"


class RunStore:
    """A run's directory, seen by the coordinator."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @property
    def exists(self) -> bool:
        return (self.folder / "run.json").is_file()

    def create(self, experiment: Experiment) -> str:
        """Start a new run here; returns its identity.

        Raises:
            StoreError: if the folder holds a run or anything else.
        """
        if self.exists:
            raise StoreError(f"{self.folder} holds a run already: continue it with --resume, or choose another --out.")
        config, plain = self.folder / "config.yaml", experiment.to_yaml().encode()
        held = [path for path in self.folder.iterdir() if path.suffix != ".partial"] if self.folder.is_dir() else []
        if held and not (
            held == [config] and config.read_bytes() == plain
        ):  # a start that was cut off here leaves that
            raise StoreError(f"{self.folder} is not empty and is not a run: choose another --out.")
        identity = uuid.uuid4().hex
        write_atomic(config, plain)
        write_atomic(self.folder / "run.json", _plain({"schema": SCHEMA, "run": identity, "version": __version__}))
        return identity

    def open(self, experiment: Experiment | None = None, allow: tuple[str, ...] = ()) -> tuple[str, Experiment]:
        """Identity and experiment of the run here.

        Args:
            experiment: if given, it must equal the run's, but for the keys in ``allow``.

        Raises:
            StoreError: there is no run, it differs, or another version made it and it cannot go on.
        """
        if not self.exists:
            raise StoreError(f"{self.folder} is not a run directory.")
        about = self.about()
        if experiment is not None and about["schema"] < OLDEST and self.metrics() is None:
            raise StoreError(
                f"{self.folder} was begun by h2tune {about['version']}, and this version keeps runs in another form: finish it"
                f" with h2tune {about['version']}, or start it again with another --out."
            )
        with sound(config := self.folder / "config.yaml"):
            stored = parse_config(yaml.safe_load(config.read_text(encoding="utf-8")))
        if experiment is None:
            return about["run"], stored
        changed = sorted(differences(stored.model_dump(mode="json"), experiment.model_dump(mode="json")))
        if strange := [key for key in allow if key.partition(".")[0] not in type(experiment).model_fields]:
            raise StoreError(
                f"--changed {strange[0]}: there is no such key of the config, such as rounds or training.steps"
            )
        refused = [c for c in changed if not any(c == a or c.startswith(a + ".") for a in allow)]
        if refused:
            raise StoreError(
                f"The config differs from the run's in {', '.join(refused[:8])}. Put it back, or say that you mean it:"
                f" --changed {' --changed '.join(refused[:8])}"
            )
        if changed:
            write_atomic(self.folder / "config.yaml", experiment.to_yaml().encode())
            self.event("warning", f"resumed with a changed config: {', '.join(changed)}")
        self.go_on(about)
        return about["run"], experiment

    def about(self) -> dict[str, Any]:
        """What ``run.json`` says: identity, form and version.

        Raises:
            StoreError: a newer version made the run.
        """
        path = self.folder / "run.json"
        with sound(path):
            about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if int(about["schema"]) > SCHEMA:
                raise StoreError(
                    f"{self.folder} was made by h2tune {about['version']}, which is newer than {__version__}: update."
                )
            return about

    def go_on(self, about: dict[str, Any]) -> None:
        """Say that this version takes the run up: its next commit can be read by no earlier one."""
        if OLDEST <= about["schema"] < SCHEMA:
            write_atomic(self.folder / "run.json", _plain(about | {"schema": SCHEMA, "version": __version__}))

    def forget(self, kept: Sequence[str] = ()) -> None:
        """Throw away all that was learnt here, but for some of the clients' files; the run's identity stays."""
        for path in self.folder.iterdir():
            if path.name == "clients":
                inner = [file for client in path.iterdir() for file in client.iterdir() if file.name not in kept]
            else:
                inner = [] if path.name in _IDENTITY else [path]
            for one in inner:
                if one.is_dir():
                    shutil.rmtree(one)
                else:
                    one.unlink()

    def event(self, event: str, text: str, **fields: Any) -> None:
        """Append a line to events.jsonl and tell whoever watches."""
        entry = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, "round": None,
                 "client": None, "text": text} | fields  # fmt: skip
        append(self.folder / "events.jsonl", json.dumps(entry) + "\n")

    def keep(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write tensors that never change."""
        if tensors:
            write_atomic(self.folder / "server" / f"{name}.safetensors", save(_ready(tensors)))

    def kept(self, name: str) -> dict[str, Tensor]:
        """Tensors written by `keep`; none if there were none."""
        path = self.folder / "server" / f"{name}.safetensors"
        with sound(path):
            return load_file(path) if path.is_file() else {}

    def commit(self, round: int, tensors: Mapping[str, Tensor], records: dict[str, Any]) -> None:
        """Make a round the last one; tensors and records are one file, so they cannot disagree."""
        body = _ready(tensors) | {_RECORDS: as_bytes(records)}
        write_atomic(self.folder / "server" / "core.safetensors", save(body, metadata={"round": str(round)}))

    def last_round(self) -> int | None:
        """Number of the last committed round; None before the first commit, 0 while only the set-up is committed."""
        path = self.folder / "server" / "core.safetensors"
        if not path.is_file():
            return None
        with sound(path), safe_open(path, "pt") as file:
            return int(file.metadata()["round"])

    def committed(self) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """Round, tensors and records of the last commit; None before the first."""
        path = self.folder / "server" / "core.safetensors"
        if not path.is_file():
            return None
        with sound(path):
            with safe_open(path, "pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys() if name != "_"}  # noqa: SIM118
            said = tensors.pop(_RECORDS, None)  # earlier versions wrote them into the header
            return int(header["round"]), tensors, json.loads(header["records"]) if said is None else from_bytes(said)

    def add_reports(self, reports: Sequence[Any], after: int) -> int:
        """Write reports of clients behind those that take this many bytes; returns how many they take together.

        They count once a commit says so: whatever lies further on is of a round that was not committed.
        """
        lines = "".join(json.dumps(report, allow_nan=False) + "\n" for report in reports)
        return extend(self.folder / "server" / "reports.jsonl", after, lines.encode())

    def reports(self, length: int) -> list[Any]:
        """The reports that take the first ``length`` bytes.

        Raises:
            StoreError: some of them are missing, or are no reports.
        """
        if not length:
            return []
        path = self.folder / "server" / "reports.jsonl"
        data = path.read_bytes()[:length] if path.is_file() else b""
        if len(data) < length or not data.endswith(b"\n"):
            raise damaged(path)
        try:
            return [[str(name), dict(report)] for name, report in map(json.loads, data.splitlines())]
        except (ValueError, TypeError):
            raise damaged(path) from None

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        write_atomic(self.folder / "metrics.json", _plain(metrics))

    def metrics(self) -> dict[str, Any] | None:
        """What `write_metrics` has written; None before the end of the run."""
        path = self.folder / "metrics.json"
        with sound(path):
            return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def client(self, name: str) -> ClientStore:
        return ClientStore(self.folder / "clients" / name)


class ClientStore:
    """A client's own directory; on a real client it never leaves the machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._anew = f"move {folder} away and join anew"

    def _states(self) -> list[tuple[int, Path]]:
        found = ((_STATE.fullmatch(path.name), path) for path in self.folder.glob("state-*.safetensors"))
        return sorted((int(match[1]), path) for match, path in found if match)  # copies that people made are none

    def save_state(self, round: int, state: Mapping[str, Tensor]) -> None:
        """Keep the private state of a round, and that of the one before: the server may not have committed yet."""
        write_atomic(self.folder / f"state-{round:06d}.safetensors", save(_ready(state)))
        for _, path in self._states()[:-2]:
            path.unlink()

    def has_state(self, round: int) -> bool:
        """Whether the state of just this round is kept."""
        return any(number == round for number, _ in self._states())

    def load_state(self, round: int) -> dict[str, Tensor] | None:
        """The newest state that is not younger than a committed round."""
        usable = [path for number, path in self._states() if number <= round]
        if not usable:
            return None
        with sound(usable[-1], self._anew):
            return load_file(usable[-1])

    def write_json(self, name: str, value: Any) -> None:
        write_atomic(self.folder / name, _plain(value))

    def read_json(self, name: str) -> Any:
        """A value written by `write_json`, or None.

        Raises:
            StoreError: the file is damaged.
        """
        path = self.folder / name
        with sound(path, self._anew):
            return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def save_adapter(self, model: PeftModel, adapter: str) -> Path:
        """Write one client's adapter as PEFT would, under ``adapter/``."""
        others = model.peft_config.keys() - {adapter}  # PEFT would compare every tensor with every other adapter
        own = {key: tensor for key, tensor in model.state_dict().items() if others.isdisjoint(key.split("."))}
        tensors = get_peft_model_state_dict(model, own, adapter_name=adapter, save_embedding_layers=False)
        folder = self.folder / "adapter"
        write_atomic(folder / "adapter_model.safetensors", save(_ready(tensors), metadata={"format": "pt"}))
        config = model.peft_config[adapter]
        inference, config.inference_mode = config.inference_mode, True
        config.save_pretrained(str(folder))
        config.inference_mode = inference
        return folder


def _ready(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.contiguous().clone() for name, t in on_cpu(tensors).items()}


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Keys, with dots between them, in which two trees of plain values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [d for k in keys for d in differences(old.get(k), new.get(k), f"{path}.{k}" if path else str(k))]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [d for i, (a, b) in enumerate(zip(old, new, strict=True)) for d in differences(a, b, f"{path}.{i}")]
    return [] if old == new else [path]
