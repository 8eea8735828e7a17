"""The limits on files and functions: what breaks them, and the comment that excuses a long function."""

from __future__ import annotations

from pathlib import Path

import pytest
from check_sizes import main, problems


def function(name: str, lines: int, above: str = "") -> str:
    return f"{above}def {name}() -> None:\n" + "    print()\n" * (lines - 1)


def test_a_long_file_and_a_long_function_are_found(tmp_path: Path) -> None:
    (tmp_path / "short.py").write_text("x = 1\n" * 400 + "\n")
    (tmp_path / "ok.py").write_text(function("f", 45))
    assert [line.rsplit("/", 1)[1] for line in problems(tmp_path)] == ["short.py: 401 lines, at most 400"]
    (tmp_path / "short.py").write_text(function("g", 46))
    assert [line.rsplit("/", 1)[1] for line in problems(tmp_path)] == [
        "short.py:1: g has 46 lines, over 45: say why in a comment above"
    ]


def test_a_reason_stands_above_the_decorators(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(function("f", 60, "# A table of options.\n@staticmethod\n"))
    assert problems(tmp_path) == []
    (tmp_path / "a.py").write_text(function("f", 60, "@staticmethod\n"))
    assert len(problems(tmp_path)) == 1


def test_no_more_than_ten_long_functions(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("\n".join(function(f"f{i}", 50, "# Why.\n") for i in range(7)))
    (tmp_path / "b.py").write_text("\n".join(function(f"f{i}", 50, "# Why.\n") for i in range(3)))
    assert problems(tmp_path) == []
    (tmp_path / "b.py").write_text("\n".join(function(f"f{i}", 50, "# Why.\n") for i in range(4)))
    assert problems(tmp_path) == [f"{tmp_path}: 11 functions over 45 lines, at most 10"]


def test_a_folder_without_files_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        monkeypatch.setattr("sys.argv", ["check_sizes.py", str(folder)])
        with pytest.raises(SystemExit, match="there is no Python file to check"):
            main()
