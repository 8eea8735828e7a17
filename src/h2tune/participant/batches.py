"""Padded batches of encoded examples, in an order that a seed fixes, and of prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from h2tune.tasks.prompts import Encoded

Batch = dict[str, Tensor]

ENOUGH = 256  # tokens that keep a processor's products busy

MOST_LOGITS = 1 << 27  # of a pass that scores: half a gigabyte in float32


def collate(rows: Sequence[Encoded], pad: int) -> Batch:
    """Right-padded ids, mask and labels (-100 where nothing is asked, or one class per row)."""
    longest = max(len(row.input_ids) for row in rows)
    ids = torch.full((len(rows), longest), pad)
    mask = torch.zeros_like(ids)
    labels = torch.full((len(rows), longest), -100)
    for i, row in enumerate(rows):
        n = len(row.input_ids)
        ids[i, :n] = torch.tensor(row.input_ids)
        mask[i, :n] = 1
        if row.labels:
            labels[i, :n] = torch.tensor(row.labels)
    if rows[0].label is not None:
        labels = torch.tensor([row.label for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def by_length(lengths: Sequence[int], size: int, *, split: bool = True) -> list[list[int]]:
    """Batches of places of rows whose order does not matter, rows of like length together.

    Args:
        lengths: tokens of each row. size: most rows in a batch.
        split: end a batch early where the next row would bring its padding above an eighth of its tokens. A pass that writes
            gains nothing by that: it takes as long for few rows as for many.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    batches: list[list[int]] = []
    tokens = 0
    for place in order:
        rows = len(batches[-1]) + 1 if batches else 0
        padded = rows * lengths[place]
        if rows in (0, size + 1) or (split and tokens >= ENOUGH and padded > 1.125 * (tokens + lengths[place])):
            batches.append([])
            tokens = 0
        batches[-1].append(place)
        tokens += lengths[place]
    return batches


def vocabulary(model: Any) -> int:
    """How many logits a language model gives for each token."""
    return int(model.config.get_text_config().vocab_size)


def scored_together(rows: Sequence[Encoded], size: int, width: int) -> list[list[int]]:
    """Batches of `by_length` that ask for no more than `MOST_LOGITS` logits each, unless one row alone does.

    A batch of 64 answers of 90 tokens over a vocabulary of 262,144 entries would take 6 GB.

    Args:
        size: most rows in a batch. width: logits of each asked token (`vocabulary`).
    """
    asked = [sum(label != -100 for label in row.labels) for row in rows]
    most = MOST_LOGITS // width
    batches: list[list[int]] = []
    for batch in by_length([len(row.input_ids) for row in rows], size):
        tokens = most + 1  # the first row begins a batch
        for place in batch:
            tokens += asked[place]
            if tokens > most:
                batches.append([])
                tokens = asked[place]
            batches[-1].append(place)
    return batches


def left_padded(prompts: Sequence[list[int]], pad: int) -> Batch:
    """Ids and mask of prompts that are to be continued: all end in the last column."""
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), pad)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return {"input_ids": ids, "attention_mask": mask}


def stream(data: Sequence[Encoded], size: int, pad: int, seed: int) -> Iterator[tuple[Batch, list[int]]]:
    """Endless batches, shuffled anew every epoch, with the rows' numbers; the last batch of an epoch may be short."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(data), generator=generator).tolist()
        for start in range(0, len(order), size):
            picked = order[start : start + size]
            yield collate([data[i] for i in picked], pad), picked
