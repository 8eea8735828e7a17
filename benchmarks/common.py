"""What the benchmarks share: an interval for medians, a table on the screen, JSON beside it."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def median_interval(values: list[float]) -> tuple[float, float, float]:
    """Median and a 95 % interval for it from order statistics."""
    ordered, n = sorted(values), len(values)
    half = 0.98 * math.sqrt(n)
    low, high = max(0, math.floor(n / 2 - half)), min(n - 1, math.ceil(n / 2 + half))
    return statistics.median(ordered), ordered[low], ordered[high]


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


def write(name: str, result: dict[str, Any]) -> None:
    """Keep a result under benchmarks/results/, with the command and the circumstances that it was made in."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"command": command()} | circumstances() | result, indent=1) + "\n")
    print(f"wrote {path}")
