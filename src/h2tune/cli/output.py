"""Results as tables on the terminal. They fit 80 columns unless names are long or clients many."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from h2tune.comparison.result import Comparison
    from h2tune.comparison.result import Table as ComparedTable
    from h2tune.plan import Plan
    from h2tune.report.data import Client

UNBROKEN = 400  # columns
AWAY = 10.0  # seconds after which a server that is not heard is told of
HEADINGS = {"base": "base", "local": "alone", "unshared": "not averaged", "final": "federated"}


def short_model(model: str) -> str:
    """A model's name without its folder or owner; ``zoo:`` stays."""
    return model if model.startswith("zoo:") else model.rstrip("/").rsplit("/", 1)[-1]


def print_run(folder: Path) -> None:
    """The results of a finished run: a line for each client, and their means."""
    from h2tune.report.format import mean, percent, plain, size
    from h2tune.report.read import read_run
    from h2tune.report.verdict import missing

    run = read_run(folder)
    table = _table(f"{run.name}: {run.method}, {run.rounds} {'round' if run.rounds == 1 else 'rounds'}", ["client", "model", "task"],
                   [*(HEADINGS[stage] for stage in run.stages), "sent / round"])  # fmt: skip

    def share(value: float | None) -> str:
        return plain(percent(value))

    def sent(client: Client) -> str:
        return plain(size(client.in_rounds.up / len(client.rounds) if client.rounds else 0))

    for client in run.clients:
        scores = (share(client.score(stage).metric) for stage in run.stages)
        table.add_row(client.name, short_model(client.model), client.task, *scores, sent(client))
    table.add_section()
    heading = "mean" if not run.incomplete else f"mean of {len(run.complete)}"
    means = (share(mean(c.score(stage).metric for c in run.complete)) for stage in run.stages)
    table.add_row(heading, "", "", *means, "")
    _print(table)
    if note := missing(run):
        typer.echo(note)


def print_scores(title: str, rows: dict[str, dict[str, float]], columns: list[str]) -> None:
    """Shares by row and column, in per cent."""
    from h2tune.report.format import percent, plain

    table = _table(title, ["client"], columns)
    for name, row in rows.items():
        table.add_row(name, *(plain(percent(row[column])) for column in columns))
    _print(table)


def print_plan(plan: Plan) -> None:
    """What each client needs and sends, and what leaves its machine."""
    from h2tune.methods.leaving import STAYS
    from h2tune.report.format import plain, size

    once = any(c.setup_bytes_up or c.setup_bytes_down for c in plan.clients)
    columns = ["rank", "adapter", "memory", "up /\nround", "down /\nround", "LoRA\nup"]
    columns += ["once,\nup", "once,\ndown"] if once else []
    table = _table("" if plan.depth is None else f"the core has {plan.depth} rows", ["client", "model"], columns)
    for c in plan.clients:
        adapter = "-" if c.adapter_parameters is None else plain(size(c.adapter_parameters)).removesuffix("B").strip()
        sizes = [c.training_memory, c.bytes_up, c.bytes_down, c.lora_bytes]
        sizes += [c.setup_bytes_up, c.setup_bytes_down] if once else []
        cells = [str(c.rank or "-"), adapter, *(plain(size(value)) for value in sizes)]
        table.add_row(c.name, short_model(c.model), *cells)
    _print(table)
    typer.echo("\nadapter  parameters to train\nmemory   for adapter, gradients and optimiser, beside the model")
    typer.echo("LoRA up  what a whole LoRA of the rank in the file would send in a round")
    unknown = "not known: the method has a mistake, and which one it is decides what leaves"
    _print_list("leaves the machine", [*plan.leaves, STAYS] if plan.leaves else [unknown])
    _print_list("privacy", plan.privacy)


def print_comparison(result: Comparison) -> None:
    """The tables of a comparison, each with its verdict."""
    from h2tune.report.comparison_text import averaging_of, missing_of, quantity_of, table_verdict

    for found in result["tables"]:
        if not found["methods"]:
            continue
        data = f", {found['n_train']} training rows" if found["n_train"] else ""
        typer.echo(f"{result['name']}{data}: {table_verdict(found)}\n")
        _print(_scores(found, result["clients"]))
        typer.echo()
        _print(_costs(found))
        typer.echo()
        for note in (quantity_of(found), averaging_of(found), missing_of(found)):
            if note:
                typer.echo(note)
    for kind, reasons in (("skipped", result["skipped"]), ("failed", result["failed"])):
        for name, reason in reasons.items():
            typer.echo(f"{kind} {name}: {reason}")


def _scores(found: ComparedTable, clients: list[str]) -> Table:
    from h2tune.report.comparison_text import client_of, text_of

    quantity = found["quantity"]
    title = "per cent right" if quantity == "metric" else "nats per answer token, less is better"
    table = _table(title, ["method"], [*clients, "mean", "better than local by"])
    for row in found["methods"]:
        over = text_of(row.get("over_local"), quantity, signed=True)
        names = (client_of(row, name, quantity) for name in clients)
        table.add_row(row["method"], *names, text_of(row["mean"], quantity), over)
    return table


def _costs(found: ComparedTable) -> Table:
    from h2tune.report.format import duration, plain, size

    table = _table("a client sends and receives", ["method"],
                   ["up / round", "down / round", "once, up", "once, down", "time of a run"])  # fmt: skip
    for row in found["methods"]:
        sizes = (row["bytes_up"], row["bytes_down"], row["setup_up"], row["setup_down"])
        table.add_row(row["method"], *(plain(size(value)) for value in sizes), plain(duration(row["seconds"])))
    return table


def status_lines(found: dict[str, Any]) -> list[str]:
    """A kit's status in words."""
    expired = ", which has expired" if found["certificate_expired"] else ""
    lines = [f"{found['role']} {found['name']}: {found['state']}",
             f"server {found['server']}, certificate until {found['certificate_until']}{expired}"]  # fmt: skip
    if found["state"] == "running" and (ports := found.get("listens")):
        lines.append(f"listens on {', '.join(ports)}")
    if "rounds" in found:
        lines.append(f"round {found['round']} of {found['rounds']} committed")
    if found["state"] == "running" and "server_heard" in found:
        lines += _of_a_client(found)
    for name, client in found.get("clients", {}).items():
        heard = client["heard_seconds_ago"]
        where = _doing(client["doing"]) or "idle"
        seen = "never heard from" if heard is None else f"heard from {heard:.0f} s ago, {where}"
        lines.append(f"  {name:<16} {client['status']:<16} {seen}")
    return lines


def _of_a_client(found: dict[str, Any]) -> list[str]:
    """What a client's process does, and since when it has not heard of the server; it tries every second."""
    from h2tune.report.format import duration, plain

    lines = [
        _doing(found.get("doing") or {}) or ("busy" if found.get("busy") else "waiting for the server's next request")
    ]
    heard, now = found["server_heard"], found["time"]
    if not heard:
        lines.append("the server was not reached yet")
    elif now - heard > AWAY:
        when = datetime.fromtimestamp(heard).astimezone()
        lines.append(
            f"the server was not heard since {when:%Y-%m-%d %H:%M:%S}, {plain(duration(now - heard))} ago; trying again"
        )
    return lines


def _doing(doing: dict[str, Any]) -> str:
    """Round, phase and update of what is under way; an empty text for nothing."""
    from h2tune.report.format import clean

    if not doing:
        return ""
    step = f" {doing['step']}/{doing['steps']}" if "step" in doing else ""
    return f"round {doing['round']}, {clean(doing['phase'])}{step}"


def _table(title: str, left: list[str], right: list[str]) -> Table:
    from rich import box
    from rich.table import Table

    # Ten columns fit 80 with one space between them only.
    space = 0 if len(left) + len(right) > 9 else 1
    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, space, 0, 0),
                  pad_edge=False)  # fmt: skip
    for heading in left:
        table.add_column(heading, overflow="fold")
    for heading in right:
        table.add_column(heading, justify="right")
    return table


def _print(table: Table) -> None:
    """Print at the terminal's width, or unbroken into a file or another program."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = UNBROKEN
    console.print(table)


def _print_list(heading: str, entries: list[str] | tuple[str, ...]) -> None:
    if entries:
        typer.echo(f"\n{heading}")
        for entry in entries:
            typer.echo(f"  {entry}")
