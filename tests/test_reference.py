"""The committed configuration reference is the generated one."""

from __future__ import annotations

from pathlib import Path

from h2tune.reference import reference


def test_configuration_page_is_current() -> None:
    page = Path(__file__).parents[1] / "docs" / "configuration.md"
    assert page.read_text() == reference(), "run: python -m h2tune.reference > docs/configuration.md"
