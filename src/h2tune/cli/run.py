"""The commands of a federation on this machine: init, plan, run, demo."""

from __future__ import annotations

import json
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from h2tune.cli.options import (
    STOPPED,
    File,
    Json,
    Lada,
    Out,
    Vertical,
    fail,
    no_file,
    of_no_use,
    one_kind,
    plain_errors,
)
from h2tune.cli.output import print_plan, print_run
from h2tune.utils.processes import process_context

if TYPE_CHECKING:
    from h2tune.config import Experiment


def init(
    file: Annotated[Path, typer.Argument(help="Where to write.")] = Path("federation.yaml"),
    vertical: Vertical = False,
    lada: Lada = False,
) -> None:
    """Write a commented YAML file to fill in with your own models and data."""
    from importlib.resources import files

    from h2tune.utils.files import write_atomic

    one_kind(vertical, lada)
    if vertical:
        with plain_errors():
            from h2tune.cli import vertical as parties

            typer.echo(f"wrote {parties.init(file)}; edit it, then: h2tune plan {quote(str(file))}")
        return

    if file.exists():
        fail(f"{file} exists already.")
    template = files("h2tune") / ("distill/template.yaml" if lada else "template.yaml")
    with plain_errors():
        write_atomic(file, template.read_bytes())
    typer.echo(f"wrote {file}; edit it, then: h2tune plan {quote(str(file))}")


def plan(
    file: File,
    as_json: Json = False,
    measure: Annotated[
        bool, typer.Option("--time", help="Also load models and data, and measure how long a run takes here.")
    ] = False,
) -> None:
    """Show what each client needs and sends, and every mistake in the file, before anything is trained."""
    with plain_errors():
        from h2tune.utils.logging import quiet_libraries

        quiet_libraries()
        from h2tune.config import load_past_mistakes
        from h2tune.vertical.config import is_vertical

        if is_vertical(file):
            from h2tune.cli import vertical

            of_no_use({"--time": measure})
            vertical.plan(file, as_json)
            return
        from h2tune.plan import Plan, make_plan

        experiment, mistakes = load_past_mistakes(file)
        found = make_plan(experiment) if experiment else Plan([], [], [])
        if experiment is None or mistakes:  # figures without the keys that are wrong would be another federation's
            _fail_plan(mistakes + found.problems, as_json, measure)
        if not as_json:
            print_plan(found)
        for warning in found.warnings:
            typer.echo(f"warning: {warning}", err=True)
        seconds = _seconds_of(experiment) if measure and not found.problems else None
        if as_json:
            typer.echo(json.dumps(found.plain() | ({"seconds": seconds} if measure else {}), indent=1))
        if found.problems:
            fail("\n".join(found.problems))
        if seconds is not None and not as_json:
            typer.echo(_time_in_words(experiment, seconds))


def _fail_plan(problems: list[str], as_json: bool, measure: bool) -> NoReturn:
    """End with what is wrong in a file, in the shape of a plan for machines."""
    from h2tune.plan import Plan

    if as_json:
        typer.echo(json.dumps(Plan([], problems, []).plain() | ({"seconds": None} if measure else {}), indent=1))
    fail("\n".join(problems))


def _seconds_of(experiment: Experiment) -> float:
    """How long the file's run takes on this machine, measured."""
    import torch

    from h2tune.comparison.estimate import local_seconds
    from h2tune.participant.prepare import UNKNOWN

    for client in experiment.clients:
        if UNKNOWN in (client.model, client.train, client.test):
            fail(f"--time: the model and the data of {client.name} are on its own machine; measure there.")
    return local_seconds(experiment, torch.get_num_threads()) * (1 + len(experiment.baselines))


def _time_in_words(experiment: Experiment, seconds: float) -> str:
    from h2tune.report.format import duration, plain

    beside = f", with {', '.join(experiment.baselines)} beside it," if experiment.baselines else ""
    return plain(
        f"A run{beside} takes about {duration(seconds)} on this machine, one client after the other; a method's own set-up and"
        " choices come on top."
    )


# Over 45 lines: half of them declare the options.
def run(
    file: File,
    out: Out = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last committed round.")] = False,
    changed: Annotated[
        list[str] | None,
        typer.Option(
            "--changed",
            help="A key that may differ from the run's when resuming, or `data`; may be given more than once.",
        ),
    ] = None,
    baseline: Annotated[
        bool | None,
        typer.Option(
            "--baseline/--no-baseline", help="Also train every client alone; `--no-baseline` runs nothing beside."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Overrides the file's seed.")] = None,
    workers: Annotated[
        int, typer.Option(min=0, help="Spread the clients over so many processes; several GPUs get one each.")
    ] = 0,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also log for TensorBoard.")] = False,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only the result.")] = False,
) -> None:
    """Train a federation and write its run directory and report."""
    with plain_errors(STOPPED):
        no_file(out)
        from h2tune.config import load_config, parse_config
        from h2tune.vertical.config import is_vertical

        if is_vertical(file):
            from h2tune.cli import vertical

            given = {
                "--baseline/--no-baseline": baseline is not None,
                "--workers": workers,
                "--tensorboard": tensorboard,
                "--changed": changed,
            }
            of_no_use(given)
            vertical.train(file, out, resume=resume, seed=seed, as_json=as_json, quiet=quiet)
            return
        of_no_use({"--changed": changed and not resume}, "a run that is not resumed")
        experiment = load_config(file, seed=seed)
        if workers:
            process_context("h2tune.federation")
        update: dict[str, Any] = {}
        if baseline is not None:
            beside = [name for name in experiment.baselines if name != "local"]
            update["baseline"] = ["local", *beside] if baseline else "none"
        if tensorboard and "tensorboard" not in experiment.tracking:
            update["tracking"] = [*experiment.tracking, "tensorboard"]
        folder = out or Path("runs") / experiment.name
        if update:
            experiment = parse_config(experiment.model_dump(mode="json") | update)
        _train(experiment, folder, resume, tuple(changed or ()), as_json, quiet, workers)


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the run.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Seed of data and training.")] = 0,
    vertical: Vertical = False,
    lada: Lada = False,
    as_json: Json = False,
) -> None:
    """Three clients, three families, three answer formats: is federation worth it? About three minutes on two cores."""
    one_kind(vertical, lada)
    with plain_errors("Stopped. The same command begins anew."):
        if vertical:
            from h2tune.cli import vertical as parties

            parties.demo(_free(out), seed, as_json)
            return
        if lada:
            from h2tune.cli import lada as flows

            flows.demo(_free(out), seed, as_json)
            return
        from h2tune.utils.processes import cores, process_context

        several = cores() > 1
        if several:
            process_context("h2tune.federation")
        from h2tune.demo import demo_experiment

        experiment = demo_experiment(seed)
        # Models this small compute faster side by side with a thread each than one after the other with all threads.
        _train(experiment, _free(out), as_json=as_json, workers=len(experiment.clients) if several else 0)


def _train(
    experiment: Experiment,
    out: Path,
    resume: bool = False,
    changed: tuple[str, ...] = (),
    as_json: bool = False,
    quiet: bool = False,
    workers: int = 0,
) -> None:
    from h2tune.utils.logging import quiet_libraries

    quiet_libraries()
    from h2tune.federation import run as run_federation
    from h2tune.report import write_report
    from h2tune.report.live import Progress

    progress = Progress(mode="json" if as_json else "quiet" if quiet else "auto")
    try:
        metrics = run_federation(experiment, out, resume=resume, changed=changed, watcher=progress, workers=workers)
    finally:
        progress.stop()
    page = write_report(out)
    if as_json:
        typer.echo(json.dumps({"event": "result", "run": str(out), "mean": metrics["mean"]}))
        return
    print_run(out)
    typer.echo(f"\nreport   {page}\nexport   h2tune export {quote(str(out))} --client NAME --to peft --out FOLDER")


def _free(folder: Path) -> Path:
    """The folder, or the first of folder-2, folder-3, ... that does not exist."""
    number, free = 1, folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free
