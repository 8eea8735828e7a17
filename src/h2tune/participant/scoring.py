"""Scoring a client's model on a list of examples: accuracy by the task's own rule, and nats per answer token."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import torch

from h2tune.participant.batches import by_length, collate, scored_together, vocabulary
from h2tune.participant.checkpoints import context_of
from h2tune.participant.label_bias import Heard, answer_places
from h2tune.participant.passes import PLAIN, Passes, Writing
from h2tune.tasks.chat_template import stop_tokens
from h2tune.tasks.prompts import IGNORED, Encoded, encode, encode_options, encode_prompts, fit_prompts
from h2tune.tasks.scoring import score_all

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from h2tune.tasks.example import Example, Task

    Model = PreTrainedModel | PeftModel


@dataclass(frozen=True)
class Score:
    """metric: share of right answers. nats: mean cross-entropy per answer token (per row for classes)."""

    metric: float
    nats: float

    def plain(self) -> dict[str, float]:
        return asdict(self)


@torch.no_grad()
def score(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    examples: Sequence[Example],
    encoded: Sequence[Encoded],
    batch_size: int = 64,
    loss_only: bool = False,
    length: int | None = None,
    passes: Passes = PLAIN,
    among: Sequence[int] = (),
) -> Score:
    """Score a model (with whatever adapter is active) on examples and their encodings, whatever the batch size.

    ``loss_only`` writes nothing and leaves the metric at 0 (for classes it comes with the loss): much faster.
    ``length`` is the longest input that the client allows itself, by default the model's context. ``passes`` says how
    the model is run; what it writes (``generate`` tasks) always goes through all blocks. With ``among``, nats are those of the
    choice among some tokens.
    """
    with evaluating(model):
        nats, predicted = _nats(model, encoded, tokenizer.pad_token_id, batch_size, passes, among)
        if task.kind == "classify":
            right = [p == row.label for p, row in zip(predicted, encoded, strict=True)]
        elif loss_only:
            right = [False]
        else:
            texts = answers(model, tokenizer, task, examples, batch_size, length, passes)
            right = score_all(task.score, examples, texts)
        return Score(sum(right) / len(right), nats)


def answers(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    examples: Sequence[Example],
    size: int = 64,
    length: int | None = None,
    passes: Passes = PLAIN,
) -> list[str]:
    """What the model answers to every example: the text it writes, the option it chooses, or the label it gives.

    A run's scores and `predict` are both made of these.
    """
    context = length or context_of(model.config, tokenizer)
    with evaluating(model):
        if task.kind == "classify":
            rows = encode(examples, tokenizer, max_length=context, truncate=True)
            _, predicted = _nats(model, [replace(r, label=0) for r in rows], tokenizer.pad_token_id, size, passes)
            return [task.labels[i] for i in predicted]
        if task.kind == "choice":
            return choose(model, tokenizer, examples, size, context, passes)
        prompts = encode_prompts(examples, tokenizer)
        return generate(model, tokenizer, prompts, task.max_new_tokens, size, context, passes)


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """No dropout and no gradients for a while."""
    was_training = model.training
    model.train(False)
    try:
        with torch.no_grad():
            yield
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


def _device(model: Model) -> torch.device:
    return next(model.parameters()).device


@torch.no_grad()
def heard(
    model: Model, encoded: Sequence[Encoded], pad: int, size: int, passes: Passes, tokens: Sequence[Sequence[int]]
) -> list[Heard]:
    """What the model says of some tokens wherever the rows ask for something."""
    found = []
    with evaluating(model):
        for picked in _batches(model, encoded, size):
            batch = {k: v.to(_device(model)) for k, v in collate([encoded[i] for i in picked], pad).items()}
            said = passes.answered(model, batch)
            found.append(Heard.of(tokens, said.logits, said.wanted, answer_places(batch["labels"])))
            del said  # as in `_nats`
    return found


def _batches(model: Model, rows: Sequence[Encoded], size: int) -> list[list[int]]:
    return scored_together(rows, size, vocabulary(model))


def _nats(
    model: Model, encoded: Sequence[Encoded], pad: int, size: int, passes: Passes, among: Sequence[int] = ()
) -> tuple[float, list[int]]:
    """Mean cross-entropy over all asked positions of all rows, and for classes the likeliest of each row."""
    total, count, predicted = 0.0, 0, [0] * len(encoded)
    for picked in _batches(model, encoded, size):
        batch = {k: v.to(_device(model)) for k, v in collate([encoded[i] for i in picked], pad).items()}
        found = passes.answered(model, batch)
        if among:
            found = found.among(among)
        total += float(found.losses.sum())
        count += len(found.wanted)
        if batch["labels"].ndim == 1:
            for i, label in zip(picked, found.logits.argmax(-1).tolist(), strict=True):
                predicted[i] = label
        del found  # the next pass may be waited for, and logits take much memory
    return total / max(count, 1), predicted


@torch.no_grad()
def generate(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    new_tokens: int,
    size: int = 64,
    context: int | None = None,
    passes: Passes = PLAIN,
) -> list[str]:
    """Greedy continuations of the prompts up to the model's own end tokens, as text without the prompt.

    Every row gets what it would get alone: a prompt that leaves no room loses its beginning, and no other row for it.
    """
    context = context or context_of(model.config, tokenizer)
    fitted, _ = fit_prompts(prompts, tokenizer, context=context, new_tokens=new_tokens)
    stops = tuple(stop_tokens(tokenizer, getattr(model, "generation_config", None)))
    texts = [""] * len(fitted)
    rooms = [max(1, min(new_tokens, context - len(ids))) for ids in fitted]
    for room in sorted(set(rooms)):
        group = [i for i, own in enumerate(rooms) if own == room]
        writing = Writing(room, stops, tokenizer.pad_token_id)
        for batch in by_length([len(fitted[i]) for i in group], size, split=False):
            picked = [group[j] for j in batch]
            new = passes.written(model, [fitted[i] for i in picked], writing)
            for i, ids in zip(picked, new, strict=True):
                texts[i] = _new_text(tokenizer, fitted[i], ids)
    return texts


def _new_text(tokenizer: PreTrainedTokenizerBase, prompt: list[int], new: list[int]) -> str:
    """The text of the new tokens; some tokenizers drop the space of a first token, so the prompt is decoded with them."""

    def text(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    before, whole = text(prompt), text([*prompt, *new])
    return whole[len(before) :] if whole.startswith(before) else text(new)


@torch.no_grad()
def choose(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    size: int = 64,
    context: int | None = None,
    passes: Passes = PLAIN,
) -> list[str]:
    """For every example the option that the model finds likeliest after the prompt.

    Where one option begins another the end token belongs to it: " 1" must not win by being the start of " 15". Elsewhere
    it is left out: how surely a text ends after an option says nothing of the question.
    """
    context = context or context_of(model.config, tokenizer)
    options = [without_ends(o) for o in encode_options(examples, tokenizer, max_length=context, truncate=True)]
    if all(sum(token != IGNORED for token in option.labels) == 1 for several in options for option in several):
        return _choose_token(model, tokenizer, examples, options, size, passes)
    rows = [(i, option) for i, several in enumerate(options) for option in several]
    values = [0.0] * len(rows)
    for picked in _batches(model, [option for _, option in rows], size):
        found = _likelihoods(model, [rows[j][1] for j in picked], tokenizer.pad_token_id, passes)
        for j, value in zip(picked, found, strict=True):
            values[j] = value
    scores: list[list[float]] = [[] for _ in examples]
    for (i, _), value in zip(rows, values, strict=True):
        scores[i].append(value)
    return [e.options[max(range(len(s)), key=s.__getitem__)] for e, s in zip(examples, scores, strict=True)]


def _choose_token(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    options: Sequence[Sequence[Encoded]],
    size: int,
    passes: Passes,
) -> list[str]:
    """The likeliest option where all are one token: one pass for all options of an example."""
    chosen = [""] * len(examples)
    first = [several[0] for several in options]
    for picked in _batches(model, first, size):
        batch = {
            k: v.to(_device(model)) for k, v in collate([first[i] for i in picked], tokenizer.pad_token_id).items()
        }
        logits = passes.answered(model, batch).logits
        for i, row in zip(picked, logits, strict=True):
            values = row[[option.labels[-1] for option in options[i]]].tolist()
            chosen[i] = examples[i].options[max(range(len(values)), key=values.__getitem__)]
        del logits, row  # as in `_nats`
    return chosen


def without_ends(options: Sequence[Encoded]) -> Sequence[Encoded]:
    """The options of one example without the token that ends them all, unless one then begins another."""
    texts = [[token for token in option.labels if token != IGNORED] for option in options]
    shorter = [text[:-1] for text in texts]
    if len({text[-1] for text in texts}) > 1 or any(
        a == b[: len(a)] for i, a in enumerate(shorter) for j, b in enumerate(shorter) if i != j
    ):
        return options
    return [Encoded(option.input_ids[:-1], option.labels[:-1]) for option in options]


def _likelihoods(model: Model, rows: Sequence[Encoded], pad: int, passes: Passes) -> list[float]:
    """Log-likelihood of each row's asked tokens."""
    batch = {k: v.to(_device(model)) for k, v in collate(rows, pad).items()}
    found = passes.answered(model, batch)
    row = (batch["labels"][:, 1:] != -100).nonzero()[:, 0]
    picked = -found.losses
    return torch.zeros(len(rows), device=picked.device).index_add(0, row, picked).tolist()
