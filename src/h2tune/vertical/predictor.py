"""Predictions for people whom some of the parties know, from a run or from an exported part of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from safetensors.torch import load_file, save
from torch import Tensor, nn

from h2tune.utils.files import StoreError, sound, write_atomic
from h2tune.vertical.config import PartyConfig, VerticalConfig, parse_vertical
from h2tune.vertical.encoder import make_encoder
from h2tune.vertical.metrics import answers
from h2tune.vertical.parties import columns_as_text, read_rows_of
from h2tune.vertical.run_store import PART, handed_over, not_ended
from h2tune.vertical.spelling import normalise
from h2tune.vertical.table import Columns, TableError, read_table
from h2tune.vertical.top import Top

NOT_HERE = "-"  # in the config of an export, in place of what is not in it


class Predictor:
    """The model of a finished run, with the networks of some or all of its parties.

    Args:
        folder: a run directory, or what `export` has written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        about_path = self.folder / "server" / "predictor.json"
        if not about_path.is_file():
            raise not_ended(self.folder)
        with sound(about_path):
            about = json.loads(about_path.read_text(encoding="utf-8"))
            self.classes, self.parties = list(about["classes"]), list(about["parties"])
        with sound(config_path := self.folder / "config.yaml"):
            self.config: VerticalConfig = parse_vertical(yaml.safe_load(config_path.read_text(encoding="utf-8")))
        vectors = torch.tensor(about["vectors"]) if "vectors" in about else None
        self.top = Top(len(self.parties), len(self.classes), self.config.method, self.config.training, 0, vectors)
        with sound(top_path := self.folder / "server" / "top.safetensors"):
            self.top.load_state_dict(load_file(top_path))
        self.top.elsewhere[[self.classes.index(name) for name in about.get("elsewhere", [])]] = True
        self.here = [n for n in self.parties if (self.folder / "clients" / n / "party.json").is_file()]

    def _check(self, name: str) -> None:
        if name in self.parties and name not in self.here and (self.folder / "run.json").is_file():
            raise TableError(f"The part of {name} is not in {self.folder}. {handed_over(name, self.folder)}")
        if name not in self.here:
            raise TableError(f"{name} is not among the parties here: {', '.join(self.here)}.")

    def _party(self, name: str) -> tuple[PartyConfig, Columns, nn.Module]:
        self._check(name)
        folder = self.folder / "clients" / name
        with sound(path := folder / "party.json"):
            about = json.loads(path.read_text(encoding="utf-8"))
            party, columns = PartyConfig.model_validate(about["party"]), Columns.from_plain(about["columns"])
            encoder = make_encoder(about["width"], self.config.training.hidden, self.config.training.dim, 0)
        with sound(path := folder / "encoder.safetensors"):
            encoder.load_state_dict(load_file(path))
        return party, columns, encoder

    def predict(self, tables: Mapping[str, str | Path | pd.DataFrame]) -> list[dict[str, Any]]:
        """One answer a person, in the order of the tables.

        Args:
            tables: files or tables by party; any subset of the parties, and not all people need be in all of them.

        Returns:
            For each person: `id`, `class`, `probabilities` under equal class shares, and the `parties` that know it.

        Raises:
            TableError, AlignmentError: if a table cannot be used.
        """
        views: dict[str, tuple[list[str], Tensor]] = {}
        for name, source in tables.items():
            party, columns, encoder = self._party(name)
            as_text = columns_as_text(self.config, party).union(columns.categorical)
            frame = source if isinstance(source, pd.DataFrame) else read_table(source, as_text)
            rows = read_rows_of(self.config, party, columns, frame, "")
            with torch.no_grad():
                views[name] = rows.ids, encoder(rows.x)
        people: dict[str, str] = {}
        for ids, _ in views.values():
            people |= {normalise(i): i for i in sorted(ids) if normalise(i) not in people}
        return self._answers(people, views)

    def _answers(self, people: dict[str, str], views: dict[str, tuple[list[str], Tensor]]) -> list[dict[str, Any]]:
        place = {form: index for index, form in enumerate(people)}
        z = [torch.zeros(len(people), self.config.training.dim) for _ in self.parties]
        present = torch.zeros(len(people), len(self.parties), dtype=torch.bool)
        for name, (ids, embedded) in views.items():
            k, rows = self.parties.index(name), torch.tensor([place[normalise(i)] for i in ids], dtype=torch.int64)
            z[k][rows], present[rows, k] = embedded, True
        with torch.no_grad():
            p = self.top.probabilities(z, present)
        return answers(p, present, list(people.values()), self.classes, self.parties)

    def export(self, parties: list[str], out: str | Path) -> Path:
        """Write a predictor for a subset of the parties.

        Of the others it holds their names, and which classes some of them have seen, not which of them; see `differs`.

        Raises:
            StoreError: the folder is not empty, or no party is named.
            TableError: a party is not here; nothing is written then.
        """
        out = Path(out)
        if not parties:
            raise StoreError(f"No party is named; name one or more of {', '.join(self.here)}.")
        for name in parties:
            self._check(name)
        if out.exists() and any(out.iterdir()):
            raise StoreError(f"{out} is not empty; choose another --out.")
        for name in parties:
            for file in PART:
                write_atomic(out / "clients" / name / file, (self.folder / "clients" / name / file).read_bytes())
        tensors = self.top.without(self._others(parties))
        write_atomic(out / "server" / "top.safetensors", save({k: v.contiguous() for k, v in tensors.items()}))
        about = json.loads((self.folder / "server" / "predictor.json").read_text(encoding="utf-8"))
        about["elsewhere"] = self._named(self.top.seen_by(self._others(parties)))
        write_atomic(out / "server" / "predictor.json", json.dumps(about).encode())
        write_atomic(out / "config.yaml", yaml.safe_dump(self._config_of(parties), sort_keys=False).encode())
        return out

    def differs(self, parties: list[str]) -> list[str]:
        """Classes that an export for some parties does not predict as it is predicted here for people whom they know.

        With `gate: coverage` or `learned`, and with `missing: relation`, that takes figures of the parties left out.
        """
        return self._named(self.top.differs(self._others(parties)))

    def _others(self, parties: list[str]) -> list[int]:
        return [k for k, name in enumerate(self.parties) if name not in parties]

    def _named(self, classes: Tensor) -> list[str]:
        return [name for name, chosen in zip(self.classes, classes.tolist(), strict=True) if chosen]

    def _config_of(self, parties: list[str]) -> dict[str, Any]:
        """The config as some parties may know it: nothing of the others, no secrets."""
        plain = self.config.model_dump(mode="json")
        plain["align"]["salt"] = None
        plain["parties"] = [party | {"salt": None} for party in plain["parties"] if party["name"] in parties]
        if plain["label"]["vectors"] is not None:
            plain["label"]["vectors"] = NOT_HERE  # what they hold is in server/predictor.json
        if self.config.label.party not in parties:  # a config needs an active party; its name is known to all
            plain["label"]["column"] = NOT_HERE
            plain["parties"].append({"name": self.config.label.party, "train": NOT_HERE})
        return plain
