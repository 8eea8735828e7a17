"""The command line: parse, call, print. Nothing heavy is imported until a command needs it."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Federated fine-tuning for organisations whose models, tasks and machines all differ.\n\n"
    "Start with `h2tune demo`; then `h2tune init`, `h2tune plan FILE`, `h2tune run FILE` on your own models and data.",
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder for what is made; by default under runs/.")]
Run = Annotated[Path, typer.Argument(help="A run directory, or (for `export` and `predict`) a client's kit.")]
File = Annotated[Path, typer.Argument(help="A federation's YAML file; `h2tune init` writes one.")]


@contextmanager
def plain_errors(
    stopped: str = "Stopped. The last committed round is safe; go on with the same command and --resume.",
) -> Iterator[None]:
    """Expected mistakes end in one or two lines and exit code 1; anything else is a bug and shows its traceback."""
    try:
        yield
    except KeyboardInterrupt:
        _fail(stopped)
    except Exception as error:
        if _is_expected(error):
            _fail(str(error))
        raise


def _is_expected(error: Exception) -> bool:
    homes = ("h2tune.",)
    return isinstance(error, (ValueError, RuntimeError)) and type(error).__module__.startswith(homes)


def _fail(text: str) -> None:
    for line in text.splitlines():
        typer.echo(f"error: {line}" if not line.startswith(" ") else line, err=True)
    raise typer.Exit(1)


@app.command()
def run(
    file: File,
    out: Out = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last committed round.")] = False,
    changed: Annotated[
        list[str] | None, typer.Option("--changed", help="A key that may differ from the run's when resuming.")
    ] = None,
    baseline: Annotated[
        bool | None, typer.Option("--baseline/--no-baseline", help="Also train every client alone.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Overrides the file's seed.")] = None,
    workers: Annotated[
        int, typer.Option(min=0, help="Spread the clients over so many processes, GPUs or machines, with Ray.")
    ] = 0,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also log for TensorBoard.")] = False,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only the result.")] = False,
) -> None:
    """Train a federation and write its run directory and report."""
    with plain_errors():
        from h2tune.config import load_config

        experiment = load_config(file, seed=seed)
        update: dict[str, Any] = {}
        if baseline is not None:
            update["baseline"] = "local" if baseline else "none"
        if tensorboard and "tensorboard" not in experiment.tracking:
            update["tracking"] = [*experiment.tracking, "tensorboard"]
        experiment = experiment.model_copy(update=update)
        _train(
            experiment, out or Path("runs") / experiment.name, resume, tuple(changed or ()), as_json, quiet, workers
        )


def _train(
    experiment: Any, out: Path, resume: bool, changed: tuple[str, ...], as_json: bool, quiet: bool, workers: int = 0
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
    print_result(metrics)
    typer.echo(f"\nreport   {page}\nexport   h2tune export {out} --client NAME --to peft --out FOLDER")


def print_result(metrics: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{metrics['name']}: {metrics['method']}, {metrics['rounds']} rounds", title_justify="left")
    for heading in ("client", "model", "task"):
        table.add_column(heading)
    columns = [c for c in ("base", "local", "unshared", "final") if any(m.get(c) for m in metrics["clients"].values())]
    for heading in columns:
        table.add_column(
            {"local": "alone", "unshared": "frames only", "final": "federated"}.get(heading, heading), justify="right"
        )
    table.add_column("up / round", justify="right")
    for name, m in metrics["clients"].items():
        up = m["rounds"][-1]["bytes_up"] if m["rounds"] else 0
        scores = [f"{100 * m[c]['metric']:.1f} %" if m.get(c) else "-" for c in columns]
        table.add_row(name, m["model"], m["task"], *scores, f"{up / 1000:.1f} KB")
    means = [metrics["mean"].get(c) for c in columns]
    table.add_section()
    table.add_row("mean", "", "", *(f"{100 * v:.1f} %" if v is not None else "-" for v in means), "")
    Console().print(table)


@app.command()
def plan(file: File, as_json: Json = False) -> None:
    """Show what each client needs and sends, and every mistake in the file, before anything is trained."""
    with plain_errors():
        from h2tune.utils.logging import quiet_libraries

        quiet_libraries()
        from h2tune.config import load_config
        from h2tune.plan import LEAVES, STAYS, make_plan

        found = make_plan(load_config(file))
        if as_json:
            typer.echo(json.dumps(found.plain(), indent=1))
        else:
            _print_plan(found)
            typer.echo(
                "\nleaves the machine   " + "\n                     ".join(LEAVES) + f"\nnever leaves         {STAYS}"
            )
            if found.privacy:
                typer.echo("privacy              " + "\n                     ".join(found.privacy))
        for warning in found.warnings:
            typer.echo(f"warning: {warning}", err=True)
        if found.problems:
            _fail("\n".join(found.problems))


@app.command()
def compare(
    file: Annotated[
        str, typer.Argument(help="A federation's YAML file, or `demo`. `{seed}` in a source is the run's seed.")
    ],
    methods: Annotated[
        str, typer.Option(help="Names with commas between, or `all`; see `h2tune methods`.")
    ] = "local,h2tune-unshared,h2tune",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each method, with seeds 0, 1, ...")] = 5,
    out: Out = None,
    n_train: Annotated[
        str, typer.Option(help="Amounts of training data to sweep over, for example 60,500,5000.")
    ] = "",
    tune: Annotated[
        str,
        typer.Option(
            help="Multiples of the file's learning rates, for example 0.3,1,3; each method takes its best"
            " by validation, on a seed of its own."
        ),
    ] = "",
    jobs: Annotated[int, typer.Option(help="Runs at a time; 0 is one for each core.")] = 0,
    as_json: Json = False,
) -> None:
    """Run methods side by side over seeds, and say which is better and how sure that is. Goes on where it stopped."""
    with plain_errors():
        from h2tune.comparison.compare import CompareError, compare_names
        from h2tune.comparison.compare import compare as run_compare
        from h2tune.comparison.statistics import print_comparison

        folder = out or Path("runs") / f"compare-{Path(file).stem}"
        try:
            sizes, rates = [int(n) for n in n_train.split(",") if n], [float(r) for r in tune.split(",") if r]
        except ValueError as error:
            raise CompareError(f"--n-train and --tune are numbers with commas between: {error}") from None
        say = (lambda text: None) if as_json else typer.echo
        result = run_compare(
            file, compare_names(methods), seeds, folder, n_train=sizes, tune=rates, jobs=jobs, say=say
        )
        if as_json:
            typer.echo(json.dumps(result))
        else:
            print_comparison(result)
            typer.echo(f"\nreport   {folder / 'compare.html'}")
        if result["failed"]:
            raise typer.Exit(1)


@app.command(name="methods")
def list_methods(as_json: Json = False) -> None:
    """List the federated methods; docs/methods.md has their rules."""
    from h2tune.methods import Method

    rows = [{"name": m.name, "description": m.says, "sends": m.sends, "source": m.source,
             "one_architecture": m.one_architecture} for m in Method.registry.values()]  # fmt: skip
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        kind = "equal models" if row["one_architecture"] else "any models"
        typer.echo(f"{row['name']:<16} {kind:<13} {row['description']}; sends {row['sends']}")


def _size(value: int | None) -> str:
    if value is None:
        return "?"
    for unit in ("B", "KB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def _print_plan(found: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"core depth {found.depth}", title_justify="left")
    for heading in (
        "client",
        "model",
        "blocks",
        "rank",
        "adapter",
        "to train",
        "up / round",
        "down / round",
        "LoRA would send",
        "once up / down",
    ):
        table.add_column(heading, justify="left" if heading in ("client", "model") else "right")
    for c in found.clients:
        adapter = "?" if c.adapter_parameters is None else f"{c.adapter_parameters:,}"
        once = f"{_size(c.setup_bytes_up)} / {_size(c.setup_bytes_down)}" if c.setup_bytes_up else "-"
        table.add_row(c.name, c.model, str(c.blocks or "?"), str(c.rank or "?"), adapter, _size(c.training_memory),
                      _size(c.bytes_up), _size(c.bytes_down), _size(c.lora_bytes), once)  # fmt: skip
    Console(width=max(Console().width, 110)).print(table)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the run.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Seed of data and training.")] = 0,
    as_json: Json = False,
) -> None:
    """Three clients, three families, three answer formats: is federation worth it? About three minutes on two cores."""
    with plain_errors():
        from h2tune.demo import demo_experiment

        _train(demo_experiment(seed), _free(out), False, (), as_json, False)


def _free(folder: Path) -> Path:
    """The folder, or the first of folder-2, folder-3, ... that does not exist."""
    number, free = 1, folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


@app.command()
def report(run_dir: Run) -> None:
    """Write RUN/report.html again from the run's figures."""
    with plain_errors():
        from h2tune.report import write_report
        from h2tune.store import RunStore, StoreError

        if not RunStore(run_dir).exists:
            raise StoreError(f"{run_dir} holds no run.")
        typer.echo(write_report(run_dir))


@app.command()
def export(
    run_dir: Run,
    client: Annotated[str | None, typer.Option(help="Whose adapter; not needed for a client's kit.")] = None,
    to: Annotated[str, typer.Option(help="`peft`: a standard LoRA; `merged`: the whole model.")] = "peft",
    out: Out = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16 or float16; by default float32 for peft, the base's for merged."),
    ] = None,
) -> None:
    """Write a client's result as a standard LoRA (exact) or as a merged model."""
    with plain_errors():
        if to not in ("peft", "merged"):
            _fail(f"--to must be peft or merged, not {to!r}")
        from h2tune.utils.logging import quiet_libraries

        quiet_libraries()
        from h2tune.inference import export as write
        from h2tune.inference import only_client

        client = client or only_client(run_dir)
        typer.echo(write(run_dir, client, out or run_dir / "export" / f"{client}-{to}", to, dtype))


@app.command()
def predict(
    run_dir: Run,
    file: Annotated[Path, typer.Option(help="Rows with the task's columns; answers are not needed.")],
    client: Annotated[str | None, typer.Option(help="Whose adapter answers; not needed for a client's kit.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write there instead of printing.")] = None,
) -> None:
    """Answer the rows of a file with a client's adapter, as JSON lines."""
    with plain_errors():
        from h2tune.utils.logging import quiet_libraries

        quiet_libraries()
        from h2tune.inference import only_client, to_jsonl
        from h2tune.inference import predict as answer

        lines = to_jsonl(answer(run_dir, client or only_client(run_dir), file))
        if out is None:
            if isinstance(sys.stdout, io.TextIOWrapper):
                sys.stdout.reconfigure(encoding="utf-8")  # JSON is UTF-8, whatever the terminal's locale
            for line in lines:
                sys.stdout.write(line + "\n")
        else:
            out.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


@app.command()
def init(
    file: Annotated[Path, typer.Argument(help="Where to write.")] = Path("federation.yaml"),
) -> None:
    """Write a commented YAML file to fill in with your own models and data."""
    from importlib.resources import files

    if file.exists():
        _fail(f"{file} exists already.")
    file.write_text((files("h2tune") / "template.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    typer.echo(f"wrote {file}; edit it, then: h2tune plan {file}")


@app.command()
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


@app.command(name="tasks")
def list_tasks(as_json: Json = False) -> None:
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
    """See the class docstring of `app`."""


from h2tune.cli import network  # noqa: E402, F401 - registers the commands of a network
