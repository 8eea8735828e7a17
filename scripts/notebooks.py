"""Run the example notebooks from top to bottom, without Jupyter.

    python scripts/notebooks.py                       # runs them and writes what they print into them
    python scripts/notebooks.py first_federation      # only this one

A cell's output is what it prints, and the value of its last line.
"""

from __future__ import annotations

import ast
import io
import json
import os
import sys
from contextlib import chdir, redirect_stdout
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parents[1] / "examples"


def execute(path: Path) -> dict[str, Any]:
    """The notebook with fresh outputs; whatever a cell raises is raised."""
    notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": "notebook"}
    with chdir(path.parent):
        for number, cell in enumerate(_code_cells(notebook), 1):
            text = _run("".join(cell["source"]), f"{path.name}, cell {number}", names)
            cell["execution_count"] = number
            cell["outputs"] = (
                [{"output_type": "stream", "name": "stdout", "text": text.splitlines(True)}] if text else []
            )
    return notebook


def _code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def _run(source: str, name: str, names: dict[str, Any]) -> str:
    tree = ast.parse(source, name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    said = io.StringIO()
    with redirect_stdout(said):
        exec(compile(tree, name, "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), name, "eval"), names)
            if value is not None:
                print(value)
    return said.getvalue()


def main() -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    there = {path.stem: path for path in sorted(EXAMPLES.glob("*.ipynb"))}
    if odd := sorted(set(sys.argv[1:]) - there.keys()):
        sys.exit(f"there is no notebook {', '.join(odd)}; there are {', '.join(there)}")
    for path in (there[name] for name in sys.argv[1:] or there):
        path.write_text(json.dumps(execute(path), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"ran {path.name}")


if __name__ == "__main__":
    main()
