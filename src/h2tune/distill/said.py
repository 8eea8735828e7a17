"""What a student says of a phase, read strictly."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from h2tune.errors import ProtocolError
from h2tune.protocol.schemas import Count, Text

Move = tuple[Annotated[list[Count], Field(max_length=4096)], Annotated[float, Field(ge=0, le=1)]]


class Learnt(BaseModel):
    """What became of the paths that a student was given.

    Attributes:
        learnt: paths that it learnt from. refused: others, by reason. kept: share of what it learnt that it kept, None
            where there was nothing. moves: of each batch its questions and its mean sigma(beta (Delta+ - Delta-)), and level, mean 1/n on
            fixed questions after the round and before its phase (both for `bandit`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    learnt: Count
    refused: dict[Text, Count] = Field(max_length=20)
    kept: Annotated[float, Field(ge=0, le=1)] | None
    moves: Annotated[list[Move], Field(max_length=4096)] = []
    level: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]] | None = None


def read_learnt(value: object) -> Learnt:
    """Raises ProtocolError naming what is wrong with it."""
    try:
        return Learnt.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ProtocolError(f"what it says of its phase cannot be read: {place or 'learnt'}: {first['msg']}") from None
