"""What the benchmarks share: an interval for medians, and results as JSON that say where they come from."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from h2tune.utils.files import write_atomic

RESULTS = Path(__file__).parent / "results"
NOT_OF_A_CELL = ("what", "seeds", "first", "methods", "settings", "name", "out", "write", "jobs", "device")
"""Options of the suites that choose among cells, or say where and by what machine they are made."""
ENOUGH = 6
"""Values from which on there is a 95 % interval for their median; of fewer, not even the whole range is one."""


def median_interval(values: list[float]) -> tuple[float, float, float]:
    """Median and a 95 % interval for it from order statistics; of fewer values than `ENOUGH`, the range.

    The k-th smallest and the k-th largest of n values have the median between them unless fewer than k values lie on one
    side of it: k is the largest for which that has a probability of at most 2.5 % a side, by the binomial distribution.
    """
    ordered, n = sorted(values), len(values)
    side = list(accumulate(math.comb(n, below) / 2**n for below in range(n)))
    k = max(1, sum(probability <= 0.025 for probability in side))
    return statistics.median(ordered), ordered[k - 1], ordered[n - k]


def interval_name(count: int) -> str:
    """What `median_interval` of so many values is."""
    return "95 % interval" if count >= ENOUGH else f"range of {count}"


def commit() -> str | None:
    """The commit of this code, marked where files differ from it; None outside a repository."""

    def git(*words: str) -> str:
        command = ["git", *words]
        return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout

    try:
        changed = git("status", "--porcelain", "--untracked-files=no").strip()
        return git("rev-parse", "HEAD").strip() + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def processor() -> str:
    """The processor's name as its maker writes it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def circumstances() -> dict[str, Any]:
    """What a figure depends on beside the code: when, on what, with how many threads."""
    return {
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
    }


def command() -> str:
    """The command that runs, from the project's folder; other folders of this machine by their last names."""
    root = Path(__file__).resolve().parents[1]
    script = Path(sys.argv[0]).resolve()
    shown = str(script.relative_to(root)) if script.is_relative_to(root) else f"benchmarks/{script.name}"
    rest = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return " ".join(["python", shown, *rest])


def about() -> dict[str, Any]:
    """The command and the circumstances of a figure."""
    return {"command": command()} | circumstances()


def read(path: Path) -> dict[str, Any]:
    """A result as it is; empty if there is none yet."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def amend(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """Change a result while no other process does; returns what is in it now.

    Args:
        change: gets what is there, and returns what is to be there: several processes may fill one file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        known = change(read(path))
        write_atomic(path, (json.dumps(known, indent=1) + "\n").encode())
    return known


def write(name: str, result: dict[str, Any]) -> None:
    """Keep a result under benchmarks/results/, with the command and the circumstances that it was made in."""
    path = RESULTS / f"{name}.json"
    amend(path, lambda known: about() | result)
    print(f"wrote {path}")


def settings_of(args: argparse.Namespace, *elsewhere: str) -> dict[str, Any]:
    """The options that a cell of a suite depends on, as JSON has them.

    Not among them are folders (of a model's the last part is enough), and what says which cells are made and where.

    Args:
        elsewhere: further options that a cell does not depend on.
    """
    of = {k: v for k, v in vars(args).items() if k not in (*NOT_OF_A_CELL, *elsewhere) and not isinstance(v, Path)}
    return {key: _named(json.loads(json.dumps(value))) for key, value in of.items()}


def _named(value: Any) -> Any:
    """A value without the folders of this machine."""
    if isinstance(value, list):
        return [_named(one) for one in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def refuse_others(cell: dict[str, Any], settings: dict[str, Any] | None, name: str) -> None:
    """End the process where a cell was made with other settings; older cells do not say theirs and are taken as they are."""
    known = cell.get("settings")
    if known is None or settings is None or known == settings:
        return
    odd = sorted(key for key in {*known, *settings} if known.get(key) != settings.get(key))
    told = ", ".join(f"{key}: {known.get(key)} there, {settings.get(key)} here" for key in odd)
    sys.exit(f"{name} was made with other settings ({told}): use these, or another name or folder for the result")
