"""The committed pages are the generated ones."""

from __future__ import annotations

from pathlib import Path

from generate_docs import methods, reference, vertical

DOCS = Path(__file__).parents[1] / "docs"


def test_generated_pages_are_current() -> None:
    pages = (("configuration", reference()), ("vertical-configuration", vertical()), ("methods", methods()))
    for name, page in pages:
        assert (DOCS / f"{name}.md").read_text(encoding="utf-8") == page, "run: python scripts/generate_docs.py"
