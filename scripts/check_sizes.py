"""Files and functions stay short enough to read: `make lint` runs this.

    python scripts/check_sizes.py [FOLDER]

No file over 400 lines. At most 10 functions over 45 lines, each with a comment right above it (above its decorators)
that says why it is long.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

FILE_LINES, FUNCTION_LINES, LONG_FUNCTIONS = 400, 45, 10


def long_functions(source: str) -> Iterator[tuple[str, int, int, bool]]:
    """Name, first line, number of lines and "has its reason" of each function that is too long."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES:
                above = lines[first - 2] if first > 1 else ""
                yield node.name, node.lineno, length, above.strip().startswith("#")


def problems(folder: Path) -> list[str]:
    """Every breach of the limits in the folder's Python files, a line each."""
    found: list[str] = []
    number = 0
    for path in sorted(folder.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        if (count := len(source.splitlines())) > FILE_LINES:
            found.append(f"{path}: {count} lines, at most {FILE_LINES}")
        for name, line, length, reason in long_functions(source):
            number += 1
            if not reason:
                found.append(
                    f"{path}:{line}: {name} has {length} lines, over {FUNCTION_LINES}: say why in a comment above"
                )
    if number > LONG_FUNCTIONS:
        found.append(f"{folder}: {number} functions over {FUNCTION_LINES} lines, at most {LONG_FUNCTIONS}")
    return found


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "src")
    if next(folder.rglob("*.py"), None) is None:
        sys.exit(f"{folder}: there is no Python file to check")
    if found := problems(folder):
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
