"""What the active party says of its settings, from whoever says it."""

from __future__ import annotations

import pytest
from vertical.tables import config

from h2tune.errors import ProtocolError
from h2tune.protocol.codec import Payload
from h2tune.vertical.agreed import AGREED, check_settings, settings


@pytest.mark.parametrize("text", ["", "{", "[" * 200_000])
def test_settings_that_cannot_be_read_are_refused(text: str):
    with pytest.raises(ProtocolError, match="settings of the active party cannot be read"):
        check_settings(config(), Payload(texts={AGREED: [text]}))


def test_the_salt_and_the_tables_are_not_told():
    told = settings(config(align={"salt": "a-secret-of-all-parties"}))[AGREED][0]
    assert "a-secret" not in told and 'train"' not in told
    check_settings(config(), Payload(texts={AGREED: [told]}))
