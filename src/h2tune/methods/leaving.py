"""What leaves a client: what the engine sends for every method, and what the method declares.

`plan`, the report and the docs show this list, and a test holds every message of every method against it.
"""

from __future__ import annotations

from h2tune.config import Experiment
from h2tune.methods.base import Sent
from h2tune.methods.registry import resolve_method

ENGINE = [
    Sent(
        "join",
        ("facts", "base", "depth", "slots", "rank", "keep", "family", "fingerprint", "maps"),
        "numbers of rows, names of task and model family, sizes of the model and a digest of its weights, scores of the"
        " untouched model on the test rows, share of their commonest answer; and, except of clients with row_privacy,"
        " how likely test answers are by the counts of tokens in training answers, how many test rows are training rows,"
        " and the share of training words that the anchors hold",
        "once",
    ),
    Sent(
        "*",
        ("report",),
        "mean losses and seconds of the round, scores on validation rows (with evaluation.curves on test rows, too)",
    ),
    Sent("finish", ("final",), "scores on validation and test rows", "at the end"),
    Sent("failure", ("reason", "rejoin"), "why a request could not be answered", "when it happens"),
]
"""What leaves whatever the method is."""

STAYS = (
    "Nothing else leaves: no row, no text, no base model, no optimiser state, and none of the method's other tensors."
)


def what_leaves(experiment: Experiment) -> list[Sent]:
    """All that leaves a client in a run of this experiment."""
    method, settings = resolve_method(experiment.method)
    return [*method.client.leaves(experiment, settings), *ENGINE]


def undeclared(sent: list[Sent], kind: str, names: set[str]) -> set[str]:
    """Names in a client's message that no entry of the list covers."""
    declared = [entry for entry in sent if entry.kind in (kind, "*")]
    return {name for name in names if not any(entry.covers(name) for entry in declared)}


def as_lines(sent: list[Sent]) -> list[str]:
    """One line for each thing that leaves, what is sent most often first."""
    order = {"each round": 0, "at the end": 2, "when it happens": 3}
    lines = {f"{entry.when}: {entry.says}": order.get(entry.when, 1) for entry in sent}
    return sorted(lines, key=lambda line: lines[line])
