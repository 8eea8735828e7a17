"""A run directory as typed data, whatever state the run is in.

A report is most wanted when something went wrong, so reading is forgiving: a missing, infinite or NaN value becomes
`None`, a key that is not there becomes its empty value, and the last event may be cut in the middle. Only a directory
that holds no metrics, or those of a newer version, is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from h2tune.errors import H2TuneError
from h2tune.report.data import Agreement, Client, Core, Event, Round, Run, Score, Traffic
from h2tune.report.flows import read_flows
from h2tune.report.values import list_of, mapping, matrix, text, texts, whole
from h2tune.utils.numbers import number

SCHEMA = 1


class ReportError(H2TuneError, ValueError):
    """The directory cannot be reported on; the message says why in one line."""


def read_run(run_dir: Path) -> Run:
    """Read RUN/metrics.json, RUN/events.jsonl and RUN/config.yaml; raises `ReportError`."""
    data = read_metrics(run_dir)
    events, unreadable = _events(run_dir / "events.jsonl")
    return Run(
        name=text(data.get("name")) or run_dir.resolve().name,
        method=text(data.get("method")),
        seed=whole(data.get("seed")),
        rounds=whole(data.get("rounds")) or 0,
        finished=data.get("finished") is True,
        seconds=number(data.get("seconds")),
        version=text(data.get("version")),
        clients=tuple(_client(str(name), mapping(entry)) for name, entry in mapping(data.get("clients")).items()),
        core=_core(data.get("core")),
        flows=read_flows(data.get("flows")),
        sent=texts(data.get("sent")),
        never=texts(data.get("never")),
        events=events,
        unreadable=unreadable,
        config=_config(run_dir / "config.yaml"),
        privacy=_privacy(mapping(data.get("privacy"))),
    )


def read_metrics(run_dir: Path) -> Mapping[str, Any]:
    """What RUN/metrics.json holds, of a run of any kind; raises `ReportError`."""
    path = run_dir / "metrics.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        if (run_dir / "config.yaml").is_file():
            raise ReportError(
                f"{run_dir} has no figures yet: its run has not come to its end; go on with h2tune run FILE --out {run_dir}"
                " --resume"
            ) from None
        raise ReportError(f"{run_dir} is not a run directory: it has no {path.name}") from None
    except OSError as error:
        raise ReportError(f"{run_dir} is not a run directory: {path.name} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise ReportError(f"{path} is damaged: {error}") from None
    if not isinstance(data, dict):
        raise ReportError(f"{path} is damaged: it holds no mapping")
    schema = whole(data.get("schema")) or SCHEMA
    if schema > SCHEMA:
        raise ReportError(f"{path} was written by a newer version (schema {schema}, this one reads {SCHEMA})")
    return data


def _client(name: str, data: Mapping[str, Any]) -> Client:
    coverage = mapping(data.get("anchor_coverage"))
    rounds = [_round(mapping(entry)) for entry in list_of(data.get("rounds"))]
    return Client(
        name=name,
        model=text(data.get("model")),
        family=text(data.get("family")),
        task=text(data.get("task")),
        kind=text(data.get("kind")),
        metric=text(data.get("metric")) or "accuracy",
        n_train=whole(data.get("n_train")),
        n_validation=whole(data.get("n_validation")),
        n_test=whole(data.get("n_test")),
        base=_score(data.get("base")),
        local=_score(data.get("local")),
        unshared=_score(data.get("unshared")),
        final=_score(data.get("final")),
        majority=number(data.get("majority")),
        unigram_nats=number(data.get("unigram_nats")),
        kept=text(data.get("kept")) or None,
        status=text(data.get("status")) or "ok",
        rounds=tuple(sorted((entry for entry in rounds if entry is not None), key=lambda entry: entry.round)),
        relation=matrix(data.get("relation")),
        accepted=number(data.get("accepted")),
        agreement=_agreement(data.get("agreement")),
        anchor_words=number(coverage.get("words")),
        anchor_missing=texts(coverage.get("missing")),
        setup=_traffic(mapping(data.get("setup_bytes")), "up", "down"),
    )


def _round(data: Mapping[str, Any]) -> Round | None:
    index = whole(data.get("round"))
    if index is None:
        return None
    return Round(
        round=index,
        loss={str(phase): number(value) for phase, value in mapping(data.get("loss")).items()},
        validation=_score(data.get("validation")),
        test=_score(data.get("test")),
        traffic=_traffic(data, "bytes_up", "bytes_down"),
        seconds=number(data.get("seconds")),
    )


def _score(value: Any) -> Score | None:
    if not isinstance(value, dict):
        return None
    validation = value.get("validation")
    if isinstance(validation, dict):
        validation = validation.get("metric")
    score = Score(number(value.get("metric")), number(value.get("nats")), number(validation))
    return None if score == Score() else score


def _traffic(data: Mapping[str, Any], up: str, down: str) -> Traffic:
    return Traffic(whole(data.get(up)) or 0, whole(data.get(down)) or 0)


def _agreement(value: Any) -> Agreement | None:
    data = mapping(value)
    inputs, outputs = matrix(data.get("in")), matrix(data.get("out"))
    if not (inputs or outputs):
        return None
    slots = texts(data.get("slots"))
    return Agreement(inputs, outputs, slots, texts(data.get("inputs")) or slots)


def _core(value: Any) -> Core | None:
    data = mapping(value)
    norms = matrix(data.get("norms"))
    return Core(texts(data.get("slots")), norms) if norms else None


def _privacy(data: Mapping[str, Any]) -> str:
    spent, delta, budget = (number(data.get(key)) for key in ("epsilon", "delta", "budget"))
    if spent is None or delta is None:
        return ""
    return f"ε {spent:.2f}{f' of {budget:g}' if budget else ''}, δ {delta:g}"


def _events(path: Path) -> tuple[tuple[Event, ...], int]:
    events: list[Event] = []
    unreadable = 0
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in filter(str.strip, lines):
                try:
                    events.append(_event(json.loads(line)))
                except (ValueError, AttributeError, RecursionError):
                    unreadable += 1
    except OSError:
        pass
    return tuple(events), unreadable


def _event(data: Mapping[str, Any]) -> Event:
    client = data.get("client")
    return Event(
        time=text(data.get("time")),
        event=text(data.get("event")),
        round=whole(data.get("round")),
        client=None if client is None else str(client),
        text=text(data.get("text")),
    )


def _config(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
