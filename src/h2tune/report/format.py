"""Numbers as a reader wants them, and the verdict on a run in one plain sentence."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from h2tune.report.data import Client, Run

MISSING = "\u2013"
_MINUS = "\u2212"
_NARROW = "\u202f"  # keeps a number and its unit on one line

SENT = (
    "The kept entries of the shared core, once a round, and which entries those are.",
    "How many examples the client trained on, unless all clients weigh the same.",
    "The metrics that the configuration allows.",
)
SENT_AT_SETUP = (
    "Once, at set-up: coordinates of the model\u2019s activations on the public anchor sentences. "
    "They come from the anchor text, never from the client\u2019s own."
)
NEVER = (
    "Training, validation and test text, and the model\u2019s answers to it.",
    "The base model\u2019s weights and its tokenizer.",
    "The client\u2019s own adapter factors A and B, its layer relation matrix and its mask.",
    "The head of a classification task.",
    "Gradients and the state of the optimiser.",
)


def percent(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.1f}{_NARROW}%".replace("-", _MINUS)


def points(value: float | None) -> str:
    """A difference of two shares in percentage points, always signed unless it rounds to zero."""
    if value is None:
        return MISSING
    rounded = round(100 * value, 1)
    return f"{rounded:+.1f}".replace("-", _MINUS) if rounded else "0.0"


def decimal(value: float | None, digits: int = 2) -> str:
    return MISSING if value is None else f"{value:.{digits}f}".replace("-", _MINUS)


def count(value: int | None) -> str:
    return MISSING if value is None else f"{value:,}".replace(",", _NARROW)


def size(value: float | None) -> str:
    """Bytes in decimal units, as network people count them."""
    if value is None:
        return MISSING
    power = 0
    while abs(value) >= 999.5 and power < 4:
        value, power = value / 1000, power + 1
    digits = 1 if power and abs(value) < 99.5 else 0
    return f"{value:.{digits}f}{_NARROW}{('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def duration(seconds: float | None) -> str:
    if seconds is None or seconds < 0:
        return MISSING
    if seconds < 60:
        return f"{seconds:.0f}{_NARROW}s" if seconds >= 10 else f"{seconds:.1f}{_NARROW}s"
    minutes, hours = round(seconds) // 60, round(seconds) // 3600
    if hours:
        return f"{hours}{_NARROW}h {minutes % 60:02d}{_NARROW}min"
    return f"{minutes}{_NARROW}min {round(seconds) % 60:02d}{_NARROW}s"


def tone(gain: float | None) -> str:
    """Which way a difference points once it is rounded as it is shown: better, worse, same or unknown."""
    if gain is None:
        return "unknown"
    rounded = round(100 * gain, 1)
    return "better" if rounded > 0 else "worse" if rounded < 0 else "same"


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are there."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


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
    """The outcome in words. Means are over the clients that have both results, and the sentence says so."""
    over = comparison(run)
    compared = [client for client in run.clients if client.gain(over) is not None]
    gain = mean(client.gain(over) for client in compared)
    sentence = _compare(run, compared, over) if compared else _alone(run)
    if not run.finished:
        sentence = f"Unfinished, {run.rounds_done} of {run.rounds} rounds: {sentence[0].lower()}{sentence[1:]}"
    notes = (_frames(run), _chance(compared, over), _no_baseline(run, over), _kept(run), _nats(run))
    return Verdict(sentence, tone(gain), tuple(note for note in notes if note))


def _compare(run: Run, compared: list[Client], over: str) -> str:
    before = percent(mean(client.score(over).metric for client in compared))
    after = percent(mean(client.score("final").metric for client in compared))
    what = measure(compared) if len(compared) == 1 else f"mean {measure(compared)}"
    cause, alone = ("Federation", "trained alone") if over == "local" else ("Fine-tuning", "untouched base model")
    direction = tone(mean(client.gain(over) for client in compared))
    gained = sum(tone(client.gain(over)) == "better" for client in compared)
    some = f"{gained} of {len(compared)} clients" + (" with both results" if len(compared) < len(run.clients) else "")
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


def _alone(run: Run) -> str:
    """The headline where there is nothing to compare with."""
    if not run.clients:
        return "No client took part."
    final = mean(client.score("final").metric for client in run.clients)
    if final is not None:
        return f"The mean {measure(run.clients)} is {percent(final)}, with nothing to compare it with."
    last = [client.rounds[-1].validation for client in run.clients if client.rounds]
    validation = mean(score.metric for score in last if score)
    if validation is None:
        return "No client has a result yet."
    return f"No result on test data yet; the mean {measure(run.clients)} on validation data is {percent(validation)}."


def measure(clients: Iterable[Client]) -> str:
    """The name of the metric where all clients share one."""
    names = {client.metric for client in clients}
    return names.pop() if len(names) == 1 else "score"


def _interval(compared: list[Client], over: str) -> tuple[float, float] | None:
    """95 % interval of the mean difference from the number of test items (Agresti and Caffo 2000 variances).

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
    return None if centre is None else (centre - half, centre + half)


def _chance(compared: list[Client], over: str) -> str:
    interval = _interval(compared, over)
    if not compared or interval is None:
        return ""
    low, high = (points(bound) for bound in interval)
    return (
        f"With this many test items the difference lies between {low} and {high} points (95{_NARROW}% interval). "
        "Chance from the seed is not in it: only repeated runs can show that."
    )


def _no_baseline(run: Run, over: str) -> str:
    if over == "local" or not run.clients:
        return ""
    return (
        "No client was trained alone for comparison, so this page cannot say what federation was worth. "
        "Run with \u201cbaseline: local\u201d to find out."
    )


def _frames(run: Run) -> str:
    """How much of the result the frames alone explain, where that was measured."""
    both = [client for client in run.clients if client.gain("unshared") is not None]
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
    best = [client.score("local" if client.kept == "local" else "final").metric for client in run.clients]
    return (
        f"{own} of {len(run.clients)} clients kept the adapter trained alone for its better validation result. "
        f"What the clients keep reaches {percent(mean(best))} on test data."
    )


def _nats(run: Run) -> str:
    """Mean nats per stage over the clients that have it at every stage shown."""
    names = {"base": "base model", "local": "alone", "final": "federated"}
    stages = [stage for stage in names if any(client.score(stage).nats is not None for client in run.clients)]
    full = [client for client in run.clients if all(client.score(stage).nats is not None for stage in stages)]
    if "final" not in stages or not full:
        return ""
    steps = [f"{decimal(mean(client.score(stage).nats for client in full))} ({names[stage]})" for stage in stages]
    return f"Mean nats per answer token, lower is better: {', '.join(steps)}."


def sent(run: Run) -> tuple[str, ...]:
    """What leaves a client in words, with the set-up only where something was sent then."""
    return (*SENT, SENT_AT_SETUP) if any(client.setup.up for client in run.clients) else SENT
