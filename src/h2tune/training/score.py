"""Scoring a client's model on a list of examples: accuracy by the task's own rule, and nats per answer token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

from h2tune.training.batches import collate

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
) -> Score:
    """Score a model (with whatever adapter is active) on examples and their encodings."""
    was_training = model.training
    model.eval()
    try:
        nats, right = _nats(model, encoded, tokenizer.pad_token_id, batch_size)
        if task.kind == "generate":
            texts = generate(model, tokenizer, encoded, task.max_new_tokens, batch_size)
            right = [task.score(e, text) for e, text in zip(examples, texts, strict=True)]
        elif task.kind == "choice":
            chosen = choose(model, tokenizer, examples, encoded, batch_size)
            right = [task.score(e, text) for e, text in zip(examples, chosen, strict=True)]
        return Score(sum(right) / len(right), nats)
    finally:
        model.train(was_training)


def _device(model: PreTrainedModel) -> torch.device:
    return next(model.parameters()).device


def _by_length(encoded: Sequence[Encoded], batch_size: int) -> list[list[int]]:
    """Batches of indices with little padding."""
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i].input_ids))
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def _nats(model: PreTrainedModel, encoded: Sequence[Encoded], pad: int, size: int) -> tuple[float, list[bool]]:
    """Mean cross-entropy over all asked positions, and for classes whether the likeliest was right."""
    total, count, right = 0.0, 0, [False] * len(encoded)
    for picked in _by_length(encoded, size):
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
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, encoded: Sequence[Encoded], new_tokens: int, size: int = 64
) -> list[str]:
    """Greedy continuations of the prompts, as text without the prompt."""
    prompts, texts = _prompts(encoded), [""] * len(encoded)
    for picked in _by_length(encoded, size):
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
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    encoded: Sequence[Encoded],
    size: int = 64,
) -> list[str]:
    """For every example the option that the model finds likeliest after the prompt."""
    rows: list[tuple[int, list[int], int]] = []
    for i, (example, prompt) in enumerate(zip(examples, _prompts(encoded), strict=True)):
        for option in example.options:
            ids = tokenizer(option, add_special_tokens=False)["input_ids"]
            # The end token belongs to the option: " 1" must not win by being the start of " 15".
            rows.append((i, [*prompt, *ids, tokenizer.eos_token_id], len(prompt)))
    scores: list[list[float]] = [[] for _ in examples]
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        for (i, _, _), value in zip(part, _likelihoods(model, part, tokenizer.pad_token_id), strict=True):
            scores[i].append(value)
    return [e.options[max(range(len(s)), key=s.__getitem__)] for e, s in zip(examples, scores, strict=True)]


def _likelihoods(model: PreTrainedModel, rows: list[tuple[int, list[int], int]], pad: int) -> list[float]:
    longest = max(len(ids) for _, ids, _ in rows)
    ids = torch.full((len(rows), longest), pad)
    asked = torch.zeros_like(ids, dtype=torch.bool)
    mask = torch.zeros_like(ids)
    for r, (_, row, start) in enumerate(rows):
        ids[r, : len(row)] = torch.tensor(row)
        mask[r, : len(row)] = 1
        asked[r, start : len(row)] = True
    ids, asked = ids.to(_device(model)), asked.to(_device(model))
    logits: Tensor = model(input_ids=ids, attention_mask=mask.to(ids.device)).logits
    picked = log_softmax(logits[:, :-1].float(), -1).gather(-1, ids[:, 1:, None])[..., 0]
    return (picked * asked[:, 1:]).sum(1).tolist()
