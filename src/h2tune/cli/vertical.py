"""The bodies of the commands for a file with `parties`, or for the run of one. `h2tune.cli` calls them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from h2tune.cli.options import not_over
from h2tune.config import ConfigError
from h2tune.errors import H2TuneError
from h2tune.report.format import printable
from h2tune.report.vertical_live import Progress
from h2tune.report.vertical_page import write_vertical_report
from h2tune.vertical.compare import compare_methods
from h2tune.vertical.config import VerticalConfig, load_vertical
from h2tune.vertical.exposure import STAYS, leaves
from h2tune.vertical.federation import run as run_vertical
from h2tune.vertical.methods import METHODS, method_named
from h2tune.vertical.plan import VerticalPlan, plan_of_file
from h2tune.vertical.predictor import Predictor
from h2tune.vertical.unused import unused

NEXT_PARTY = r",(?=\s*[A-Za-z0-9][A-Za-z0-9._-]*\s*=)"


def train(
    config: VerticalConfig | Path, out: Path | None, *, resume: bool = False, seed: int | None = None, as_json: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """`h2tune run`: train, write the run directory and its report, print the result."""
    config = config if isinstance(config, VerticalConfig) else load_vertical(config, seed)
    out = out or Path("runs") / config.name
    names = [config.label.party, *(p.name for p in config.passive)]
    with Progress(names, config.label.classes, "json" if as_json else "quiet" if quiet else "auto") as progress:
        metrics = run_vertical(config, out, resume=resume, watcher=progress)
    page = write_vertical_report(out)
    if as_json:
        print(json.dumps({"event": "result", "run": str(out), "final": metrics["final"]}))
        return metrics
    print_result(metrics)
    print(f"\nreport   {page}\nexport   h2tune export {out} --client {','.join(names)} --out FOLDER")
    return metrics


def print_result(metrics: dict[str, Any]) -> None:
    """A table of the parties and the scores beneath."""
    table = Table(title=f"{metrics['name']}: {metrics['method']}, {metrics['rounds']} rounds", title_justify="left")
    for heading in ("party", "rows", "up / round", "down / round"):
        table.add_column(heading, justify="left" if heading == "party" else "right")
    for name in metrics["parties"]:
        sent = metrics["bytes"].get(name)
        ways = [sum(sent[k][w] for k in ("step", "local")) / metrics["rounds"] for w in ("up", "down")] if sent else []
        shown = [f"{value / 1000:.1f} kB" for value in ways] or ["-", "-"]
        table.add_row(name, f"{metrics['rows'][name]:,}", *shown)
    Console(width=max(Console().width, 90)).print(table)
    print(f"aligned people     {metrics['aligned']:,}")
    for key, text in (
        ("accuracy", "accuracy"),
        ("balanced", "balanced accuracy"),
        ("unseen", "unseen classes"),
        ("harmonic", "harmonic mean"),
    ):
        if metrics["final"] and key in metrics["final"]:
            print(f"{text:<18} {100 * metrics['final'][key]:.1f} %")
    if metrics["alone"]:
        active = metrics["parties"][0]
        print(
            f"{active + ' alone':<18} {100 * metrics['alone']['balanced']:.1f} % balanced accuracy without the others"
        )
    for name, reason in metrics["excluded"].items():
        print(f"excluded           {name}: {printable(reason)}")


def plan(file: Path, as_json: bool = False) -> VerticalPlan:
    """`h2tune plan`: what each party has and sends, before anything is trained."""
    try:
        found = plan_of_file(file)
    except H2TuneError as error:
        if as_json:
            problems = error.problems if isinstance(error, ConfigError) else str(error).splitlines()
            print(json.dumps(VerticalPlan([], 0, 0, [], problems).plain(), indent=1))
        raise
    if as_json:
        print(json.dumps(found.plain(), indent=1))
        return found
    table = Table(title=f"{found.aligned:,} aligned people, {found.classes} classes", title_justify="left")
    headings = (
        "party",
        "role",
        "rows",
        "columns",
        "as numbers",
        "aligned",
        "labelled",
        "up / round",
        "down / round",
        "once up",
        "once down",
    )
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("party", "role") else "right")
    for p in found.parties:
        sizes = [
            f"{value / 1000:.1f} kB" if value else "-" for value in (p.bytes_up, p.bytes_down, p.once_up, p.once_down)
        ]
        table.add_row(
            p.name, p.role, *(f"{v:,}" for v in (p.rows, p.columns, p.numbers, p.aligned, p.labelled)), *sizes
        )
    Console(width=max(Console().width, 120)).print(table)
    for title, lines in (
        ("leaves a passive party", leaves("up")),
        ("leaves the active party", leaves("down")),
        ("never leaves", [STAYS]),
    ):
        print(f"\n{title}\n  " + "\n  ".join(lines))
    _warn(found.warnings)
    return found


def compare(file: Path, methods: str, seeds: int, out: Path | None, as_json: bool = False) -> dict[str, Any]:
    """`h2tune compare`: methods side by side over seeds, with paired intervals.

    Raises:
        ConfigError: if no method is named.
    """
    names = list(METHODS) if methods == "all" else _names(methods)
    if not names:
        raise ConfigError([f"--methods names none; there are: {', '.join(METHODS)}, or all"])
    config = load_vertical(file)
    _warn(dict.fromkeys(text for name in names for text in unused(config, method_named(name))))
    result = compare_methods(config, names, seeds, out or Path("runs") / f"compare-{file.stem}")
    if as_json:
        print(json.dumps(result))
        return result
    title = f"{result['name']}: {result['quantity']} accuracy, {seeds} seed{'s' * (seeds > 1)}; differences in points, paired by seed"
    table = Table(title=title, title_justify="left")
    for heading in ("method", "mean", "95 % interval", "over the best other"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for row in result["methods"]:
        mean, low, high = (100 * v for v in row["interval"])
        over = [f"{100 * v:+.1f}" for v in row["over"] or []]
        # One seed says nothing of how far another would be.
        ends, other = ("-", over[0] if over else "") if seeds < 2 else (
            f"{low:.1f} to {high:.1f}", f"{over[0]} ({over[1]} to {over[2]})" if over else "")  # fmt: skip
        table.add_row(row["method"], f"{mean:.1f} %", ends, other)
    Console(width=max(Console().width, 100)).print(table)
    return result


def _warn(texts: Iterable[str]) -> None:
    for text in texts:
        print(f"warning: {printable(text)}", file=sys.stderr)


def _names(text: str) -> list[str]:
    """Names with commas between them, each once."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def report(run_dir: Path) -> Path:
    """`h2tune report`: write the page again."""
    return write_vertical_report(run_dir)


def export(run_dir: Path, parties: str | None, out: Path | None) -> Path:
    """`h2tune export`: a predictor for a subset of the parties, named with commas between; by default all."""
    predictor = Predictor(run_dir)
    names = _names(parties) if parties is not None else predictor.here
    written = predictor.export(names, out or run_dir / "export" / "-".join(names))
    if classes := predictor.differs(names):
        print(
            f"warning: probabilities of {printable(', '.join(classes))}, and of the others with them, differ from the run's, and"
            " so may the class: with this `gate` or `missing` they take figures of the parties that are left out. An export of"
            " all parties predicts as the run does.",
            file=sys.stderr,
        )
    return written


def predict(run_dir: Path, files: Sequence[str], out: Path | None = None) -> list[dict[str, Any]]:
    """`h2tune predict`: answers for the people in files that are given as ``party=file``, as JSON lines.

    Raises:
        ConfigError: if a file is not given so.
    """
    tables: dict[str, str] = {}
    # A comma that no `party=` follows belongs to the path.
    for part in (piece for entry in files for piece in re.split(NEXT_PARTY, entry)):
        name, equals, path = part.partition("=")
        if not equals:
            raise ConfigError(
                [f"--file {part}: write party=file, for example --file bank=bank.csv --file lab=lab.csv"]
            )
        name, path = name.strip(), path.strip()
        if name in tables:
            raise ConfigError([f"--file names two files of {name}: {tables[name]} and {path}; write one table"])
        tables[name] = path
    for path in tables.values():
        not_over(out, path)
    answers = Predictor(run_dir).predict(tables)
    text = "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
    if out is None:
        sys.stdout.write(text)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    return answers


def init(file: Path) -> Path:
    """`h2tune init --vertical`: a commented file to fill in.

    Raises:
        ConfigError: if the file exists.
    """
    if file.exists():
        raise ConfigError([f"{file} exists already."])
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text((files("h2tune.vertical") / "template.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    return file


def demo(out: Path, seed: int = 0, as_json: bool = False) -> dict[str, Any]:
    """`h2tune demo --vertical`: write three tables, train on them, and predict for people known to two parties."""
    from h2tune.vertical.demo import write_demo

    file = write_demo(out / "data", seed)
    metrics = train(file, out / "run", as_json=as_json)
    if not as_json:
        files = [f"bank={out / 'data' / 'new_bank.csv'}", f"shop={out / 'data' / 'new_shop.csv'}"]
        predict(out / "run", files, out / "predictions.jsonl")
        print(f"predictions        {out / 'predictions.jsonl'} (people whom bank and shop know, clinic does not)")
    return metrics


def provision(
    file: Path, out: Path, renew: Sequence[str] = (), days: int = 360, revoke: Sequence[str] = ()
) -> list[Path]:
    """`h2tune provision`: a kit for the active party (`server`) and for every other party."""
    from h2tune.cli.options import REFUSED
    from h2tune.deployment.provision import revoke as refuse
    from h2tune.deployment.vertical import outdated_parties, provision_vertical

    config = load_vertical(file)
    if revoke:
        print(REFUSED.format(", ".join(refuse(out, revoke))))
        if not renew:
            return []
    made = provision_vertical(config, out, renew, days)
    for folder in made:
        print(f"{folder.name:<16} {folder}")
    _warn([*unused(config, method_named(config.method.name)), *filter(None, [outdated_parties(config, out)])])
    if revoke:
        return made
    if not made:
        print("all kits are there already; --renew NAME makes one again")
        return made
    address = f"{config.network.host}:{config.network.port}"
    print(f"\nThe parties will connect to {address} (network.host and network.port in {file.name}).")
    print(f"at {config.label.party:<12} h2tune server {out / 'server'} --train ... --test ...")
    for party in config.passive:
        print(f"at {party.name:<12} h2tune client {out / party.name} --train ... --test ...")
    return made


def serve(kit: Path, own: dict[str, Any], as_json: bool = False) -> dict[str, Any]:
    """`h2tune server`: be the active party of a kit's federation; the same command goes on after a stop."""
    from h2tune.deployment.kits import Kit
    from h2tune.deployment.vertical import config_of, serve_vertical

    found = Kit(kit, "server")
    config, _ = config_of(found, found.own() | own)
    names = [config.label.party, *(p.name for p in config.passive)]
    with Progress(names, config.label.classes, "json" if as_json else "auto") as progress:
        metrics = serve_vertical(found, own, progress)
    page = write_vertical_report(kit / "run")
    if as_json:
        print(json.dumps({"event": "result", "run": str(kit / "run"), "final": metrics["final"]}))
    else:
        print_result(metrics)
        print(f"\nreport   {page}")
    return metrics


def attend(kit: Path, own: dict[str, Any], as_json: bool = False) -> str:
    """`h2tune client`: be a passive party of a kit's federation; the same command goes on after a stop."""
    from h2tune.deployment.kits import Kit
    from h2tune.deployment.vertical import attend_vertical

    def say(text: str) -> None:
        print(json.dumps({"event": "message", "text": text}) if as_json else printable(text), flush=True)

    words = attend_vertical(Kit(kit, "client"), own, say)
    say(words)
    return words
