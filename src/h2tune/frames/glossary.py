"""Frames by glossary at the client: fit A to the terms' codes, then practise obeying cores that are written down.

The mathematics is in `h2tune.frames.lexicon`; this is its training loop. Nothing private goes into it, so all methods of
a run use the same result.
"""

from __future__ import annotations

import hashlib
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from h2tune.config import ClientConfig
from h2tune.core.client_core import CoreShape
from h2tune.core.slots import input_kind
from h2tune.errors import MethodError
from h2tune.frames.base import ClientFrames, FramedAdapter, FrameKind
from h2tune.frames.episodes import load_practice
from h2tune.frames.lexicon import Episode, code, fit_readers, written
from h2tune.frames.words import practised_factors
from h2tune.participant.batches import collate
from h2tune.participant.trainer import Trainer
from h2tune.protocol.codec import Payload
from h2tune.tasks.example import Task

FITTED_EPISODES = 12  # whose prompts A is fitted on


def practise(method: FramedAdapter, rate: float) -> None:
    """Set the client's A and B to practised frames; what was practised once is kept."""
    context = method.context
    episodes = load_practice(str(context.config.practice), context.tokenizer, context.max_length)
    content = [(sorted(e.lexicon.items()), [(list(r.input_ids), list(r.labels)) for r in e.rows]) for e in episodes]
    what = (context.base.fingerprint, context.name, context.seed, context.rank, method.adapter_rank, method.shared_rank,
            tuple(context.layout.slots), rate, content)  # fmt: skip
    key = hashlib.sha256(repr(what).encode()).hexdigest()[:16]

    def practised() -> dict[str, Tensor]:
        _fit(method, episodes)
        _obey(method, episodes, rate)
        return practised_factors(method)

    kept = context.models.kept(f"glossary-{key}", practised)
    with torch.no_grad():
        for index, parameter in enumerate(method.factors):
            parameter.copy_(kept[str(index)])


class GlossaryClient(ClientFrames):
    @classmethod
    def suits(cls, settings: Any, client: ClientConfig, task: Task) -> None:
        if not client.practice:
            raise MethodError(f"{client.name}: frames: glossary needs `practice:`, public problems with a lexicon")
        if task.kind == "classify":
            raise MethodError(f"{client.name}: frames: glossary works for tasks that write text, not for classify")

    def set_up(self, payload: Payload, shape: CoreShape, relation: Tensor) -> Tensor:
        practise(self.adapter, self.settings.practice_rate)
        return relation


GLOSSARY = FrameKind("glossary", "practised on public terms with random meanings", GlossaryClient)


def _fit(method: FramedAdapter, episodes: list[Episode]) -> None:
    """A reads the terms' codes, B writes nothing yet."""
    context, rank = method.context, method.shared_rank
    texts = [text for episode in episodes[:FITTED_EPISODES] for text in episode.texts]
    terms = sorted({term.lower() for episode in episodes for term in episode.lexicon})
    base = context.base
    with base.untouched() as model:
        readers = fit_readers(
            model,
            context.tokenizer,
            context.layout,
            texts,
            {term: code(f"term {term}", context.rank) for term in terms},
            base.context,
            base.causal,
        )
    places = [(block, module) for block in range(context.layout.depth) for module in context.layout.modules]
    with torch.no_grad():
        for layer, (block, module) in zip(method.layers, places, strict=True):
            slot = next(s for s, ref in context.layout.slots.items() if ref.module == module)
            layer.trilora_A[context.adapter][:rank] = readers[block][input_kind(slot)][:rank]
            layer.trilora_B[context.adapter].zero_()


def _obey(method: FramedAdapter, episodes: list[Episode], rate: float) -> None:
    """One update of A and B per episode, with the core that its lexicon asks for."""
    context, rank = method.context, method.shared_rank
    trainer = Trainer(context.training, context.accelerator)  # the text is public: no row is to be protected
    group = method.group(method.factors, rate, len(episodes))
    model = method.activate()
    for leaf in method.middles:
        leaf.requires_grad_(False)
    for episode in episodes:
        with torch.no_grad():
            core = written(episode.lexicon, context.rank)[:rank, :rank]
            for leaf in method.middles:
                leaf[..., :rank, :rank] = core
        batch = collate(episode.rows, context.tokenizer.pad_token_id)
        trainer.gradients(model, repeat((batch, [])), passes=context.passes)
        trainer.apply([group])
