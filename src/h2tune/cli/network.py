"""The commands of a federation over a network: provision, server, client, status."""

from __future__ import annotations

import json
import signal
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from h2tune.cli.options import REFUSED, File, Json, no_file, of_no_use, plain_errors
from h2tune.cli.output import print_run, status_lines

LOCALHOST = (
    "the kits are for a server on this machine: the file names no `network.host`. For clients on other machines write"
    " `network: {host: fed.example.org}` and make the kits again in another folder"
)
NO_ADAPTER = "no adapter was written: this client was away when the federation ended"
KitFolder = Annotated[Path, typer.Argument(metavar="KIT", help="A kit, as `h2tune provision` makes them.")]
_AGAIN = "may be given more than once."
Renewed = Annotated[list[str] | None, typer.Option(help=f"A participant that gets a new kit; {_AGAIN}")]
Revoked = Annotated[list[str] | None, typer.Option(help=f"A participant to put out; {_AGAIN}")]


def provision(
    file: File,
    out: Annotated[Path, typer.Option("--out", help="Folder for the kits.")] = Path("kits"),
    renew: Renewed = None,
    revoke: Revoked = None,
    days: Annotated[int, typer.Option(min=1, max=36_500, help="Validity of the authority, when it is made.")] = 360,
) -> None:
    """Make a kit for the server and for every client: certificate, key, address, and what concerns it of FILE.

    Kits that are there are left alone. A client that was added to FILE gets its kit, and takes part once the server has a
    kit that names it: --renew server, before the run begins. With --revoke alone no kit is made. Give each organisation its own kit
    over a channel that you trust; it holds a private key. OUT/authority stays with you.
    """
    with plain_errors("Stopped. The same command goes on."):
        from h2tune.config import load_config
        from h2tune.deployment import provision as making
        from h2tune.deployment.outdated import outdated
        from h2tune.vertical.config import is_vertical

        no_file(out)
        if is_vertical(file):
            from h2tune.cli import vertical

            vertical.provision(file, out, renew or (), days, revoke or ())
            return
        experiment = load_config(file)
        if revoke:
            typer.echo(REFUSED.format(", ".join(making.revoke(out, revoke))))
            if not renew:
                return
        made = making.provision(experiment, out, renew or (), days)
        for folder in made:
            typer.echo(f"{folder.name:<16} {folder}")
        if made and "host" not in experiment.network.model_fields_set:
            typer.echo(f"warning: {LOCALHOST}", err=True)
        names = ["server", *(client.name for client in experiment.clients)]
        if text := outdated(out, names, partial(making.concerns, experiment)):
            typer.echo(f"warning: {text}", err=True)
        if not made:
            typer.echo("all kits are there already; --renew NAME makes one again")
        elif not revoke:
            typer.echo(
                f"\nhere        h2tune server {out / 'server'}\nat a client h2tune client KIT --model ... --train ... --test ..."
            )


def server(
    kit: KitFolder,
    train: Annotated[str | None, typer.Option(help="The active party's rows, in a vertical federation.")] = None,
    test: Annotated[str | None, typer.Option(help="The active party's rows of the test people.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Another key of the active party, as KEY=VALUE.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Coordinate a federation: wait for clients, hold the rounds, write KIT/run. The same command goes on after a stop."""
    with plain_errors(partial(_what_is_kept, kit)):
        from h2tune.deployment.kits import Kit, is_vertical_kit, own_values
        from h2tune.deployment.status import starting
        from h2tune.utils.logging import quiet_libraries

        with starting(Kit(kit, "server")):
            quiet_libraries()
            from h2tune.deployment.serve import serve
            from h2tune.report import write_report
            from h2tune.report.live import Progress

        _stop_on_terminate()
        if is_vertical_kit(kit):
            from h2tune.cli import vertical

            given = {"train": train, "test": test}
            vertical.serve(kit, own_values({k: v for k, v in given.items() if v}, settings or []), as_json)
            return
        of_no_use({"--train": train, "--test": test, "--set": settings}, "the server's kit of a horizontal federation")
        progress = Progress(mode="json" if as_json else "auto")
        try:
            metrics = serve(Kit(kit, "server"), progress)
        finally:
            progress.stop()
        page = write_report(kit / "run")
        if as_json:
            typer.echo(json.dumps({"event": "result", "run": str(kit / "run"), "mean": metrics["mean"]}))
            return
        print_run(kit / "run")
        typer.echo(f"\nreport   {page}")


# Over 45 lines: a third of them are its options and their help.
def client(
    kit: KitFolder,
    model: Annotated[str | None, typer.Option(help="`zoo:` name, Hugging Face name, or local folder.")] = None,
    train: Annotated[str | None, typer.Option(help="Training data.")] = None,
    test: Annotated[str | None, typer.Option(help="Test data, only used for scoring.")] = None,
    validation: Annotated[str | None, typer.Option(help="Validation data; by default a part of --train.")] = None,
    device: Annotated[str | None, typer.Option(help="`auto`, `cpu`, `cuda`, ...")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Another key of the client, as KEY=VALUE; docs/configuration.md.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Take part in a federation with your own model and data. They are remembered in KIT/own.yaml and never sent.

    The same command without options goes on after a stop.
    """
    with plain_errors("Stopped. The same command goes on."):
        from h2tune.deployment.kits import Kit, is_vertical_kit, own_values
        from h2tune.deployment.status import starting
        from h2tune.utils.logging import quiet_libraries

        with starting(Kit(kit, "client")):
            quiet_libraries()
            from h2tune.deployment.join import attend
            from h2tune.report.format import printable

        _stop_on_terminate()
        given = {"model": model, "train": train, "test": test, "validation": validation, "device": device}
        own = own_values({k: v for k, v in given.items() if v is not None}, settings or [])
        if is_vertical_kit(kit):
            from h2tune.cli import vertical

            vertical.attend(kit, own, as_json)
            return

        def say(text: str) -> None:
            typer.echo(json.dumps({"event": "message", "text": text}) if as_json else printable(text))

        def watch(name: str, round: int, phase: str, step: int, steps: int, loss: float) -> None:
            if step == steps or (as_json and step % 10 == 0):
                say(f"round {round}: {phase} update {step} of {steps}, loss {loss:.3f}")

        say(attend(Kit(kit, "client"), own, say, watch))
        adapter = kit / "state" / "adapter"
        say(f"adapter  {adapter}" if adapter.is_dir() else NO_ADAPTER)


def status(kit: KitFolder, as_json: Json = False) -> None:
    """Health and progress of a kit's process on this machine, and until when its certificate is valid."""
    with plain_errors("Stopped."):
        from h2tune.deployment.kits import Kit
        from h2tune.deployment.status import describe

        found = describe(Kit(kit))
        if as_json:
            typer.echo(json.dumps(found, indent=1))
            return
        for line in status_lines(found):
            typer.echo(line)


def _what_is_kept(kit: Path) -> str:
    """Said when a server is stopped."""
    done = None
    if (kit / "run" / "run.json").is_file():
        from h2tune.store import RunStore

        try:
            done = RunStore(kit / "run").last_round()
        except Exception:  # it is damaged: the next start says so
            return "Stopped."
    if done is None:
        return "Stopped before anything was committed; the same command begins again."
    what = "The last committed round is safe" if done else "No round was committed yet, what was set up is kept"
    return f"Stopped. {what}; the same command goes on."


def _stop_on_terminate() -> None:
    """What containers and services send to stop a process ends it as Ctrl-C does."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
