"""The verdict on a run in one plain sentence, and what a careful reader needs beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from h2tune.report.data import Client, Run
from h2tune.report.format import NARROW, decimal, mean, percent, points, tone

NAMED = 5  # clients that a sentence names


@dataclass(frozen=True)
class Verdict:
    """`sentence` is the headline, `notes` what a careful reader needs beside it."""

    sentence: str
    tone: str
    notes: tuple[str, ...]


def comparison(run: Run) -> str:
    """What the federated result is compared with: "local" wherever a client was trained alone, else "base"."""
    return "local" if any(client.local for client in run.clients) else "base"


def verdict(run: Run) -> Verdict:
    """The outcome in words. Means are over `Run.complete`; a note names the clients that are missing."""
    over = comparison(run)
    compared = [client for client in run.complete if client.gain(over) is not None]
    gain = mean(client.gain(over) for client in compared)
    sentence = _compare(run, compared, over) if compared else _alone(run)
    if compared and over == "local" and _nobody(run):
        sentence = f"{sentence.removesuffix('.')}; in the last round nobody took the shared core."
    if not run.finished:
        sentence = f"Unfinished, {run.rounds_done} of {run.rounds} rounds: {sentence[0].lower()}{sentence[1:]}"
    notes = (
        missing(run),
        _frames(run),
        _chance(compared, over),
        _no_baseline(run, over),
        _kept(run),
        _accepted(run),
        _apart(run),
        _nats(run),
    )
    return Verdict(sentence, tone(gain), tuple(note for note in notes if note))


def missing(run: Run) -> str:
    """Which clients the means leave out; empty where they hold all."""
    names = [client.name for client in run.incomplete]
    if not names or not run.stages:
        return ""
    several, more = len(names) > 1, f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return (
        f"{', '.join(names[:NAMED])}{more} {'have' if several else 'has'} no result in at least one column, so the means"
        f" leave {'them' if several else 'it'} out."
    )


def _compare(run: Run, compared: list[Client], over: str) -> str:
    before = percent(mean(client.score(over).metric for client in compared))
    after = percent(mean(client.score("final").metric for client in compared))
    what = _averaged(compared)
    federation = f"Training with {run.method}" if _nobody(run) else "Federation"
    cause, alone = (federation, "trained alone") if over == "local" else ("Fine-tuning", "untouched base model")
    direction = tone(mean(client.gain(over) for client in compared))
    gained = sum(tone(client.gain(over)) == "better" for client in compared)
    some = f"{gained} of {len(compared)} clients" + (" with all results" if len(compared) < len(run.clients) else "")
    tail = "" if len(run.clients) == 1 else f", for {some}" if direction == "better" else f"; {some} gained"
    if direction == "same":
        return f"{cause} made no difference to the {what}: {after}, as {alone}{tail}."
    interval = _interval(compared, over)
    if interval and interval[0] <= 0 <= interval[1]:
        tail = "" if len(run.clients) == 1 else f"; {some} gained"
        return f"{cause} moved the {what} from {before} ({alone}) to {after}, which may be chance{tail}."
    if direction == "better":
        return f"{cause} raised the {what} from {before} ({alone}) to {after}{tail}."
    return f"{cause} did not help: the {what} fell from {before} ({alone}) to {after}{tail}."


def _nobody(run: Run) -> bool:
    """Whether clients chose what to take of the shared core, and in the last round none of them took any."""
    chosen = _choices(run)
    return bool(chosen) and max(chosen) <= 0


def _choices(run: Run) -> list[float]:
    return [client.accepted for client in run.clients if client.accepted is not None]


def _alone(run: Run) -> str:
    """The headline where there is nothing to compare with."""
    if not run.clients:
        return "No client took part."
    final = mean(client.score("final").metric for client in run.clients)
    if final is not None:
        return f"The {_averaged(run.clients)} is {percent(final)}, with nothing to compare it with."
    last = [client.rounds[-1].validation for client in run.clients if client.rounds]
    validation = mean(score.metric for score in last if score)
    if validation is None:
        return "No client has a result yet."
    return f"No result on test data yet; the {_averaged(run.clients)} on validation data is {percent(validation)}."


def measure(clients: Iterable[Client]) -> str:
    """The name of the metric where all clients share one."""
    names = {client.metric for client in clients}
    return names.pop() if len(names) == 1 else "score"


def _averaged(clients: Sequence[Client]) -> str:
    """What the mean over clients is called; one client has no mean."""
    return measure(clients) if len(clients) == 1 else f"mean {measure(clients)}"


def _interval(compared: list[Client], over: str) -> tuple[float, float] | None:
    """95 % interval of the mean difference from the number of test items (Agresti and Caffo 2000 variances), cut off at
    the largest difference that two shares can have.

    The two results are taken as independent. They share their test items, so the true interval is most often narrower.
    """
    variance = 0.0
    for client in compared:
        if not client.n_test:
            return None
        for metric in (client.score(over).metric or 0.0, client.score("final").metric or 0.0):
            share = (min(max(metric, 0.0), 1.0) * client.n_test + 1) / (client.n_test + 2)
            variance += share * (1 - share) / (client.n_test + 2)
    centre = mean(client.gain(over) for client in compared)
    half = 1.96 * math.sqrt(variance) / max(len(compared), 1)
    return None if centre is None else (max(centre - half, -1.0), min(centre + half, 1.0))


def _chance(compared: list[Client], over: str) -> str:
    interval = _interval(compared, over)
    if not compared or interval is None:
        return ""
    low, high = (points(bound) for bound in interval)
    return (
        f"With this many test items the difference lies between {low} and {high} points (95{NARROW}% interval). "
        "Chance from the seed is not in it: only repeated runs can show that."
    )


def _no_baseline(run: Run, over: str) -> str:
    if over == "local" or not run.clients:
        return ""
    return (
        "No client was trained alone for comparison, so this page cannot say what federation was worth. "
        "On one machine, \u201cbaseline: local\u201d finds out; over a network, each client can run \u201cmethod: local\u201d "
        "on its own data."
    )


def _frames(run: Run) -> str:
    """How much of the result the frames alone explain, where that was measured."""
    both = [client for client in run.complete if client.gain("unshared") is not None]
    if not both:
        return ""
    alone, gain = (
        mean(client.score("unshared").metric for client in both),
        mean(client.gain("unshared") for client in both),
    )
    return (
        f"The same frames and phases without averaging reach {percent(alone)}; averaging the core changed that by"
        f" {points(gain)} points."
    )


def _kept(run: Run) -> str:
    if not any(client.kept == "local" for client in run.clients):
        return ""
    own = sum(client.kept == "local" for client in run.clients)
    said = f"{own} of {len(run.clients)} clients kept the adapter trained alone for its better validation result."
    best = mean(client.score("local" if client.kept == "local" else "final").metric for client in run.complete)
    if best is None:
        return said
    left = f"{len(run.complete)} of {len(run.clients)} clients" if run.incomplete else "the clients"
    return f"{said} What {left} keep reaches {percent(best)} on test data."


def _accepted(run: Run) -> str:
    """What the clients chose to take of the shared core, where they had the choice."""
    chosen = _choices(run)
    if all(share == 1 for share in chosen):
        return ""
    counts = {
        "took the shared core": sum(share == 1 for share in chosen),
        "its mean with their own": sum(0 < share < 1 for share in chosen),
        "kept their own core": sum(share == 0 for share in chosen),
        "took none": sum(share < 0 for share in chosen),
    }
    said = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    nobody = (
        " In the last round nobody took what was shared: a difference from training alone may come from the way of"
        " training, not from sharing."
    )
    who = "clients" if len(chosen) == len(run.clients) else "clients that share a core,"
    return f"By their validation rows, of {len(chosen)} {who} {said}.{nobody if _nobody(run) else ''}"


def _apart(run: Run) -> str:
    """Which clients share no core where others do: their gain is none of sharing."""
    names = [client.name for client in run.clients if client.accepted is None and client.rounds]
    if not names or not _choices(run):
        return ""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    share, their = ("share", "their differences are") if len(names) > 1 else ("shares", "its difference is")
    return f"{', '.join(names[:NAMED])}{more} {share} nothing, so {their} no effect of sharing."


def _nats(run: Run) -> str:
    """Mean nats per stage over the clients that have it at every stage."""
    names = {"base": "base model", "local": "alone", "final": "federated"}
    stages = [stage for stage in names if any(client.score(stage).nats is not None for client in run.clients)]
    full = run.having("nats")
    if "final" not in stages or not full:
        return ""
    steps = [f"{decimal(mean(client.score(stage).nats for client in full))} ({names[stage]})" for stage in stages]
    return f"Mean nats per answer token, lower is better: {', '.join(steps)}."
