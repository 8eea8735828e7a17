"""What the commands share: their common options, and how a mistake ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated, NoReturn

import typer

STOPPED = "Stopped. The last committed round is safe; go on with the same command and --resume."
REFUSED = "refused from now on: {}; a running server puts them out within seconds"
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder for what is made; by default under runs/.")]
Run = Annotated[
    Path,
    typer.Argument(
        help="A run directory, or (for `export` and `predict`) a client's kit; of a vertical federation over a network the run in"
        " the server's kit."
    ),
]
File = Annotated[Path, typer.Argument(help="A federation's YAML file; `h2tune init` writes one.")]
Vertical = Annotated[bool, typer.Option("--vertical", help="Parties with other columns of partly the same people.")]

Lada = Annotated[bool, typer.Option("--lada", help="A large model and small ones that teach each other to reason.")]


@contextmanager
def plain_errors(stopped: str | Callable[[], str] = "Stopped.") -> Iterator[None]:
    """Expected mistakes end in one or two lines and exit code 1; anything else is a bug and shows its traceback.

    Args:
        stopped: what is said of Ctrl-C, or what finds that out then.
    """
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(stopped if isinstance(stopped, str) else stopped(), err=True)
        raise typer.Exit(1) from None
    except Exception as error:
        if _is_expected(error):
            fail(str(error))
        raise


def _is_expected(error: Exception) -> bool:
    from h2tune.errors import H2TuneError

    return isinstance(error, H2TuneError)


def of_no_use(options: Mapping[str, object], where: str = "a vertical federation") -> None:
    """End where an option was given that would change nothing."""
    if given := [name for name, value in options.items() if value]:
        fail(f"{', '.join(given)}: of no use for {where}; leave it out")


def one_kind(vertical: bool, lada: bool) -> None:
    """End where two kinds of federation were asked for."""
    if vertical and lada:
        fail("--vertical and --lada are two kinds of federation; choose one")


def no_file(folder: Path | None) -> None:
    """End where a folder is to be written and a file stands in its place."""
    if folder is not None and folder.is_file():
        fail(f"--out names a folder, but {folder} is a file.")


def no_folder(file: Path | None) -> None:
    """End where a file is to be written and a folder stands in its place, or there can be no folder for it."""
    if file is None:
        return
    if file.is_dir():
        fail(f"--out names a file, but {file} is a folder.")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"--out: the folder {file.parent} cannot be made: {error.strerror}.")
    try:  # before long work, not after it
        with TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        fail(f"--out: nothing can be written in {file.parent}: {error.strerror}.")


def not_over(out: Path | None, file: str | Path) -> None:
    """End where answers would be written over the questions."""
    if out is not None and out.exists() and Path(file).exists() and out.samefile(file):
        fail(f"--out is the file of the questions, which would be lost: {out}")


def fail(text: str) -> NoReturn:
    """Print a mistake, each line of it marked as an error, and end with exit code 1."""
    from h2tune.report.format import printable

    for line in map(printable, text.splitlines()):  # names and reasons in it may come from others
        typer.echo(f"error: {line}" if not line.startswith(" ") else line, err=True)
    raise typer.Exit(1)
