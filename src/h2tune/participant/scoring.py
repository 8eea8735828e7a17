"""Scoring a client's model on a list of examples: accuracy by the task's own rule, and nats per answer token."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

from h2tune.participant.batches import collate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from h2tune.tasks.example import Example, Task
    from h2tune.tasks.prompts import Encoded


@dataclass(frozen=True)
class Score:
    """metric: share of right answers. nats: mean cross-entropy per answer token (per row for classes)."""

    metric: float
    nats: float

    def plain(self) -> dict[str, float]:
        return asdict(self)


@torch.no_grad()
def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    examples: Sequence[Example],
    encoded: Sequence[Encoded],
    batch_size: int = 64,
    loss_only: bool = False,
) -> Score:
    """Score a model (with whatever adapter is active) on examples and their encodings.

    ``loss_only`` writes nothing and leaves the metric at 0 (for classes it comes with the loss): much faster.
    """
    was_training = model.training
    model.eval()
    try:
        nats, right = _nats(model, encoded, tokenizer.pad_token_id, batch_size)
        if loss_only and task.kind != "classify":
            right = [False]
        elif task.kind == "generate":
            texts = generate(model, tokenizer, _prompts(encoded), task.max_new_tokens, batch_size)
            right = [task.score(e, text) for e, text in zip(examples, texts, strict=True)]
        elif task.kind == "choice":
            chosen = choose(model, tokenizer, examples, batch_size)
            right = [task.score(e, text) for e, text in zip(examples, chosen, strict=True)]
        return Score(sum(right) / len(right), nats)
    finally:
        model.train(was_training)


def unigram_nats(train: Sequence[Encoded], test: Sequence[Encoded], vocabulary: int) -> float | None:
    """Nats per answer token of the training answers' token frequencies (add one): what knowing no context gives.

    None for tasks whose answers are no text.
    """
    counts = Counter(t for row in train for t in row.labels if t != -100)
    asked = [t for row in test for t in row.labels if t != -100]
    if not asked:
        return None
    total = sum(counts.values()) + vocabulary
    return -sum(math.log((counts[t] + 1) / total) for t in asked) / len(asked)


def _device(model: PreTrainedModel) -> torch.device:
    return next(model.parameters()).device


def _by_length(rows: Sequence[list[int]], batch_size: int) -> list[list[int]]:
    """Batches of indices with little padding."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def _nats(model: PreTrainedModel, encoded: Sequence[Encoded], pad: int, size: int) -> tuple[float, list[bool]]:
    """Mean cross-entropy over all asked positions, and for classes whether the likeliest was right."""
    total, count, right = 0.0, 0, [False] * len(encoded)
    for picked in _by_length([row.input_ids for row in encoded], size):
        batch = {k: v.to(_device(model)) for k, v in collate([encoded[i] for i in picked], pad).items()}
        labels = batch.pop("labels")
        logits = model(**batch).logits.float()
        if labels.ndim == 1:
            total += float(cross_entropy(logits, labels, reduction="sum"))
            count += len(picked)
            for i, hit in zip(picked, (logits.argmax(-1) == labels).tolist(), strict=True):
                right[i] = hit
        else:
            asked = labels[:, 1:] != -100
            total += float(cross_entropy(logits[:, :-1][asked], labels[:, 1:][asked], reduction="sum"))
            count += int(asked.sum())
    return total / max(count, 1), right


def _prompts(encoded: Sequence[Encoded]) -> list[list[int]]:
    return [[t for t, label in zip(row.input_ids, row.labels, strict=True) if label == -100] for row in encoded]


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    new_tokens: int,
    size: int = 64,
) -> list[str]:
    """Greedy continuations of the prompts, as text without the prompt."""
    texts = [""] * len(prompts)
    for picked in _by_length(prompts, size):
        longest = max(len(prompts[i]) for i in picked)
        ids = torch.full((len(picked), longest), tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(picked):
            ids[row, longest - len(prompts[i]) :] = torch.tensor(prompts[i])
            mask[row, longest - len(prompts[i]) :] = 1
        room = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30
        out = model.generate(
            input_ids=ids.to(_device(model)),
            attention_mask=mask.to(_device(model)),
            max_new_tokens=max(1, min(new_tokens, room - longest)),
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        for i, text in zip(picked, tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True), strict=True):
            texts[i] = text
    return texts


@torch.no_grad()
def choose(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], size: int = 64
) -> list[str]:
    """For every example the option that the model finds likeliest after the prompt.

    The end token belongs to an option: " 1" must not win by being the start of " 15".
    """
    from h2tune.tasks.prompts import encode_options

    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30
    options = encode_options(examples, tokenizer, max_length=context, truncate=True)
    rows = [(i, option) for i, several in enumerate(options) for option in several]
    values = [0.0] * len(rows)
    for picked in _by_length([option.input_ids for _, option in rows], size):
        found = _likelihoods(model, [rows[j][1] for j in picked], tokenizer.pad_token_id)
        for j, value in zip(picked, found, strict=True):
            values[j] = value
    scores: list[list[float]] = [[] for _ in examples]
    for (i, _), value in zip(rows, values, strict=True):
        scores[i].append(value)
    return [e.options[max(range(len(s)), key=s.__getitem__)] for e, s in zip(examples, scores, strict=True)]


def _likelihoods(model: PreTrainedModel, rows: Sequence[Encoded], pad: int) -> list[float]:
    """Log-likelihood of each row's asked tokens."""
    batch = {k: v.to(_device(model)) for k, v in collate(rows, pad).items()}
    labels = batch.pop("labels")[:, 1:]
    logits: Tensor = model(**batch).logits
    picked = log_softmax(logits[:, :-1].float(), -1).gather(-1, labels.clamp_min(0)[..., None])[..., 0]
    return (picked * (labels != -100)).sum(1).tolist()
