"""What all parties of a run must hold alike; the active party says it when they join.

It travels as a text, which parties of an earlier version pass over; an unknown tensor or plain value they would refuse.
"""

from __future__ import annotations

import json

from h2tune.agreed import check_agreed
from h2tune.errors import ProtocolError
from h2tune.protocol.codec import Payload
from h2tune.vertical.config import VerticalConfig

AGREED = "agreed"


def settings(config: VerticalConfig) -> dict[str, list[str]]:
    """The values that every party acts by, as a message holds them."""
    plain = config.model_dump(mode="json", include={"seed", "rounds", "training"})
    plain["method"] = config.method.model_dump(mode="json")
    if config.method.unseen == "described":  # the kit of a passive party does not say so
        plain["method"]["unseen"] = "named"
    plain["align"], plain["exposure"] = {"how": config.align.how}, {"min_count": config.exposure.min_count}
    return {AGREED: [json.dumps(plain)]}


def check_settings(config: VerticalConfig, payload: Payload) -> None:
    """Raise ProtocolError unless a party's kit holds what the active party says. An older active party says nothing."""
    for text in payload.texts.get(AGREED, []):
        try:
            theirs = json.loads(text)
        except (ValueError, RecursionError):
            raise ProtocolError("the settings of the active party cannot be read") from None
        check_agreed(json.loads(settings(config)[AGREED][0]), theirs)
