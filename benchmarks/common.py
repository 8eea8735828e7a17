"""What the benchmarks share: an interval for medians, a table on the screen, JSON beside it."""

from __future__ import annotations

import json
import math
import platform
import statistics
import sys
from pathlib import Path
from typing import Any

import torch


def median_interval(values: list[float]) -> tuple[float, float, float]:
    """Median and a 95 % interval for it from order statistics."""
    ordered, n = sorted(values), len(values)
    half = 0.98 * math.sqrt(n)
    low, high = max(0, math.floor(n / 2 - half)), min(n - 1, math.ceil(n / 2 + half))
    return statistics.median(ordered), ordered[low], ordered[high]


def write(name: str, result: dict[str, Any]) -> None:
    """Keep a result with the command that made it under benchmarks/results/."""
    machine = {"processor": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    path = Path(__file__).parent / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    command = "python benchmarks/" + " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    path.write_text(json.dumps({"command": command, "machine": machine} | result, indent=1) + "\n")
    print(f"wrote {path}")
