"""Notes on the user's data are shown as a sentence, once."""

from __future__ import annotations

import warnings

import pytest

from h2tune.utils.logging import quiet_libraries


def test_a_note_is_shown_once_however_many_clients_meet_it(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        quiet_libraries()
        warnings.simplefilter("always")
        for text in ("two rows repeat", "two rows repeat", "three rows repeat"):
            warnings.warn(text, stacklevel=1)
    assert capsys.readouterr().err == "note: two rows repeat\nnote: three rows repeat\n"
