"""The commands that list what there is: methods, models, tasks."""

from __future__ import annotations

import json

import typer

from h2tune.cli.options import Json


def methods(as_json: Json = False) -> None:
    """List the federated methods; docs/methods.md has their rules."""
    from h2tune.methods.registry import known_methods

    rows = [{"name": m.name, "description": m.says, "sends": m.sends, "source": m.source,
             "one_architecture": m.one_architecture} for m in known_methods().values()]  # fmt: skip
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        kind = "equal models" if row["one_architecture"] else "any models"
        typer.echo(f"{row['name']:<16} {kind:<13} {row['description']}; sends {row['sends']}")


def models(as_json: Json = False) -> None:
    """List the small pretrained models that ship with the package."""
    from h2tune.zoo import zoo_table

    rows = zoo_table()
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    for r in rows:
        typer.echo(f"{r['name']:<12} {r['family']:<8} {r['parameters']:>9,} parameters  width {r['width']}  blocks {r['depth']}"
                   f"  vocabulary {r['vocabulary']}  context {r['context']}  {r['megabytes']} MB")  # fmt: skip


def tasks(as_json: Json = False) -> None:
    """List the ready tasks; docs/tasks.md says how to write your own."""
    from h2tune.tasks import PRESETS, build_task

    rows = [
        {"name": name, "kind": (task := build_task(name)).kind, "description": task.description} for name in PRESETS
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        typer.echo(f"{row['name']:<14} {row['kind']:<9} {row['description']}")
