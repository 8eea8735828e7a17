"""LaDa: reasoning flows between a large model and small ones, and each gets what it can learn (arXiv 2602.18749).

    a round    everybody answers public questions; the server allocates paths to each student by what it can learn from
               this teacher now; then the host's round, in which a student learns from its paths beside its own data
    filter     h2tune.distill.learnability (this project's), or the published bandit as reconstructed (h2tune.distill.bandit)
    loss       h2tune.distill.paths: contrast of whole paths, no token alignment

The paper's code and its formulas could not be had: both the default and `lada-published` are reconstructions from what is
said of the paper, of its authors' sibling methods, and of what it must do (docs/lada.md says which is which).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from h2tune.methods.adapter_client import AdapterClient
from h2tune.methods.base import Method, MethodError, Settings
from h2tune.methods.registry import resolve_method
from h2tune.utils.sizes import parse_size

Filter = Literal["gap", "bandit", "band", "random", "all", "teacher-loss", "student-loss", "gold"]


class LadaSettings(Settings):
    """What is exchanged, what of it a student is given, and how it learns from it (docs/lada.md)."""

    host: dict[str, Any] = Field({"name": "local"}, description="the method that LaDa is added to, with its settings")
    teacher: str = Field("", description="name of the client with the large model")
    filter: Filter = Field(
        "gap",
        description="what a student is given: `gap` by what it can learn now, `bandit` as published, `band` by its share of right"
        " answers; for comparison `random`, `teacher-loss`, `student-loss` (as many bytes as `gap`), `all`, and `gold`:"
        " the reference answers, no teacher",
    )
    directions: Literal["both", "down", "up", "none"] = Field(
        "both", description="`down` teacher to students, `up` students to teacher; `none` is the host"
    )
    slice: int = Field(128, ge=1, description="public questions of a round")
    budget: str = Field("16KB", description="bytes of paths that a student is given in a round; it adapts")
    explore: float = Field(0.1, ge=0, lt=1, description="share of the budget that goes to random others")
    part: float = Field(0.5, gt=0, lt=1, description="share of a round's updates that learn from paths too")
    samples: int = Field(1, ge=1, le=16, description="paths that a model tries for each question; 1 is greedy")
    paths: int = Field(
        1,
        ge=1,
        le=16,
        description="paths sent on a question, where that many of the samples are right and differ; a student then learns how"
        " likely they are beside each other",
    )
    temperature: float = Field(0.7, gt=0, description="of sampling, with 2 samples or more")
    domain: bool = Field(True, description="prefer questions that became likelier under the student's own data")
    weight: float = Field(0.3, ge=0, description="lambda, weight of what is learnt from paths")
    contrast: float = Field(
        1.0, ge=0, description="mu, weight of the contrastive loss beside the likelihood of the path"
    )
    anchor: float = Field(1.0, ge=0, description="weight of that likelihood")
    beta: float = Field(0.1, gt=0, description="sharpness of the contrast")
    margin: float | None = Field(3.0, ge=0, description="by how much a right path should win; `null`: no bound")
    tau: float = Field(1.0, gt=0, description="temperature of the teacher's preference among its own paths")
    gamma: float = Field(0.0, ge=0, le=1, description="exponent of the length by which log-likelihoods are divided")
    reducible: bool = Field(True, description="count only the part of a loss that the teacher shows to be reducible")
    solved: bool = Field(
        True, description="of `gap`: whether paths count on questions that the student itself answers right"
    )
    gate: bool = Field(True, description="a student checks every path itself: right, and better than its own loss")
    accept: bool = Field(
        True, description="keep of what a phase taught all, half or nothing, whichever validates best"
    )
    alpha: float = Field(0.5, ge=0, le=1, description="of `bandit`: weight of the round's reward against the batch's")
    phase: Literal["specific", "shared"] = Field(
        "specific", description="host h2tune: whether paths train the private part or the core"
    )

    @field_validator("budget")
    @classmethod
    def _size(cls, value: str) -> str:
        if parse_size(value) < 1:
            raise ValueError("must be at least 1 byte; `directions: none` gives no paths to anybody")
        return value

    @field_validator("host", mode="before")
    @classmethod
    def _in_a_word(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("host")
    @classmethod
    def _a_host(cls, value: dict[str, Any]) -> dict[str, Any]:
        if "name" not in value:
            raise ValueError(
                "name: is missing; write which method LaDa is added to, for example `host: {name: local}`"
            )
        try:
            method, _ = resolve_method(value)
        except MethodError as error:
            # Its lines name the method's keys; here they are the host's.
            lines = (line.removeprefix("method.").removeprefix("method: ") for line in str(error).splitlines())
            raise ValueError("\nmethod.host: ".join(lines)) from None
        if not getattr(method.client, "hosts", False):
            raise ValueError(f"{method.name} cannot be a host: its rounds have no room for other updates")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> LadaSettings:
        if self.anchor == 0 and self.contrast == 0:
            raise ValueError("anchor and contrast are both 0, so nothing would be learnt from paths")
        host, inner = resolve_method(self.host)
        assert issubclass(host.client, AdapterClient)  # what can be a host is one
        if self.phase not in (known := host.client.phases_of(inner)):
            raise ValueError(
                f"phase: with these settings {host.name} trains nothing in it; phases there: {', '.join(known)}"
            )
        if self.paths > self.samples:
            raise ValueError(
                f"paths: {self.paths} paths on a question are chosen among {self.samples} samples; raise samples"
            )
        if self.filter == "band" and self.samples < 2:
            raise ValueError("filter: band counts how many of several answers are right; it needs samples: 4 or so")
        return self

    @property
    def host_method(self) -> tuple[Method, Any]:
        """The host and its settings; where it learns from public texts, those of a round are the round's questions."""
        method, settings = resolve_method(self.host)
        if self.directions != "none" and getattr(method.client, "reads_public", False):
            settings = settings.model_copy(update={"sentences": self.slice})
        return method, settings

    @property
    def inner(self) -> Settings:
        found: Settings = self.host_method[1]
        return found

    @property
    def asks_public(self) -> bool:
        return self.directions != "none"

    @property
    def adapter_slots(self) -> Sequence[str] | None:
        found: Sequence[str] | None = self.host_method[1].adapter_slots
        return found

    @property
    def bound(self) -> float:
        """M, the margin."""
        return math.inf if self.margin is None else self.margin

    @property
    def bytes(self) -> int:
        return parse_size(self.budget)

    def flows(self, teacher_learns: bool) -> bool:
        """Whether paths go up to the teacher, or down to a student."""
        return self.directions in ("both", "up" if teacher_learns else "down")


class PublishedSettings(LadaSettings):
    """`lada-published`: as far as the paper could be reconstructed."""

    filter: Filter = "bandit"
    weight: float = 1.0
    margin: float | None = None
    anchor: float = 0.0
    explore: float = 0.0
    gate: bool = False
    accept: bool = False
    domain: bool = False
