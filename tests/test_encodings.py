"""Files are UTF-8 whatever the locale: no text of ours is read or written without saying so."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import h2tune

ROOT = Path(h2tune.__file__).parent


def _mode(call: ast.Call) -> str:
    """The mode of a call of open(): of the builtin the second argument, of a path's method the first."""
    places = call.args[1:] if isinstance(call.func, ast.Name) else call.args[:1]
    given = [*places, *(k.value for k in call.keywords if k.arg == "mode")]
    texts = [node.value for node in given if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return texts[0] if texts else "r"


def silent(source: str) -> list[int]:
    """Lines that read or write text and leave the encoding to the locale."""
    found = []
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        said = any(keyword.arg == "encoding" for keyword in call.keywords)
        positional = {"read_text": 1, "write_text": 2}.get(name)
        opens = name == "open" and (isinstance(call.func, ast.Name) or _is_path_open(call))
        text = (opens and "b" not in _mode(call)) or (positional is not None and len(call.args) < positional)
        if text and not said:
            found.append(call.lineno)
    return found


def _is_path_open(call: ast.Call) -> bool:
    """A path's open() takes a mode; the stores' and servers' take objects, or nothing."""
    return bool(call.args) and isinstance(call.args[0], ast.Constant) and isinstance(call.args[0].value, str)


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_text_file_names_its_encoding(path: Path) -> None:
    assert silent(path.read_text(encoding="utf-8")) == []


def test_the_search_finds_what_it_should() -> None:
    bad = 'open("a")\nopen("a", "w")\np.open("r")\np.read_text()\np.write_text("x")\n'
    good = 'open("a", "rb")\np.open("wb")\np.read_text("utf-8")\np.write_text("x", "utf-8")\np.open("r", encoding="u")\nstore.open(x)\n'
    assert silent(bad) == [1, 2, 3, 4, 5]
    assert silent(good) == []
