"""Frames by glossary at the client: fit A to the terms' codes, then practise obeying cores that are written down.

The mathematics is in `h2tune.frames.lexicon`; this is its training loop. Nothing private goes into it, so all methods of
a run use the same result.
"""

from __future__ import annotations

import hashlib
from itertools import repeat

import torch
from torch import Tensor

from h2tune.core.slots import input_kind
from h2tune.frames.lexicon import Episode, code, fit_readers, written
from h2tune.participant.adapter_client import AdapterClient
from h2tune.participant.batches import collate

FITTED_EPISODES = 12  # whose prompts A is fitted on


def practise(method: AdapterClient, rate: float) -> None:
    """Set the client's A and B to practised frames."""
    client = method.client
    what = ("practice", client.name, client.config.practice, client.seed, client.rank, method.adapter_rank,
           method.shared_rank, tuple(client.layout.slots), rate)  # fmt: skip
    key = hashlib.sha256(repr((client.base.fingerprint, *what)).encode()).hexdigest()[:16]

    def practised() -> dict[str, Tensor]:
        episodes = client.practice()
        _fit(method, episodes)
        _obey(method, episodes, rate)
        return {str(index): p.detach().clone() for index, p in enumerate(method.factors)}

    kept = client.models.kept(f"glossary-{key}", practised)
    with torch.no_grad():
        for index, parameter in enumerate(method.factors):
            parameter.copy_(kept[str(index)])


def _fit(method: AdapterClient, episodes: list[Episode]) -> None:
    """A reads the terms' codes, B writes nothing yet."""
    client, rank = method.client, method.shared_rank
    texts = [text for episode in episodes[:FITTED_EPISODES] for text in episode.texts]
    terms = sorted({term.lower() for episode in episodes for term in episode.lexicon})
    base = client.base
    with base.peft.disable_adapter():
        readers = fit_readers(
            base.model,
            client.tokenizer,
            client.layout,
            texts,
            {term: code(f"term {term}", client.rank) for term in terms},
            base.context,
            base.causal,
        )
    places = [(block, module) for block in range(client.layout.depth) for module in client.layout.modules]
    with torch.no_grad():
        for layer, (block, module) in zip(method.layers, places, strict=True):
            slot = next(s for s, ref in client.layout.slots.items() if ref.module == module)
            layer.trilora_A[client.adapter][:rank] = readers[block][input_kind(slot)][:rank]
            layer.trilora_B[client.adapter].zero_()


def _obey(method: AdapterClient, episodes: list[Episode], rate: float) -> None:
    """One update of A and B per episode, with the core that its lexicon asks for."""
    client, rank = method.client, method.shared_rank
    group = method.group(method.factors, rate, len(episodes))
    method.activate()
    for leaf in method.leaves:
        leaf.requires_grad_(False)
    for episode in episodes:
        with torch.no_grad():
            core = written(episode.lexicon, client.rank)[:rank, :rank]
            for leaf in method.leaves:
                leaf[..., :rank, :rank] = core
        method.step(group, repeat((collate(episode.rows, client.tokenizer.pad_token_id), [])))
