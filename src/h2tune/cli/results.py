"""The commands on what a federation leaves: report, export, predict."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Annotated

import typer

from h2tune.cli.options import Run, fail, no_file, no_folder, not_over, of_no_use, plain_errors


def report(run_dir: Run) -> None:
    """Write RUN/report.html again from the run's figures."""
    with plain_errors():
        from h2tune.vertical.config import is_vertical_run

        if is_vertical_run(run_dir):
            from h2tune.cli import vertical

            typer.echo(vertical.report(run_dir))
            return
        from h2tune.report import write_report
        from h2tune.store import RunStore
        from h2tune.utils.files import StoreError

        if not RunStore(run_dir).exists:
            raise StoreError(f"{run_dir} is not a run directory.")
        typer.echo(write_report(run_dir))


def _no_vertical_kit(folder: Path) -> None:
    """End at the kit of a vertical federation: no kit but the active party's holds what predicts."""
    from h2tune.deployment.kits import Kit, is_vertical_kit

    if not (folder / "kit.json").is_file() or not is_vertical_kit(folder):
        return
    about = Kit(folder).about
    if about.role == "server":
        fail(f"{folder} is the active party's kit: name its run, {folder / 'run'}.")
    from h2tune.vertical.run_store import handed_over

    fail(
        f"{folder} is the kit of {about.name}, a party of a vertical federation, and holds its part of the model alone. The"
        f" run that predicts is the active party's, KIT/run. {handed_over(about.name, 'KIT/run')}"
    )


def export(
    run_dir: Run,
    client: Annotated[
        str | None,
        typer.Option(
            help="Whose adapter; not needed for a client's kit. Of a vertical run: parties whose parts of the model are in"
            " it, with commas between; by default all of them."
        ),
    ] = None,
    to: Annotated[str, typer.Option(help="`peft`: a standard LoRA; `merged`: the whole model.")] = "peft",
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for what is made; by default export/ in the run's or kit's folder."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16 or float16; by default float32 for peft, the base's for merged."),
    ] = None,
) -> None:
    """Write a client's result as a standard LoRA (exact) or as a merged model; of a vertical run, a predictor for some parties."""
    with plain_errors():
        no_file(out)
        from h2tune.vertical.config import is_vertical_run

        if is_vertical_run(run_dir):
            from h2tune.cli import vertical

            of_no_use({"--to": to if to != "peft" else "", "--dtype": dtype})
            typer.echo(vertical.export(run_dir, client, out))
            return
        _no_vertical_kit(run_dir)
        if to not in ("peft", "merged"):
            fail(f"--to must be peft or merged, not {to!r}")
        from h2tune.utils.logging import quiet_libraries

        quiet_libraries()
        from h2tune.inference import export as write
        from h2tune.inference import only_client

        client = client or only_client(run_dir)
        typer.echo(write(run_dir, client, out or run_dir / "export" / f"{client}-{to}", to, dtype))


def predict(
    run_dir: Run,
    file: Annotated[
        list[str],
        typer.Option(
            help="Rows with the task's columns; answers are not needed. Of a vertical run: party=file, once for each party"
            " that has rows."
        ),
    ],
    client: Annotated[str | None, typer.Option(help="Whose adapter answers; not needed for a client's kit.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write there instead of printing.")] = None,
) -> None:
    """Answer the rows of a file with a client's adapter, or of a vertical run those of several parties' files, as JSON lines."""
    with plain_errors():
        no_folder(out)
        from h2tune.vertical.config import is_vertical_run

        if is_vertical_run(run_dir):
            from h2tune.cli import vertical

            of_no_use({"--client": client})
            vertical.predict(run_dir, file, out)
            return
        _no_vertical_kit(run_dir)
        if len(file) > 1:
            fail(f"--file: one file at a time, not {len(file)}")
        not_over(out, file[0])
        from h2tune.utils.logging import quiet_libraries

        quiet_libraries()
        from h2tune.inference import only_client, to_jsonl
        from h2tune.inference import predict as answer
        from h2tune.utils.files import write_atomic

        lines = to_jsonl(answer(run_dir, client or only_client(run_dir), Path(file[0])))
        if out is None:
            if isinstance(sys.stdout, io.TextIOWrapper):
                sys.stdout.reconfigure(encoding="utf-8")  # JSON is UTF-8, whatever the terminal's locale
            for line in lines:
                sys.stdout.write(line + "\n")
        else:
            write_atomic(out, "".join(line + "\n" for line in lines).encode())
