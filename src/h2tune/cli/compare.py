"""The command `compare`: methods side by side."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from h2tune.cli.options import Json, Out, no_file, of_no_use, plain_errors
from h2tune.cli.output import print_comparison
from h2tune.utils.processes import process_context

DEFAULT, ALL = "local,h2tune-unshared,h2tune", "all"
Number = TypeVar("Number", int, float)


# Over 45 lines: half of them declare the options.
def compare(
    file: Annotated[
        str, typer.Argument(help="A federation's YAML file, or `demo`. `{seed}` in a source is the run's seed.")
    ],
    methods: Annotated[
        str | None,
        typer.Option(
            help="Names with commas between, or `all`; see `h2tune methods`. By default"
            f" {DEFAULT.replace(',', ', ')}, and the file's own; of a vertical file all."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each method, with seeds 0, 1, ...")] = 5,
    out: Out = None,
    n_train: Annotated[
        str, typer.Option(help="Amounts of training data to sweep over, for example 60,500,5000.")
    ] = "",
    tune: Annotated[
        str,
        typer.Option(
            help="Multiples of the file's learning rates, for example 0.3,1,3; each method takes its best"
            " by validation, with seed 10000, which no result has."
        ),
    ] = "",
    jobs: Annotated[int, typer.Option(min=0, help="Runs at a time; 0 is one for each core.")] = 0,
    as_json: Json = False,
) -> None:
    """Run methods side by side over seeds, and say which is better and how sure that is. Goes on where it stopped."""
    with plain_errors("Stopped. Finished runs are kept; the same command goes on."):
        no_file(out)
        from h2tune.vertical.config import is_vertical

        if is_vertical(file):
            from h2tune.cli import vertical

            of_no_use({"--n-train": n_train, "--tune": tune, "--jobs": jobs})
            vertical.compare(Path(file), ALL if methods is None else methods, seeds, out, as_json)
            return
        process_context("h2tune.federation")
        from h2tune.comparison.cells import method_in
        from h2tune.comparison.compare import compare as run_compare
        from h2tune.comparison.compare import compare_names
        from h2tune.report.comparison_page import write_comparison_page

        folder = out or Path("runs") / f"compare-{Path(file).stem}"
        sizes, rates = _numbers(n_train, int), _numbers(tune, float)

        result = run_compare(
            file,
            compare_names(f"{DEFAULT},{method_in(file)}" if methods is None else methods),
            seeds,
            folder,
            n_train=sizes,
            tune=rates,
            jobs=jobs,
            say=_silent if as_json else typer.echo,
        )
        if as_json:
            typer.echo(json.dumps(result))
        else:
            print_comparison(result)
        page = write_comparison_page(result, folder)
        if not as_json:
            typer.echo(f"\nreport   {page}")
        if result["failed"]:
            raise typer.Exit(1)


def _silent(text: str) -> None:
    """With --json nothing but the result is printed, and warnings where they do not mix with it."""
    if text.startswith("warning: "):
        typer.echo(text, err=True)


def _numbers(text: str, kind: Callable[[str], Number]) -> list[Number]:
    """Numbers from ``0.3,1,3``."""
    from h2tune.comparison.cells import CompareError

    try:
        return [kind(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise CompareError(f"--n-train and --tune are numbers with commas between: {error}") from None
