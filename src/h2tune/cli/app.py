"""The command line: every command and where it is. Nothing heavy is imported until a command needs it."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from h2tune.cli import compare, lists, network, results, run

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Federated fine-tuning for organisations whose models, tasks and machines all differ.\n\n"
    "Start with `h2tune demo`; then `h2tune init`, `h2tune plan FILE`, `h2tune run FILE` on your own models and data.",
)


def _first_sentence(text: str | None) -> str:
    """What the list of commands says of one: whole, where click would cut it off after 45 characters."""
    return re.split(r"(?<=[.?]) ", " ".join((text or "").split()))[0]


for command in (
    run.run,
    run.plan,
    compare.compare,
    lists.methods,
    run.demo,
    results.report,
    results.export,
    results.predict,
    run.init,
    lists.models,
    lists.tasks,
    network.provision,
    network.server,
    network.client,
    network.status,
):
    app.command(short_help=_first_sentence(command.__doc__))(command)


def _version(value: bool) -> None:
    if value:
        from h2tune.version import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    # No docstring: the help text is the app's.
    pass
