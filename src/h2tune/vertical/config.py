"""A vertical federation as typed, validated data: who holds which columns, how people are matched, what is trained."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from h2tune.config import Agreeing, ConfigError, Conflict, Name, NetworkConfig, checked, in_words, read_yaml
from h2tune.utils.files import sound
from h2tune.vertical.spelling import alike


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Align(_Strict):
    """How the parties find the people that they have in common."""

    by: str = Field("id", description="name of the id column; a party may name its own")
    how: Literal["hmac", "psi"] = Field(
        "hmac",
        description="`hmac`: keyed hashes of the ids; `psi`: private set intersection (pip install openmined-psi)",
    )
    salt: str | None = Field(
        None,
        description="secret shared by all parties; by default `h2tune run` derives it from the seed, and"
        " `h2tune provision` draws one at random",
    )


class Label(_Strict):
    """What is predicted, and who has it."""

    party: str = Field(description="the active party: it holds the labels and drives the training")
    column: str = Field(description="its label column")
    classes: list[str] | None = Field(
        None,
        description="all classes; by default those of the active party's rows, so name them where another party labels a"
        " class that the active party has no row of",
    )
    vectors: str | None = Field(
        None, description="a CSV file with a public vector of each class, for `unseen: described`"
    )


class EncoderConfig(_Strict):
    """What turns a party's columns into numbers before its network."""

    kind: Literal["table", "text"] = Field("table", description="`text` adds one column through a frozen text encoder")
    model: str | None = Field(None, description="folder or name of the text encoder")
    column: str | None = Field(None, description="the text column")
    max_length: int = Field(128, ge=8, description="longest text in tokens")

    @model_validator(mode="after")
    def _text_needs_both(self) -> EncoderConfig:
        if self.kind == "text" and not (self.model and self.column):
            raise ValueError("a text encoder needs `model` and `column`")
        if self.kind == "table" and (self.model or self.column):
            raise ValueError("`model` and `column` belong to a text encoder: write `kind: text`")
        return self


class PartyConfig(_Strict):
    """One party: its files, its columns."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="name of the party, unique")
    train: str = Field(description="its rows: CSV, TSV, Parquet or JSONL")
    test: str | None = Field(None, description="its columns of the test people; only used for scoring")
    id: str | None = Field(None, description="its id column, where it is not the one of `align`")
    columns: list[str] | None = Field(None, description="columns to use; by default all but ids and labels")
    labels: str | None = Field(None, description="a passive party's own label column; empty cells are unlabelled rows")
    prior: Literal["estimated"] | dict[str, float] = Field(
        "estimated", description="class shares of its unlabelled rows, if it knows them; a wrong one does harm"
    )
    encoder: EncoderConfig = Field(EncoderConfig(), description="by default its columns as numbers")
    salt: str | None = Field(None, description="its own copy of the shared secret; must be the same everywhere")


class MethodConfig(_Strict):
    """The method and its options. The defaults are the method as reconstructed, except `gate`, `agree` and `missing`, which were measured."""

    name: str = Field("proto-evfl", description="see docs/vertical.md")
    gate: Literal["mean", "coverage", "learned"] = Field(
        "mean",
        description="weights of the views: alike, by the rows of a class that a party has seen, or by a small network",
    )
    assign: Literal["transport", "posterior", "argmax"] = Field(
        "transport", description="how unlabelled rows are assigned to classes"
    )
    prior: Literal["mixed", "global", "local"] = Field("mixed", description="class shares that the assignment uses")
    select: Literal["hard", "soft", "all", "none"] = Field("hard", description="which unlabelled rows are trained on")
    agree: bool = Field(False, description="drop rows on which the two prototypes differ")
    unseen: Literal["named", "described", "nameless"] = Field(
        "named", description="what is known of a class that the active party has no row of"
    )
    missing: Literal["evidence", "coverage", "relation"] = Field(
        "evidence",
        description="a party that has not seen a class: given a share (`borrow`) of the others' evidence for it, left out"
        " of its score, or inferred from its views of classes alike",
    )
    borrow: float = Field(
        0.5, ge=0, le=1, description="that share; 0 takes a view that has not seen a class as neutral"
    )
    combine: Literal["scores", "probabilities"] = Field(
        "scores", description="`probabilities` averages the class probabilities of the parties that know a class"
    )
    top: Literal["linear", "mlp"] = Field("linear", description="`mlp` adds a network over all embeddings")
    labels: bool = Field(True, description="use the passive parties' own labels")
    adjust: bool = Field(True, description="add log class shares to the scores in the losses")
    view_weight: float = Field(0.3, ge=0, description="weight of each view's own loss")
    fused_weight: float = Field(1.0, ge=0, description="weight of the loss of the fused scores")
    warmup: int = Field(15, ge=1, description="first round that uses unlabelled rows")
    eps: float = Field(1.0, gt=0, description="entropic term of the transport")
    rho: float = Field(1.0, ge=0, description="hold on the class masses of the transport")
    ct: float = Field(0.0, ge=0, description="weight of a two-way transport loss between rows and class means")
    hypergradient: Literal["first order", "exact"] = Field(
        "first order", description="with `ct`: hold the class means fixed, or differentiate through them, too"
    )


class Training(_Strict):
    """Sizes and steps, the same for every party."""

    dim: int = Field(32, ge=1, description="length of an embedding")
    hidden: int = Field(64, ge=1, description="width of the two hidden layers of an encoder")
    batch: int = Field(64, ge=1, description="rows of a batch")
    steps: int = Field(10, ge=1, description="exchanged steps of a round")
    local_steps: int = Field(
        3,
        ge=0,
        description="steps of a round on a party's own rows; more of them help strong views and harm weak ones",
    )
    stale: int = Field(1, ge=1, description="updates for each exchanged step")
    learning_rate: float = Field(2e-3, gt=0, description="step size of AdamW, at every party")
    weight_decay: float = Field(1e-4, ge=0, description="decoupled weight decay of AdamW")
    average: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="predict with a running average of the weights over rounds, of which each round keeps this share;"
        " 0 predicts with the last weights",
    )
    corrupt: float = Field(0.2, ge=0, lt=1, description="chance that a cell is swapped with another row's")
    augment: float = Field(0.0, ge=0, lt=1, description="the same chance for the rows of aligned batches")
    dropout: float = Field(0.1, ge=0, lt=1, description="chance that a party is left out of a row's training step")


class Evaluation(_Strict):
    """When the federation is scored."""

    every: int = Field(10, ge=1, description="score every so many rounds")
    validation: float = Field(
        0.0,
        ge=0,
        lt=0.9,
        description="share of the aligned rows kept for choosing the best round, at least one row; 0 keeps the last round",
    )

    def kept(self, aligned: int) -> int:
        """How many of the aligned rows are kept for validation: of a share above 0 never none."""
        return max(1, int(self.validation * aligned)) if self.validation else 0


class Exposure(_Strict):
    """What limits the inference from what crosses."""

    label_dp: float | None = Field(
        None, gt=0, le=100, description="epsilon of randomised response on every label; every new run spends it again"
    )
    gradient_noise: float = Field(0.0, ge=0, description="noise on gradients, relative to their size; a heuristic")
    min_count: int = Field(
        5, ge=1, description="rows below which a passive party says nothing of a class, and uses no labels of it"
    )


class VerticalNetwork(NetworkConfig):
    """Where the active party's server is found, and how long it waits. Of these keys `h2tune run`
    heeds `limit` alone."""

    patience: float = Field(
        60, ge=0, description="seconds to wait for a lost party; then the others go on without its view"
    )


# Why such names are refused: all but the party that has them in clear would take them for one, without a word.
ONE = "parties compare names without these, so rename one"
_ONE = f"differ by case, spaces or forms of a character only; {ONE}"


def _wrong_shares(prior: dict[str, float]) -> str:
    if twins := alike(prior):
        return f"{twins[0]!r} and {twins[1]!r} in `prior` {_ONE}"
    if wrong := [name for name, share in prior.items() if not 0 <= share <= 1]:
        return f"the share of {wrong[0]!r} in `prior` is {prior[wrong[0]]:g}; shares are between 0 and 1"
    return "" if math.isclose(sum(prior.values()), 1, abs_tol=1e-3) else "the shares in `prior` must sum to 1"


class VerticalConfig(_Strict, Agreeing):
    """A whole vertical federation."""

    name: Name = Field("vertical", description="shown in reports")
    seed: int = Field(0, ge=0, description="everything random is derived from it")
    rounds: int = Field(60, ge=1, description="communication rounds")
    method: MethodConfig = Field(MethodConfig(), description="a name, or keys")
    align: Align = Field(Align(), description="how people are matched")
    label: Label = Field(description="what is predicted, and who has it")
    parties: list[PartyConfig] = Field(min_length=1, description="who takes part")
    training: Training = Field(Training(), description="sizes and steps")
    evaluation: Evaluation = Field(Evaluation(), description="when the federation is scored")
    exposure: Exposure = Field(Exposure(), description="what limits the inference from what crosses")
    baseline: Literal["none", "local"] = Field(
        "local",
        description="`local` also trains the active party alone, and reports its scores beside the federation's",
    )
    network: VerticalNetwork = Field(VerticalNetwork(), description="deadlines and the server's address")

    @field_validator("method", mode="before")
    @classmethod
    def _method(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    def conflicts(self) -> Iterator[Conflict]:
        names = [party.name for party in self.parties]
        for name in sorted({n for n in names if names.count(n) > 1}):
            yield Conflict(f"two parties have the name {name!r}; names must be unique")
        if self.label.party not in names:
            line = f"label.party is {self.label.party!r}, but the parties are {', '.join(names)}"
            yield Conflict(line, (("label", "party"),))
        if self.label.classes and len(set(self.label.classes)) != len(self.label.classes):
            yield Conflict("label.classes names a class twice", (("label", "classes"),))
        if self.others_name_classes and (twins := alike(self.label.classes or ())):
            yield Conflict(f"label.classes: {twins[0]!r} and {twins[1]!r} {_ONE}", (("label", "classes"),))
        if self.method.unseen == "described" and self.label.vectors is None:
            line = "method.unseen is `described`: label.vectors must name a file of class vectors"
            yield Conflict(line, (("method", "unseen"), ("label", "vectors")))
        for i, party in enumerate(self.parties):
            if party.name == self.label.party and party.labels is not None:
                line = f"{party.name} is the active party: its labels are declared under `label.column`"
                yield Conflict(line, (("parties", i, "labels"),))
            if isinstance(party.prior, dict) and (line := _wrong_shares(party.prior)):
                yield Conflict(f"{party.name}: {line}", (("parties", i, "prior"),))

    @property
    def others_name_classes(self) -> bool:
        """Whether a passive party has labels or class shares, and so compares names of classes with the active party's."""
        others = (party for party in self.parties if party.name != self.label.party)
        return any(party.labels is not None or isinstance(party.prior, dict) for party in others)

    @property
    def active(self) -> PartyConfig:
        """The party with the labels."""
        return next(party for party in self.parties if party.name == self.label.party)

    @property
    def passive(self) -> list[PartyConfig]:
        """The other parties by name, so that their order in the file changes nothing."""
        return sorted((p for p in self.parties if p.name != self.label.party), key=lambda p: p.name)

    def by_name(self) -> dict[str, Any]:
        """Plain values with each party under its name, so that a party's keys are `parties.NAME.key`."""
        plain = self.model_dump(mode="json")
        return plain | {"parties": {party["name"]: party for party in plain["parties"]}}

    def to_yaml(self) -> str:
        """The config as a YAML file."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def is_vertical(path: str | Path) -> bool:
    """Whether a YAML file describes a vertical federation: it has `parties`. False for what cannot be read."""
    try:
        data = read_yaml(path)
    except (OSError, ConfigError):
        return False
    return isinstance(data, dict) and "parties" in data


def is_vertical_run(folder: str | Path) -> bool:
    """Whether a folder holds the run of a vertical federation, or what was exported from one."""
    if (Path(folder) / "server" / "predictor.json").is_file():
        return True
    path = Path(folder) / "run.json"
    with sound(path):
        return path.is_file() and dict(json.loads(path.read_text(encoding="utf-8"))).get("kind") == "vertical"


def load_vertical(path: str | Path, seed: int | None = None) -> VerticalConfig:
    """Read a YAML file; paths in it are relative to the file (``~`` is the home of who reads it), and ``seed``
    overrides its seed.

    Raises:
        ConfigError: with every mistake at once.
    """
    return parse_vertical(read_yaml(path), Path(path).parent, seed)


def parse_vertical(data: Any, folder: Path | None = None, seed: int | None = None) -> VerticalConfig:
    """Validate plain data; relative paths are taken from ``folder``.

    Raises:
        ConfigError: with every mistake at once.
    """
    if not isinstance(data, dict):
        raise ConfigError([NO_MAPPING])
    if seed is not None:
        data = data | {"seed": seed}
    if folder is not None:
        data = _resolve(data, folder)
    found, problems = checked(VerticalConfig, data, _explain)
    if problems or found is None:
        raise ConfigError(problems)
    return found


def load_past_mistakes(path: str | Path) -> tuple[VerticalConfig | None, list[str]]:
    """As `load_vertical`, but mistakes are returned: with the config less the keys that are wrong, if that is one.

    Raises:
        ConfigError: if the file cannot be read.
    """
    data = read_yaml(path)
    if not isinstance(data, dict):
        return None, [NO_MAPPING]
    found, problems = checked(VerticalConfig, _resolve(data, Path(path).parent), _explain)
    # Parties are found by their names, so that of two with one name only one could be looked at.
    twice = found is not None and len({party.name for party in found.parties}) < len(found.parties)
    return None if twice else found, problems


NO_MAPPING = "The config must be a mapping with the key `parties`."
_FILES = {"train", "test", "model", "vectors"}


def _resolve(value: Any, folder: Path, key: str = "") -> Any:
    if isinstance(value, dict):
        return {k: _resolve(v, folder, str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [_resolve(v, folder, key) for v in value]
    if key not in _FILES or not isinstance(value, str) or value == "-":
        return value
    # A text encoder may also be the name of a model elsewhere; data that is not there is reported with its full path.
    path = folder / Path(value).expanduser()
    return str(path.resolve()) if key != "model" or value.startswith("~") or path.exists() else value


_SECTIONS: dict[str, type[BaseModel]] = {
    "method": MethodConfig, "align": Align, "label": Label, "parties": PartyConfig, "encoder": EncoderConfig,
    "training": Training, "evaluation": Evaluation, "exposure": Exposure, "network": VerticalNetwork,
}  # fmt: skip


def _explain(error: Any, where: str) -> str:
    """One line for one mistake, in the words of the YAML file."""
    place = [str(step) for step in error["loc"]]
    if error["type"] == "extra_forbidden":
        owner: type[BaseModel] = VerticalConfig
        for step in place[:-1]:
            owner = _SECTIONS.get(step, owner)
        near = difflib.get_close_matches(place[-1], list(owner.model_fields), 1, 0.5)
        hint = f" Did you mean `{near[0]}`?" if near else f" Known keys: {', '.join(owner.model_fields)}."
        return f"{where}: unknown key.{hint}"
    return f"{where}: {in_words(error)}"
