from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `report_runs`, in every import mode of pytest


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run directory and returns it; `events` are dictionaries or raw lines."""

    def write(data: dict[str, Any], events: tuple[Any, ...] = (), config: str | None = "name: three-trades\n") -> Path:
        (tmp_path / "metrics.json").write_text(json.dumps(data))
        lines = [event if isinstance(event, str) else json.dumps(event) + "\n" for event in events]
        (tmp_path / "events.jsonl").write_text("".join(lines))
        if config is not None:
            (tmp_path / "config.yaml").write_text(config)
        return tmp_path

    return write
