"""One self-contained HTML page per run (`h2tune.report.html`). The template escapes all text, pictures escape their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from h2tune.report.data import STAGES, Client, Event, Matrix, Run, Traffic
from h2tune.report.format import mean, percent, tone
from h2tune.report.html import fill, write_page
from h2tune.report.plots import Level, Line, heatmap, line_chart
from h2tune.report.plots import strip as result_strip
from h2tune.report.read import read_run
from h2tune.report.verdict import comparison, measure, missing, verdict

if TYPE_CHECKING:
    from markupsafe import Markup

SAID = {"joint": "core and private part at once"}
SHOWN = 12  # clients with pictures; the tables always hold all
ROUNDS = 200  # in the table of every round
EVENTS = 200  # notices on the page; the log holds all


@dataclass(frozen=True)
class Figure:
    """A picture and what stands above it."""

    title: str
    svg: Markup


@dataclass(frozen=True)
class Panel:
    """The pictures of one client."""

    name: str
    note: str
    figures: tuple[Figure, ...]


def write_report(run_dir: Path) -> Path:
    """Write RUN/report.html from RUN's metrics, events and configuration, and return its path.

    Raises:
        ReportError: the directory holds no readable metrics.
        StoreError: the page cannot be written.
    """
    run_dir = Path(run_dir)
    return write_page(run_dir / "report.html", render(read_run(run_dir)))


def render(run: Run) -> str:
    """The page as text."""
    over = comparison(run)
    shown = _shown(run, over)
    phases = {phase for client in shown for entry in client.rounds for phase in entry.loss}
    return fill(
        "template.html",
        name=run.name,
        kind="federated fine-tuning report",
        run=run,
        verdict=verdict(run),
        missing=missing(run),
        over=over,
        one_metric=len({client.metric for client in run.clients}) == 1,
        tone=tone,
        strip=_strip,
        average=_average(run, over),
        shown=shown,
        curves=_curves(run, shown),
        phases=phases,
        others=[SAID.get(phase, phase) for phase in sorted(phases - {"shared", "specific"})],
        pictures=[panel for panel in (_pictures(client) for client in shown) if panel.figures or panel.note],
        core=_core(run),
        traffic=_traffic(run),
        notices=_notices(run),
        limit=EVENTS,
    )


def _shown(run: Run, over: str) -> tuple[Client, ...]:
    """The clients that get pictures, in the order of the configuration: all, or those with the largest difference."""
    if len(run.clients) <= SHOWN:
        return run.clients
    ranked = sorted(run.clients, key=lambda client: abs(client.gain(over) or 0.0), reverse=True)
    chosen = {client.name for client in ranked[:SHOWN]}
    return tuple(client for client in run.clients if client.name in chosen)


def _strip(client: Client) -> Markup | None:
    base, local, final = (client.score(stage).metric for stage in ("base", "local", "final"))
    return result_strip(base, local, final, client.majority)


def _average(run: Run, over: str) -> dict[str, float | None]:
    """The last row of the table: means over the clients that have a result in every column."""
    row = {stage: mean(client.score(stage).metric for client in run.complete) for stage in STAGES}
    row["gain"] = mean(client.gain(over) for client in run.complete)
    return row


def _curves(run: Run, shown: Iterable[Client]) -> list[Panel]:
    panels = [_mean_curve(run)] if len(run.clients) > 1 else []
    panels += [_client_curves(client, run.rounds) for client in shown]
    return [panel for panel in panels if panel.figures]


def _client_curves(client: Client, rounds: int) -> Panel:
    """The metric over the rounds, or the nats where the task has no metric; and the losses of the phases."""
    field = "metric" if _points(client, "validation", "metric") or _points(client, "test", "metric") else "nats"
    lines = [
        Line("validation", _points(client, "validation", field), "validation"),
        Line("test", _points(client, "test", field), "test", "square"),
    ]
    levels: list[Level] = []
    if client.local and field == "metric" and client.local.validation is not None and lines[0].points:
        levels.append(Level("alone, validation", client.local.validation, "validation"))
    if client.local and (value := getattr(client.local, field)) is not None:
        levels.append(Level("alone, test", value, "test"))
    if client.final and client.rounds and (value := getattr(client.final, field)) is not None:
        lines.append(Line("final, test", [(client.rounds[-1].round, value)], "test", "diamond"))
    title = client.metric if field == "metric" else "nats per answer token"
    main = line_chart(lines, levels, rounds, f"{title} of {client.name} over the rounds", share=field == "metric")
    losses = line_chart(_loss_lines(client), [], rounds, f"losses of {client.name} over the rounds", share=False)
    return _panel(client.name, f"{client.task}, {client.model}", [(title, main), ("training loss", losses)])


def _points(client: Client, split: str, field: str) -> list[tuple[int, float | None]]:
    """(round, value) of every round that was scored; a score without this value breaks the curve."""
    scored = [(entry.round, getattr(entry, split)) for entry in client.rounds]
    points = [(position, getattr(score, field)) for position, score in scored if score]
    return points if any(value is not None for _, value in points) else []


def _loss_lines(client: Client) -> list[Line]:
    phases = [("shared", "shared", "dot"), ("specific", "specific", "square")]
    known = {phase for entry in client.rounds for phase in entry.loss} - {"shared", "specific"}
    phases += [(phase, "other", "dot") for phase in sorted(known)]
    return [
        Line(phase, [(entry.round, entry.loss.get(phase)) for entry in client.rounds], style, marker)
        for phase, style, marker in phases
    ]


def _mean_curve(run: Run) -> Panel:
    """Means of the metric and of the nats, over the clients that every mean on the page is over."""
    charts = {"metric": f"mean {measure(run.clients)}", "nats": "mean nats per answer token"}
    figures = []
    for field, title in charts.items():
        clients = run.having(field)
        left = "" if len(clients) == len(run.clients) else f", {len(clients)} of {len(run.clients)} clients"
        figures.append((title + left, _mean_chart(clients, run.rounds, field, title + left)))
    return _panel("All clients", "mean of each client\u2019s latest value", figures)


def _mean_chart(clients: Sequence[Client], rounds: int, field: str, title: str) -> Markup | None:
    lines = [
        Line("validation", _mean_points(clients, "validation", field), "validation"),
        Line("test", _mean_points(clients, "test", field), "test", "square"),
    ]
    alone = mean(getattr(client.score("local"), field) for client in clients)
    levels = [] if alone is None else [Level("alone, test", alone, "test")]
    return line_chart(lines, levels, rounds, f"{title} over the rounds", share=field == "metric")


def _mean_points(clients: Sequence[Client], split: str, field: str) -> list[tuple[int, float | None]]:
    """Every client counts with its latest value, since not all are scored in every round."""
    curves = [dict(_points(client, split, field)) for client in clients]
    latest: dict[int, float] = {}
    points: list[tuple[int, float | None]] = []
    for position in range(1, max((max(curve, default=0) for curve in curves), default=0) + 1):
        scored = {index: value for index, curve in enumerate(curves) if (value := curve.get(position)) is not None}
        latest |= scored
        if scored:
            points.append((position, mean(latest.values())))
    return points


def _pictures(client: Client) -> Panel:
    note = ""
    if client.anchor_words is not None:
        note = f"The anchors hold {percent(client.anchor_words)} of the words in this client\u2019s training data"
        more = ", \u2026" if len(client.anchor_missing) > 8 else ""
        note += f"; missing: {', '.join(client.anchor_missing[:8])}{more}." if client.anchor_missing else "."
    figures: list[tuple[str, Markup | None]] = []
    if client.relation:
        columns = [str(block) for block in range(len(client.relation[0]))]
        axes = ("row of the core", "the client\u2019s block")
        figures.append(
            (
                "layer relation",
                heatmap(client.relation, columns, f"relation of {client.name}", axes, _top(client.relation)),
            )
        )
    if client.agreement:
        for title, matrix in (("inputs", client.agreement.inputs), ("outputs", client.agreement.outputs)):
            figures.append((f"frame agreement, {title}", _agreement(matrix, client, title)))
    return _panel(client.name, note, figures)


def _agreement(matrix: Matrix | None, client: Client, title: str) -> Markup | None:
    if not matrix or not client.agreement:
        return None
    names, axis = (client.agreement.kinds, "input") if title == "inputs" else (client.agreement.slots, "slot")
    return heatmap(matrix, names, f"agreement of {title} of {client.name}", ("depth", axis))


def _core(run: Run) -> Markup | None:
    if run.core is None or run.core.norms is None:
        return None
    return heatmap(
        run.core.norms, run.core.slots, "norms of the shared core", ("row of the core", "slot"), _top(run.core.norms)
    )


def _top(matrix: Matrix) -> float:
    return max((value for row in matrix for value in row if value is not None), default=0.0)


def _panel(name: str, note: str, figures: Iterable[tuple[str, Markup | None]]) -> Panel:
    return Panel(name, note, tuple(Figure(title, svg) for title, svg in figures if svg is not None))


def _traffic(run: Run) -> dict[str, Any]:
    """Sums over clients, and one row per round, or for evenly spaced ones of many: who sent how much when.

    ``of`` holds every client's traffic by round; ``held`` is how many rounds there are where not all are shown, or 0.
    """
    rounds: dict[int, Traffic] = {}
    senders: Counter[int] = Counter()
    for client in run.clients:
        for entry in client.rounds:
            rounds[entry.round] = rounds.get(entry.round, Traffic()) + entry.traffic
            senders[entry.round] += 1
    setup = sum((client.setup for client in run.clients), Traffic())
    shown = _evenly(sorted(rounds), ROUNDS)
    return {
        "rounds": [(position, senders[position], rounds[position]) for position in shown],
        "of": [{entry.round: entry.traffic for entry in client.rounds} for client in run.clients],
        "held": len(rounds) if len(rounds) > len(shown) else 0,
        "in_rounds": sum(rounds.values(), Traffic()),
        "setup": setup,
    }


def _evenly(values: list[int], most: int) -> list[int]:
    """At most so many of the values, the first and the last among them."""
    if len(values) <= most:
        return values
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]


def _notices(run: Run) -> list[tuple[Event, int]]:
    """Warnings and exclusions, the same text once with its count, in order of first appearance."""
    kept = [event for event in run.events if event.event in ("warning", "client_excluded", "run_stopped")]
    counts = Counter((event.event, event.client, event.text) for event in kept)
    first: dict[tuple[str, str | None, str], Event] = {}
    for event in kept:
        first.setdefault((event.event, event.client, event.text), event)
    return [(event, counts[key]) for key, event in first.items()]
