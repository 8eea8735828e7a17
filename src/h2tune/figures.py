"""The figures that a client tells the server: facts when it joins, scores after a round and at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

from h2tune.frames.anchor_text import coverage
from h2tune.participant.context import ClientContext
from h2tune.participant.scoring import Score, unigram_nats
from h2tune.store import ClientStore


def facts_of(context: ClientContext, store: ClientStore | None = None) -> dict[str, Any]:
    """Numbers of rows, names of model and task, sizes (`h2tune.protocol.schemas.ClientFacts`).

    Args:
        store: where the words that the anchors lack are written down. They are private text; only their share is told.
    """
    rows = context.data.train.examples
    covered, missing = coverage(context.anchors, [row.prompt + row.answer for row in rows])
    if store:
        store.write_json("anchors.json", {"covered": covered, "missing": missing})
    data, task, model = context.data, context.task, context.config.model
    golds = [example.gold for example in data.test.examples]
    private = context.config.row_privacy is not None  # then nothing exact about training rows leaves
    return {
        # A path says something about this machine; a public name says nothing.
        "model": f"local {context.base.family}" if Path(model).exists() else model,
        "family": context.base.family,
        "task": task.name,
        "kind": task.kind,
        "metric": task.metric,
        "n_train": len(data.train),
        "n_validation": len(data.validation),
        "n_test": len(data.test),
        "keep": context.keep,
        "unigram_nats": None
        if private
        else unigram_nats(data.train.encoded, data.test.encoded, len(context.tokenizer)),
        "majority": majority(golds),
        "leaked": None if private else data.leaked,
        "anchor_coverage": None if private else covered,
    }


def majority(answers: Sequence[Hashable]) -> float:
    """Share of the most frequent answer."""
    return max(Counter(answers).values()) / len(answers)


def base_score(context: ClientContext) -> Score:
    """The untouched model on the test rows; worked out once, since the baselines of a run ask again."""
    test, cache = context.data.test, context.base.cache
    key = ("base score", repr(context.config.task), context.config.max_length, hash(repr(test.examples)))
    if key not in cache:
        cache[key] = context.score(test, untouched=True)
    found: Score = cache[key]
    return found


def round_scores(context: ClientContext) -> dict[str, Any]:
    """Scores after a round, on validation rows and, with ``evaluation.curves``, on test rows."""
    validation = context.score(context.data.validation).plain()
    curves = context.experiment.evaluation.curves
    return {"validation": validation, "test": context.score(context.data.test).plain() if curves else None}


def final_scores(context: ClientContext) -> dict[str, Any]:
    """Scores at the end, on test rows, and on the validation rows that a choice may rest on."""
    validation, test = context.score(context.data.validation), context.score(context.data.test)
    return test.plain() | {"validation": validation.metric, "validation_nats": validation.nats}
