"""Run the commands of docs/quickstart.md and put what they print into the page, so that its output stays true.

    python scripts/run_quickstart.py       # about five minutes on two cores

Every ``sh`` block that a ``text`` block follows is run, in a folder that holds a copy of examples/.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "quickstart.md"
OF_A_COMPARISON = re.compile(r" +\S+/seed-|\[\d+/")  # how far it is, many lines long
PAIR = re.compile(r"```sh\n(?P<command>[^`]*)```\n\n```text\n(?P<output>.*?)```", re.DOTALL)


def output_of(command: str, folder: Path) -> str:
    """What an ``h2tune`` command prints in a terminal of 100 columns; raises CalledProcessError if it fails."""
    words = [sys.executable, "-m", *command.split()]
    surroundings = os.environ | {"COLUMNS": "100", "PYTHONPATH": str(ROOT / "src"), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(words, cwd=folder, env=surroundings, check=True, text=True, capture_output=True)
    said = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]  # libraries write there, too
    lines = [line.rstrip().replace(str(ROOT / "src"), "…") for line in [*done.stdout.splitlines(), *said]]
    return "".join(f"{line}\n" for line in lines if not OF_A_COMPARISON.match(line))


def refreshed(page: str, folder: Path) -> str:
    """The page with fresh output."""

    def run(match: re.Match[str]) -> str:
        command = match["command"].strip()
        print(command, flush=True)
        return f"```sh\n{match['command']}```\n\n```text\n{output_of(command, folder)}```"

    return PAIR.sub(run, page)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        shutil.copytree(ROOT / "examples", Path(name) / "examples")
        PAGE.write_text(refreshed(PAGE.read_text(encoding="utf-8"), Path(name)), encoding="utf-8")


if __name__ == "__main__":
    main()
