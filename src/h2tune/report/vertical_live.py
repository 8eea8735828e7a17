"""The progress of a vertical run: a live table on a terminal, plain lines or JSON lines elsewhere."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

WIDE = 14  # classes up to which each has a column


class Progress:
    """Shows rounds as they are committed.

    Args:
        mode: `auto`, `plain`, `json` or `quiet`.
    """

    def __init__(self, parties: list[str], classes: list[str] | None, mode: str = "auto") -> None:
        self.console = Console(stderr=True)
        self.parties, self.classes = parties, classes
        self.mode = mode if mode != "auto" else "live" if self.console.is_terminal else "plain"
        self._live = Live(console=self.console, refresh_per_second=8) if self.mode == "live" else None
        if self._live:
            self._live.start()

    def round_done(self, record: dict[str, Any], rounds: int) -> None:
        """Show one round."""
        if self._live:
            self._live.update(self._table(record, rounds))
        elif self.mode == "json":
            sys.stdout.write(json.dumps({"event": "round", **record}) + "\n")
        elif self.mode == "plain" and ("test" in record or record["round"] in (1, rounds)):
            kept = ", ".join(f"{name} {share:.0%}" for name, share in record.get("kept", {}).items())
            test = f", balanced accuracy {100 * record['test']['balanced']:.1f} %" if record.get("test") else ""
            self.console.print(
                f"round {record['round']}/{rounds}: loss {record['loss']:.3f}{test}; rows kept: {kept}",
                highlight=False,
            )

    def message(self, text: str, level: str = "info") -> None:
        """Show a line."""
        if self.mode == "json":
            sys.stdout.write(json.dumps({"event": "message", "level": level, "text": text}) + "\n")
        if self.mode in ("live", "plain"):
            shown = text if level == "info" else f"{level}: {text}"
            self.console.print(shown, style="yellow" if level == "warning" else None, highlight=False, markup=False)

    def stop(self) -> None:
        """Leave the terminal as it is."""
        if self._live:
            self._live.stop()

    def _table(self, record: dict[str, Any], rounds: int) -> Table:
        test = record.get("test") or {}
        score = f", balanced accuracy {100 * test['balanced']:.1f} %" if test else ""
        table = Table(
            title=f"round {record['round']}/{rounds}, loss {record['loss']:.3f}{score}", title_justify="left"
        )
        table.add_column("party")
        table.add_column("rows kept", justify="right")
        counts = record.get("counts") or []
        names = (self.classes or [])[:WIDE]
        for name in names:
            table.add_column(name, justify="right")
        for k, party in enumerate(self.parties):
            share = record.get("kept", {}).get(party)
            row = [f"{n:.0f}" for n in counts[k][:WIDE]] if k < len(counts) else []
            table.add_row(party, "-" if share is None else f"{share:.0%}", *row)
        return table
