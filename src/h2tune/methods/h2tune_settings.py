"""The settings of H2Tune, the keys beside ``name: h2tune`` in ``method:``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from h2tune.methods.base import Settings


class H2TuneSettings(Settings):
    frames: Literal["anchor", "words", "glossary", "weights", "random"] = Field(
        "anchor",
        description="`words`: practised on public codes of words, for tasks that choose among labels;"
        " `glossary`: public terms and practice problems; `weights` (singular vectors of the base) and"
        " `random`: no common frames (ablations)",
    )
    slots: list[Literal["q", "k", "v", "o", "gate", "up", "down"]] | None = Field(
        None, description="slots that are adapted and shared; by default all (`frames: words`: o, up, down, tied)"
    )
    codes: str = Field("builtin", description="word vectors for `frames: words`: `builtin`, or a text file")
    text_column: str | None = Field(
        None, description="the task's column that holds the text (`frames: words`); by default what its prompt reads"
    )
    practice_steps: int = Field(1800, ge=1, description="updates of practice (`frames: words`)")
    ridge: float = Field(0.0, ge=0, description="pull of the core towards 0, divided by the client's examples")
    practice_rate: float = Field(3e-3, gt=0, description="learning rate of A and B in practice")
    share: bool = Field(True, description="`false`: frames and phases, but nothing is averaged (an ablation)")
    alternation: Literal["step", "part", "joint"] = Field(
        "step", description="phases by update, by part of a round, or none"
    )
    shared_part: float = Field(0.5, gt=0, lt=1, description="share of a round's updates that the shared phase gets")
    relation: Literal["depth", "nearest", "similarity"] = Field("depth", description="start of P")
    train_relation: bool = Field(True, description="train P with S")
    depth_frames: Literal["procrustes", "none"] = Field("procrustes", description="common coordinates along depth")
    mask: Literal["dims", "entries"] = Field(
        "dims", description="what `keep` keeps: leading coordinates or learned entries"
    )
    proximal: float = Field(0.0, ge=0, description="mu, pull of the core towards the server's")
    distill: float = Field(
        0.0, ge=0, description="lambda, pull of the specific phase towards the shared one's answers"
    )
    directions: int = Field(4, ge=1, description="directions kept of each input and output, in multiples of the rank")
    train_factors: bool = Field(
        True, description="`false`: A and B stay at the frames, only the core (and a head, and `private`) learn"
    )
    private: int = Field(
        0, ge=0, description="coordinates beside the frames: a LoRA of this rank that no core can disturb"
    )
    train_private: bool = Field(True, description="`false`: private coordinates learn in practice only")
    accept: Literal["always", "validation"] = Field(
        "always",
        description="`validation`: a client takes the received core, its own, or their mean, by validation loss",
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

    @property
    def adapter_slots(self) -> list[str] | None:
        # The private LoRA of frames by words sits on all maps, the core on a few.
        return None if self.frames == "words" else self.slots  # type: ignore[return-value]


class UnsharedSettings(H2TuneSettings):
    share: bool = Field(False, description="nothing is averaged")
