"""What a client says of itself when it joins: numbers of rows, names of model and task, scores of the untouched model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from h2tune.participant.context import ClientContext
from h2tune.participant.scoring import Score, unigram_nats


def facts_of(context: ClientContext, anchor_coverage: float) -> dict[str, Any]:
    """The values of `h2tune.protocol.schemas.ClientFacts`."""
    data, task, model = context.data, context.task, context.config.model
    golds = [example.gold for example in data.test.examples]
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
        "unigram_nats": unigram_nats(data.train.encoded, data.test.encoded, len(context.tokenizer)),
        "majority": max(map(golds.count, set(golds))) / len(golds),
        "leaked": data.leaked,
        "anchor_coverage": anchor_coverage,
    }


def base_score(context: ClientContext) -> Score:
    """The untouched model on the test rows; worked out once, since the baselines of a run ask again."""
    test, cache = context.data.test, context.base.cache
    prompts = tuple((example.prompt, example.answer, example.options) for example in test.examples)
    key = ("base score", context.task.name, context.task.kind, hash(prompts))
    if key not in cache:
        cache[key] = context.score(test, untouched=True)
    found: Score = cache[key]
    return found
