"""Pages of HTML: no script, no external resource, and a policy in each that forbids both (`base.html`).

All that is filled in is untrusted text, and escaped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from h2tune.report.format import FILTERS
from h2tune.utils.files import write_atomic


def fill(template: str, *, name: str, kind: str, **values: Any) -> str:
    """A page as text.

    Args:
        template: a file of this folder that extends ``base.html``.
        name: what the page is about. kind: what it is; both stand in its title.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # kept out of the command line's start-up

    env = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    env.filters |= FILTERS
    return env.get_template(template).render(name=name, kind=kind, **values)


def write_page(path: Path, page: str) -> Path:
    """Write a page in one go, so that a browser never sees half of it; half characters become question marks.

    Raises:
        StoreError: it cannot be written.
    """
    write_atomic(path, page.encode("utf-8", errors="replace"))
    return path
