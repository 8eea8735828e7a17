"""The experiment as typed, validated data: what a YAML file may say, with its defaults and their reasons."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from h2tune.config.conflicts import Agreeing, Conflict
from h2tune.utils.sizes import parse_size


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Budget(_Strict):
    """What a client can afford; with ``keep: auto`` the share of the core is derived from it."""

    upload: str | None = Field(None, description="most bytes that it sends in a round, for example 200kB")
    memory: str | None = Field(None, description="most memory for adapter and optimiser, for example 2GB")
    step_ms: float | None = Field(
        None, gt=0, description="most milliseconds for a training step, measured at the start"
    )

    @field_validator("upload", "memory")
    @classmethod
    def _size(cls, value: str | None) -> str | None:
        if value is not None:
            parse_size(value)
        return value


class RowPrivacy(_Strict):
    """Differential privacy of a client's single training rows (docs/privacy.md); the client alone decides and accounts."""

    clip: float = Field(gt=0, description="largest norm of one row's gradient; longer ones are scaled down")
    noise: float | None = Field(
        None,
        ge=1e-3,
        description="noise multiplier: noise on a batch's sum has deviation `noise` x `clip`; by default what `epsilon` asks for",
    )
    delta: float = Field(1e-5, gt=0, lt=1, description="failure probability; choose it below 1 / number of rows")
    epsilon: float | None = Field(
        None,
        gt=0,
        description="privacy budget: no update is made that would exceed it; without `noise`, noise follows",
    )

    @model_validator(mode="after")
    def _noise_or_budget(self) -> RowPrivacy:
        if self.noise is None and self.epsilon is None:
            raise ValueError("row_privacy needs `epsilon` (a budget) or `noise` (a multiplier)")
        return self


class ClientConfig(_Strict, Agreeing):
    """One participant: its model, its task, its data."""

    name: str = Field(description="name of the client, unique", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    model: str = Field(description="`zoo:` name, Hugging Face name, or local folder")
    revision: str | None = Field(None, description="commit of a Hub model; without it the model may change under you")
    trust_remote_code: bool = Field(False, description="run Python that the model's authors ship")
    slots: dict[str, str] | None = Field(None, description="slot to module, for families that are not known")
    quantization: Literal["none", "8bit", "4bit"] = Field(
        "none", description="load the base in 8 or 4 bits (bitsandbytes)"
    )
    task: str | dict[str, Any] = Field(description="a preset (`h2tune tasks`), or a mapping")
    train: str = Field(description="training data: a file, a folder, a dataset name or `demo:...`")
    test: str = Field(description="test data, only used for scoring")
    validation: str | None = Field(
        None, description="validation data; by default a tenth of `train`, at least 20 rows"
    )
    practice: str | None = Field(
        None,
        description="public practice problems for `frames: glossary`; for `frames: words` public texts of this client's own,"
        " one a line, or two with a tab between them (docs/frames.md)",
    )
    columns: dict[str, str] | None = Field(None, description="your column names, if they differ: {theirs: yours}")
    part: str | None = Field(
        None,
        pattern=r"^[1-9][0-9]*/[1-9][0-9]*$",
        description="take part i of n of `train`, as `1/3`: parts share no row",
    )
    n_train: int | None = Field(None, ge=1, description="use only this many training rows (a seeded sample)")
    n_test: int | None = Field(None, ge=1, description="use only this many test rows (a seeded sample)")
    keep: float | Literal["auto"] = Field(1.0, description="share of the core that it trains and sends, in (0, 1]")
    budget: Budget | None = Field(None, description="for `keep: auto`")
    joins: int = Field(
        1, ge=1, description="first round that it takes part in; a client that joins late starts from the current core"
    )
    max_length: int | None = Field(None, ge=8, description="longest example in tokens; by default the model's context")
    truncate: bool = Field(False, description="cut longer examples instead of refusing them")
    learning_rate: float | None = Field(None, gt=0, description="overrides `training.learning_rate`")
    row_privacy: RowPrivacy | None = Field(
        None, description="differential privacy of its rows: {clip, epsilon, delta}"
    )

    @field_validator("keep")
    @classmethod
    def _keep(cls, value: float | str) -> float | str:
        if isinstance(value, float) and not 0 < value <= 1:
            raise ValueError(f"keep must lie in (0, 1], got {value}")
        return value

    @field_validator("part")
    @classmethod
    def _part(cls, value: str | None) -> str | None:
        if value is not None:
            number, count = map(int, value.split("/"))
            if number > count:
                raise ValueError(f"there is no part {number} of {count}")
        return value

    def conflicts(self) -> Iterator[Conflict]:
        if self.keep == "auto" and self.budget is None:
            line = "keep: auto needs a budget: {upload: ..., memory: ..., step_ms: ...}"
            yield Conflict(line, (("keep",), ("budget",)))
        if self.budget is not None and self.keep != "auto":
            yield Conflict("budget has no effect without keep: auto", (("budget",), ("keep",)))


class Training(_Strict):
    """Local training, the same for every client unless it says otherwise."""

    steps: int = Field(30, ge=1, description="optimiser updates per client and round")
    batch_size: int = Field(16, ge=1, description="examples per batch")
    accumulation: int = Field(1, ge=1, description="batches per update")
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="for A, B and a head (and the whole adapter in `local`); by default 0.002 for models of the zoo,"
        " 0.0003 for all others",
    )
    core_learning_rate: float = Field(
        2e-2,
        gt=0,
        description="for S, P and M; with `core_rule: gradient`, which `h2tune` has by default, the length of a step of S",
    )
    weight_decay: Literal[0] | float = Field(0.0, ge=0, description="for a head only; S, A and B have none")
    schedule: Literal["constant", "linear", "cosine"] = Field("cosine", description="over all rounds")
    warmup: float = Field(0.03, ge=0, lt=1, description="share of all updates in which the rate rises")
    clip: float = Field(1.0, gt=0, description="largest gradient norm; a large number such as 1e9 limits nothing")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="of the forward pass")
    checkpointing: bool = Field(False, description="recompute activations instead of keeping them")
    dropout: float = Field(0.0, ge=0, lt=1, description="on the input of A")
    label_bias: bool = Field(
        True,
        description="fit a private bias of the labels before round 1, where answers are chosen (`kind: choice`) and all rows"
        " offer the same options",
    )
    head_steps: int = Field(30, ge=0, description="updates of a classification head before round 0")

    @field_validator("clip", mode="before")
    @classmethod
    def _clip(cls, value: Any) -> Any:
        if value == math.inf:  # the natural word for no limit, but a run's files hold JSON, which has none
            raise ValueError("should be a finite number; to limit nothing, write a large one such as 1e9")
        return value

    def rate_of(self, client: ClientConfig) -> float:
        """A client's learning rate: its own, else that of all, else what suited models like its own (docs/settings.md)."""
        usual = 2e-3 if client.model.startswith("zoo:") else 3e-4
        return client.learning_rate or self.learning_rate or usual


class MethodChanges(BaseModel):
    """What is different when `h2tune compare` runs a method: these, and settings of the method itself."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)
    rank: int | None = Field(None, ge=1)
    depth: int | None = Field(None, ge=1)
    learning_rate: float | None = Field(None, gt=0)
    core_learning_rate: float | None = Field(None, gt=0)


class Cache(_Strict):
    """Where hidden states of texts are kept when only the top `blocks` are adapted (docs/prefix.md)."""

    memory: str = Field("1GB", description="most memory, for all base models of a process together")
    disk: str = Field("4GB", description="most disk for each process, in the run's folder; `0B` keeps nothing there")

    @field_validator("memory", "disk")
    @classmethod
    def _size(cls, value: str) -> str:
        parse_size(value)
        return value


class Evaluation(_Strict):
    """When and on how much data clients are scored."""

    every: int = Field(1, ge=1, description="score validation data every this many rounds")
    curves: bool = Field(False, description="also score test data then, for the curves; no choice is ever based on it")
    batch_size: int = Field(64, ge=1, description="examples that are scored in one pass")
    n_validation: int | None = Field(200, ge=1, description="at most this many validation rows")


class SecureAggregation(_Strict):
    """The server learns the sum of the clients' cores, and no single one (docs/privacy.md)."""

    threshold: int | None = Field(
        None, ge=2, description="clients that must help to reveal a sum; by default more than two thirds of a round's"
    )


class NetworkConfig(_Strict):
    """Where clients reach the server, and how long it waits for them. Runs in one process heed `limit` alone."""

    host: str = Field(
        "localhost", description="name of the server's machine; its certificate holds it, and clients connect to it"
    )
    port: int = Field(8443, ge=1, le=65535, description="port that the server listens on")
    deadline: float = Field(
        3600, gt=0, description="seconds that a client has to answer; a slower one misses the round"
    )
    silence: float = Field(30, gt=0, description="seconds without contact after which a client counts as away")
    gather: float = Field(600, gt=0, description="seconds to wait for all clients at the start")
    patience: float = Field(
        86400, ge=0, description="seconds to wait in the middle of a run until enough clients for the quorum are back"
    )
    limit: str = Field(
        "1GB", description="largest message, at least 64KB; larger ones are refused, and those above 2GB always"
    )

    @field_validator("limit")
    @classmethod
    def _limit(cls, value: str) -> str:
        if parse_size(value) < 64_000:
            raise ValueError("must be at least 64KB")
        return value

    @property
    def largest(self) -> int:
        """Bytes of the largest message. Frames between our process and the engine's end at 2 GiB."""
        return min(parse_size(self.limit), 2_000_000_000)


class Wire(_Strict):
    """How cores travel; by default in full."""

    dtype: Literal["float32", "bfloat16", "int8"] = Field(
        "float32", description="of uploads; below `float32` what rounding loses is sent in later rounds"
    )
    top_k: float | None = Field(
        None,
        gt=0,
        le=1,
        description="share of a client's entries, the largest of its update, that it sends in a round",
    )
    download: Literal["float32", "bfloat16"] = Field("float32", description="of what the server sends")


class Privacy(_Strict):
    """Differential privacy of clients (docs/privacy.md): what is published of the core says little about any one."""

    clip: float = Field(gt=0, description="largest norm of a client's update in a round; longer ones are scaled down")
    noise: float = Field(
        ge=1e-3,
        description="noise multiplier: the noise on the sum of updates has standard deviation `noise` x `clip`",
    )
    delta: float = Field(
        1e-5, gt=0, lt=1, description="failure probability of the guarantee; choose it below 1 / number of clients"
    )
    epsilon: float | None = Field(
        None, gt=0, description="privacy budget: the run ends before the round that would exceed it"
    )


class PublicQuestions(_Strict):
    """Questions that everybody may read, on which `method: lada` lets models exchange reasoning (docs/lada.md)."""

    source: str = Field(description="a file, a folder, `hub:owner/name` or `demo:...`, as a client's `train`")
    task: str | dict[str, Any] = Field(description="how its rows are read and answers are judged; a generating task")
    columns: dict[str, str] | None = Field(None, description="column names, if they differ: {theirs: yours}")
    limit: int | None = Field(None, ge=1, description="use only so many of them; everybody takes the same")


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,127}$")]


class Experiment(_Strict, Agreeing):
    """A whole federation."""

    name: Name = Field("federation", description="shown in reports; part of the run's identity")
    seed: int = Field(0, ge=0, description="all random choices are derived from it")
    rounds: int = Field(5, ge=1, description="communication rounds")
    method: str | dict[str, Any] = Field("h2tune", description="name, or {name: ..., and its own settings}")
    rank: int = Field(16, ge=1, description="R, the side of the core's matrices")
    depth: int | None = Field(None, ge=1, description="L, the core's depth; by default the deepest client's")
    blocks: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of a model's blocks, from the top, that are adapted; what the blocks below say of a text is"
        " computed once and kept (docs/prefix.md)",
    )
    anchors: str = Field("builtin", description="`builtin`, `demo`, or a text file, one sentence a line")
    anchor_words: str | None = Field(None, description="a file of the domain's words; sentences are built around them")
    public: PublicQuestions | None = Field(None, description="public questions, for `method: lada`; by default none")
    clients: list[ClientConfig] = Field(min_length=1, description="the participants")
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    cache: Cache = Cache()
    network: NetworkConfig = NetworkConfig()
    weights: Literal["examples", "uniform"] = Field("examples", description="weight of a client in the mean")
    wire: Wire = Wire()
    secure_aggregation: SecureAggregation | None = Field(None, description="sums only; by default none")
    privacy: Privacy | None = Field(None, description="differential privacy of clients; by default none")
    participation: float = Field(1.0, gt=0, le=1, description="share of the clients that a round selects")
    quorum: int = Field(1, ge=1, description="updates without which a round is not committed")
    patience: int | None = Field(None, ge=1, description="stop after so many rounds without a better mean validation")
    baseline: str | list[str] = Field(
        "none",
        description="methods to run beside this one: `local` trains every client alone, `h2tune-unshared` exchanges no cores",
    )
    methods: dict[str, MethodChanges] = Field(
        {},
        description="for `h2tune compare`: by method, its own settings and `rank`, `depth`, `learning_rate`, `core_learning_rate`",
    )
    select: Literal["federated", "best"] = Field(
        "federated", description="`best` keeps whichever adapter validates better: federated or trained alone"
    )
    parallel: int | Literal["auto"] = Field(
        1,
        description="clients on one base model that train side by side in one pass of it, where clients share a process"
        " (docs/scale.md); `auto` takes as many as fill a pass; equal to one after the other up to rounding",
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|mps|(cuda|xpu|hpu|npu)(:\d+)?)$",
        description="`auto`, `cpu`, `cuda`, `cuda:1`, ...",
    )
    tracking: list[Literal["tensorboard", "wandb", "mlflow"]] = Field([], description="also log metrics there")

    @field_validator("parallel")
    @classmethod
    def _parallel(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError(f"parallel must be 1 or more, or auto; got {value}")
        return value

    def conflicts(self) -> Iterator[Conflict]:
        names = [client.name for client in self.clients]
        for name in sorted({n for n in names if names.count(n) > 1}):
            yield Conflict(f"two clients have the name {name!r}; names must be unique")
        if self.quorum > len(names):
            yield Conflict(f"quorum {self.quorum} can never be met by {len(names)} clients", (("quorum",),))
        elif self.quorum > self.clients_per_round:
            line = f"quorum {self.quorum} can never be met: a round selects {self.participation:.0%} of the clients"
            yield Conflict(line, (("quorum",), ("participation",)))
        if self.select == "best" and "local" not in self.baselines:
            yield Conflict("select: best needs baseline: local", (("select",), ("baseline",)))
        for i, client in enumerate(self.clients):
            if client.joins > self.rounds:
                line = f"{client.name} would never take part: it joins in a round after the last, {self.rounds}"
                yield Conflict(line, (("clients", i, "joins"), ("rounds",)))
            yield from (conflict.inside("clients", i, of=f"{client.name}: ") for conflict in client.conflicts())

    @property
    def clients_per_round(self) -> int:
        """How many clients a round selects, if all take part."""
        return max(1, round(self.participation * len(self.clients)))

    @property
    def secure_threshold(self) -> int | None:
        """Clients that must help to reveal a sum: more than two thirds of a round's, unless the file says otherwise.

        None without secure aggregation.
        """
        if self.secure_aggregation is None:
            return None
        return self.secure_aggregation.threshold or 2 * self.clients_per_round // 3 + 1

    @property
    def baselines(self) -> list[str]:
        """Methods to run beside the experiment's own."""
        named = [self.baseline] if isinstance(self.baseline, str) else self.baseline
        return [name for name in named if name != "none"]

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
