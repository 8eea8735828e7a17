"""What the benchmarks take from the package is there: nobody runs all of them, and a name that moved would stop one unseen."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(FOLDER.rglob("*.py"))


def imported(source: str) -> Iterator[tuple[str, str | None]]:
    """Modules of the package and names in them, wherever in a file they are imported."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "h2tune":
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names if alias.name.split(".")[0] == "h2tune")


def is_there(module: str, name: str | None) -> bool:
    if find_spec(module) is None:
        return False
    return name is None or hasattr(import_module(module), name) or find_spec(f"{module}.{name}") is not None


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_what_a_benchmark_imports_is_there(script: Path) -> None:
    def known(module: str, name: str | None) -> bool:
        try:
            return is_there(module, name)
        except ModuleNotFoundError:  # a parent of the module is gone, or is no package
            return False

    found = imported(script.read_text(encoding="utf-8"))
    missing = [f"{module}: {name}" for module, name in found if not known(module, name)]
    assert not missing


def test_imports_within_functions_are_seen() -> None:
    source = "import torch\ndef f():\n    from h2tune.client import Client, gone\n    import h2tune.nothing\n"
    found = list(imported(source))
    assert found == [("h2tune.client", "Client"), ("h2tune.client", "gone"), ("h2tune.nothing", None)]
    assert [is_there(*each) for each in found[:1]] == [True] and not is_there(*found[2])
