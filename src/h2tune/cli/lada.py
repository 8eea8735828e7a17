"""The body of `h2tune demo --lada`: the same federation four times, and what each student has of it."""

from __future__ import annotations

import json
from pathlib import Path
from shlex import quote
from typing import Any

import typer

from h2tune.cli.output import print_scores
from h2tune.distill.demo import BESIDE, lada_demo
from h2tune.federation import run
from h2tune.participant.base_models import ModelPool
from h2tune.report import write_report
from h2tune.report.live import Progress
from h2tune.utils.logging import quiet_libraries


def demo(out: Path, seed: int, as_json: bool = False, **changes: Any) -> dict[str, dict[str, float]]:
    """Run LaDa with every client alone beside it, then with all samples and with random ones at equal bytes; a table of all.

    Args:
        out: folder for the run; the other runs lie under ``beside/`` in it.
        changes: keys of the experiment, for a shorter demo.

    Returns:
        Share of right answers by client and column.
    """
    quiet_libraries()
    models = ModelPool("cpu", out / "frames")
    found: dict[str, dict[str, float]] = {}
    for key, (heading, method) in ({"lada": ("LaDa", {})} | BESIDE).items():
        folder = out if key == "lada" else out / "beside" / key
        progress = Progress(mode="json" if as_json else "auto")
        if not as_json:
            typer.echo(f"\n{heading}")
        try:
            metrics = run(lada_demo(seed, method, **changes), folder, watcher=progress, models=models)
        finally:
            progress.stop()
        models.release()
        for name, client in metrics["clients"].items():
            row = found.setdefault(name, {"base": client["base"]["metric"]})
            row[heading] = client["final"]["metric"] if client["final"] else float("nan")
    page = write_report(out)
    if as_json:
        typer.echo(json.dumps({"event": "result", "run": str(out), "clients": found}))
        return found
    columns = ["base", *(heading for heading, _ in BESIDE.values()), "LaDa"]
    print_scores("lada-demo: per cent right on questions that nobody trained on", found, columns)
    typer.echo(f"\nreport   {page}\nexport   h2tune export {quote(str(out))} --client NAME --to peft --out FOLDER")
    return found
