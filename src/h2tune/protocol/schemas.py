"""What clients say of themselves beside tensors, read strictly: a server must not stumble over one client's nonsense."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from h2tune.errors import ProtocolError
from h2tune.protocol.codec import Size

Text = Annotated[str, Field(max_length=300)]
Count = Annotated[int, Field(ge=0)]


class _Said(BaseModel):
    # What this version does not know is left out, so that a newer client can take part.
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class Scores(_Said):
    """Scores of a model on some rows."""

    metric: float
    nats: float


class FinalScores(Scores):
    """Scores at the end, with those on validation that a choice may rest on."""

    validation: float
    validation_nats: float


class RoundReport(_Said):
    """A round as a client saw it."""

    loss: dict[Text, float] = Field(max_length=20)
    validation: Scores | None = None
    test: Scores | None = None
    seconds: float = Field(ge=0)


class Introduction(_Said):
    """What a client's method says of its model before anything is set up; what is asked for depends on the method.

    The bounds are what no model reaches: the server makes room for a core of this depth.
    """

    model_config = ConfigDict(extra="allow", frozen=True)  # methods of others may say more

    depth: Annotated[int, Field(ge=1, le=512)] = 1
    slots: list[Literal["q", "k", "v", "o", "gate", "up", "down", "any", "pair"]] = []
    rank: Size = 1
    keep: float = Field(1.0, gt=0, le=1)
    family: Text = ""
    fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{0,64}$")] = ""
    digest: Text = ""
    maps: list[Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=2)]] = []


class ClientFacts(_Said):
    """What a client says when it joins."""

    model: Text
    family: Text
    task: Text
    kind: Text
    metric: Text
    n_train: Count
    n_validation: Count
    n_test: Count
    keep: float = Field(gt=0, le=1)
    unigram_nats: float | None = None  # none where answers are no text
    majority: float = Field(ge=0, le=1)
    leaked: Count | None = None
    anchor_coverage: float | None = None


def read(kind: type[_Said], value: Any) -> dict[str, Any]:
    """Plain values of what was said; raises ProtocolError naming what is wrong with it."""
    try:
        return kind.model_validate(value, strict=True).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(p) for p in first["loc"])
        what = WHAT[kind]
        raise ProtocolError(f"its {what} cannot be read: {place or what}: {first['msg']}") from None


WHAT: dict[type[_Said], str] = {
    ClientFacts: "facts",
    Introduction: "introduction",
    Scores: "scores",
    RoundReport: "report",
    FinalScores: "final scores",
}
