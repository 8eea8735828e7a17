"""The run directory of a vertical federation: as any run's, and beside it who met whom, and the trained parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save
from torch import nn

from h2tune.store import SCHEMA, RunStore, differences
from h2tune.utils.files import LOCK, StoreError, sound, write_atomic
from h2tune.version import __version__
from h2tune.vertical.active import Active
from h2tune.vertical.config import VerticalConfig, parse_vertical
from h2tune.vertical.evaluation import predictions
from h2tune.vertical.exposure import Sizes
from h2tune.vertical.meeting import Meeting
from h2tune.vertical.parties import PartyData

PART = ("party.json", "encoder.safetensors")  # files of one party's part of the model


def not_ended(folder: Path) -> StoreError:
    """The error for a folder that holds no finished run: where one was begun, how it is ended."""
    if not (folder / "run.json").is_file():
        return StoreError(f"{folder} holds no finished vertical run: choose the --out of one.")
    goes_on = f"h2tune run FILE --out {folder} --resume"
    if (folder.parent / "federation.yaml").is_file():
        goes_on = f"h2tune server {folder.parent}"
    return StoreError(f"{folder} holds no finished vertical run yet: let it end first ({goes_on}).")


def handed_over(party: str, run: str | Path) -> str:
    """How a party's view comes into a run over a network, where it is that party's decision."""
    files = " and ".join(f"state/{name}" for name in PART)
    return (
        f"Over a network each party keeps its own part of the model. If {party} decides to hand its part over, copy {files}"
        f" of its kit (they are there once the run has ended) into {run}/clients/{party}/."
    )


class VerticalStore(RunStore):
    """A run directory whose config has parties."""

    def check_free(self, resume: bool = False) -> None:
        """Whether a new run may begin here.

        Args:
            resume: a run that was never opened may be begun anew.

        Raises:
            StoreError: if the folder holds a run or anything else; the lock of a claim is nothing.
        """
        if self.exists and not (resume and self.committed() is None):
            raise StoreError(f"{self.folder} holds a run already: go on with --resume, or choose another --out.")
        held = self.folder.iterdir() if self.folder.is_dir() and not self.exists else ()
        if any(path.name != LOCK for path in held):
            raise StoreError(f"{self.folder} is not empty and holds no run: choose another --out.")

    def create_for(self, config: VerticalConfig, identity: str, resume: bool = False) -> str:
        """Start a new run here.

        Raises:
            StoreError: see `check_free`.
        """
        self.check_free(resume)
        about = {"schema": SCHEMA, "run": identity, "version": __version__, "kind": "vertical"}
        write_atomic(self.folder / "config.yaml", config.to_yaml().encode())
        write_atomic(self.folder / "run.json", json.dumps(about).encode())
        return identity

    def open_vertical(self, config: VerticalConfig | None = None) -> str:
        """Identity of the run here, whose config must be the given one.

        Raises:
            StoreError: if it differs, naming the keys.
        """
        kept = self.config()
        if config and kept.label.vectors and config.label.vectors:
            # A kit with its files may lie in another folder now; what is in this one stands in the run's fingerprint.
            kept = kept.model_copy(update={"label": kept.label.model_copy(update={"vectors": config.label.vectors})})
        if config and (changed := differences(kept.by_name(), config.by_name())):
            raise StoreError(
                f"The config differs from that of the run in {self.folder} in {', '.join(changed[:8])}. Put it back, or"
                " choose another --out."
            )
        about = self.about()
        if config:
            self.go_on(about)
        return str(about["run"])

    def config(self) -> VerticalConfig:
        """The run's config."""
        with sound(path := self.folder / "config.yaml"):
            return parse_vertical(yaml.safe_load(path.read_text(encoding="utf-8")))

    def keep_meeting(self, meeting: Meeting) -> None:
        """Write who has which aligned person; it never changes."""
        self.keep("meeting", {"rows": meeting.rows, "present": meeting.present, "test_rows": meeting.test_rows,
                              "test_present": meeting.test_present})  # fmt: skip
        about = {"passive": meeting.passive, "classes": meeting.classes, "sizes": meeting.sizes}
        write_atomic(self.folder / "server" / "meeting.json", json.dumps(about).encode())

    def meeting(self) -> Meeting:
        """What `keep_meeting` has written."""
        t = self.kept("meeting")
        with sound(path := self.folder / "server" / "meeting.json"):
            about = json.loads(path.read_text(encoding="utf-8"))
            return Meeting(
                about["passive"],
                about["classes"],
                t["rows"],
                t["present"],
                t["test_rows"],
                t["test_present"],
                about["sizes"],
            )

    def keep_secret(self, secret: bytes) -> None:
        """Write what the active party's private draws follow from; a resumed run must repeat them."""
        path = self.folder / "server" / "secret"
        write_atomic(path, secret)
        path.chmod(0o600)

    def secret(self) -> bytes:
        """What `keep_secret` has written.

        Raises:
            StoreError: if it is not there; labels that are randomised twice are less private.
        """
        path = self.folder / "server" / "secret"
        if not path.is_file():
            raise StoreError(f"{path} is missing: the run cannot be resumed. Choose another --out to begin anew.")
        return path.read_bytes()

    def sizes(self, active: Active) -> Sizes:
        """Sizes of the run's messages."""
        training = active.config.training
        return Sizes(len(active.classes), training.dim, min(training.batch, len(active.labels.y)))


def keep_top(store: VerticalStore, active: Active) -> None:
    """Write what a prediction needs of the active party: the top layer, its network, how its columns become numbers."""
    folder = store.folder / "server"
    write_atomic(folder / "top.safetensors", save({k: v.contiguous() for k, v in active.top.state_dict().items()}))
    about: dict[str, Any] = {"classes": active.classes, "parties": active.parties}
    if active.top.vectors is not None:
        about["vectors"] = active.top.vectors.tolist()
    write_atomic(folder / "predictor.json", json.dumps(about).encode())
    lines = "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in predictions(active))
    write_atomic(store.folder / "predictions.jsonl", lines.encode())
    write_party(store.folder / "clients" / active.data.name, active.encoder, active.data)


def write_party(folder: Path, encoder: nn.Module, data: PartyData) -> None:
    """Write one party's share of the model; it stays with the party."""
    write_atomic(folder / "encoder.safetensors", save({k: v.contiguous() for k, v in encoder.state_dict().items()}))
    party = data.config.model_dump(mode="json", exclude={"salt"})
    about: dict[str, Any] = {"party": party, "columns": data.columns.plain(), "width": data.width}
    write_atomic(folder / "party.json", json.dumps(about, indent=1).encode())
