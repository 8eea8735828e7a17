"""The settings of methods that share a core, the keys beside ``name: h2tune`` in ``method:``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from h2tune.errors import MethodError
from h2tune.frames.base import FRAMES, FrameSettings
from h2tune.frames.registry import kind_of


class CoreSettings(FrameSettings):
    """How a core is read by a client's blocks, kept within its budget, and combined at the server."""

    @field_validator("frames")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            kind_of(value)
        except MethodError as error:
            raise ValueError(str(error).removeprefix("method.frames: ")) from None
        return value

    @property
    def adapter_slots(self) -> Sequence[str] | None:
        return kind_of(self.frames).adapter_slots(self)

    @property
    def has_core(self) -> bool:
        return True

    relation: Literal["depth", "nearest"] = Field("depth", description="start of P")
    train_relation: bool = Field(True, description="train P with S")
    mask: Literal["dims", "entries"] = Field(
        "dims", description="what `keep` keeps: `dims` the leading coordinates, `entries` a learned choice"
    )
    aggregate: Literal["mean", "median", "trimmed", "krum", "multi-krum", "closest", "agreeing", "bounded"] = Field(
        "mean",
        description="how cores are combined: the mean, or a rule that bad clients cannot drag away (docs/robust.md)",
    )
    trim: float = Field(0.25, ge=0, lt=0.5, description="share of the clients that `trimmed` leaves out at either end")
    faulty: int | None = Field(
        None,
        ge=1,
        description="f, bad clients that krum, multi-krum and closest must survive; by default (n - 3) / 2, or n / 3",
    )
    radius: float | None = Field(
        None, gt=0, description="largest norm of an update under `bounded`; by default the median norm of the round"
    )


class AlternatingSettings(CoreSettings):
    """How a client trains a core and its own factors in turns, with the paper's choices where nothing is said."""

    alternation: Literal["step", "part", "rounds", "joint"] = Field(
        "step",
        description="phases by update, by part of a round, by rounds (the core learns in the first ones, beside the rest), or"
        " none",
    )
    shared_part: float = Field(
        0.5, gt=0, lt=1, description="share of a round's updates (of the rounds) that the shared phase gets"
    )
    core_rule: Literal["adamw", "gradient"] = Field(
        "adamw",
        description="how the core is stepped: AdamW, or steps of length `core_learning_rate` along its gradient (P stays)",
    )
    core_loss: Literal["answers", "labels"] = Field(
        "answers",
        description="what updates of the core (and `accept`) listen to: all of an answer, or, where answers are chosen and"
        " all rows offer the same options, what tells them apart",
    )
    ridge: float = Field(0.0, ge=0, description="pull of the core towards 0, divided by the client's examples")
    proximal: float = Field(0.0, ge=0, description="mu, pull of the core towards the server's")
    distill: float = Field(
        0.0, ge=0, description="lambda, pull of the specific phase towards the shared one's answers"
    )
    train_factors: bool = Field(
        True, description="`false`: A and B stay at the frames, only the core (and a head, and `private`) learn"
    )
    train_private: bool = Field(True, description="`false`: private coordinates learn in practice only")
    accept: Literal["always", "validation"] = Field(
        "always",
        description="`validation`: a client takes the received core, its own, their mean, or none, by validation loss",
    )

    @property
    def learns_factors(self) -> bool:
        """Whether anything of A and B is trained."""
        return self.train_factors or (self.private != 0 and self.train_private)

    def adapter_numbers(self, maps: Sequence[tuple[int, int, int]], rank: int, whole: int) -> tuple[int, int]:
        sizes, core = sum(d_in + d_out for d_in, d_out, _ in maps), rank**2 * sum(parts for *_, parts in maps)
        framed, private = rank * sizes, (whole if self.private is None else self.private) * sizes
        still = (0 if self.train_factors else framed) + (0 if self.train_private else private)
        return core + framed + private - still, still

    def phases(self, steps: int, number: int, rounds: int) -> list[str]:
        """The phase of each update of a round: ``shared``, ``specific`` or, at once, ``joint``."""
        if self.alternation == "joint":
            return ["joint"] * steps
        share = self.shared_part
        if self.alternation == "rounds":
            # Both learn from one backward pass there: an update that the core has is none that the rest lacks.
            first = max(1, round(share * rounds * steps)) if share * rounds < 1 else int(share * rounds) * steps
            return ["joint" if (number - 1) * steps + step < first else "specific" for step in range(steps)]
        if self.alternation == "part":
            cut = max(1, round(share * steps))
            return ["shared"] * cut + ["specific"] * (steps - cut)
        # Spread evenly: update n is shared whenever the count of shared updates falls behind its share.
        return [
            "shared" if int((n + 1) * share + 1 - share) > int(n * share + 1 - share) else "specific"
            for n in range(steps)
        ]


class H2TuneSettings(AlternatingSettings):
    """What nobody sets is as suits the frames: each kind of frames says what was measured to go well with it."""

    frames: str = Field("effect", description=FRAMES)

    @model_validator(mode="before")
    @classmethod
    def _as_suits_the_frames(cls, said: Any) -> Any:
        name = said.get("frames", cls.model_fields["frames"].default) if isinstance(said, dict) else None
        try:
            return {**kind_of(name).suited, **said} if isinstance(name, str) else said
        except MethodError:
            return said  # `frames` itself is refused, with the reason
