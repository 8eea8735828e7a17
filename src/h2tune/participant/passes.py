"""Passes of a client's model over rows: from their cached prefix, with logits only where answers are read; and what it writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import accumulate, pairwise, takewhile
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import GenerationConfig

from h2tune.participant.batches import Batch, left_padded
from h2tune.participant.label_bias import LabelBias, answer_places
from h2tune.participant.losses import losses
from h2tune.participant.prefix import Prefix


@dataclass(frozen=True)
class Answered:
    """What a pass says where answers are read.

    Attributes:
        said: logits as the model gives them, one row for each asked token (positions x vocabulary), or for classes one for
            each row of the batch.
        wanted: the right token or class of each.
        bias: what is added to them. places: of each asked token in its answer, for the bias.
    """

    said: Tensor
    wanted: Tensor
    bias: LabelBias | None = None
    places: Tensor | None = None

    @property
    def logits(self) -> Tensor:
        """What was said in float32, with the bias; worked out anew each time."""
        logits = self.said.float()
        return logits if self.bias is None or self.places is None else self.bias.added_to(logits, self.places)

    @property
    def losses(self) -> Tensor:
        """Cross-entropy of each asked token, or of each row for classes."""
        return losses(self.said if self.bias is None else self.logits, self.wanted)

    @property
    def loss(self) -> Tensor:
        """Mean cross-entropy."""
        return self.losses.mean()

    def among(self, tokens: Sequence[int]) -> Answered:
        """The same as a choice among some tokens, sorted, at the places that ask for one of them."""
        few = torch.tensor(tokens, device=self.wanted.device)
        asked = torch.isin(self.wanted, few)
        return Answered(self.logits[asked][:, few], torch.searchsorted(few, self.wanted[asked]))


@dataclass(frozen=True)
class Writing:
    """How prompts are continued.

    Attributes:
        room: most new tokens. stops: tokens that end a text. pad: the token that fills prompts up.
    """

    room: int
    stops: tuple[int, ...]
    pad: int


@dataclass(frozen=True)
class Passes:
    """How a client's model is run.

    Attributes:
        prefix: where passes start from what the lower blocks are known to say; None runs all blocks.
        bias: added to the logits of the labels' tokens, place by place of the answer; None adds nothing.
    """

    prefix: Prefix | None = None
    bias: LabelBias | None = None

    def whole(self, model: nn.Module, batch: Batch) -> Any:
        """The model's own output on a right-padded batch without labels."""
        with self.prefix.starting(batch) if self.prefix else nullcontext():
            return model(**batch)

    def answered(self, model: nn.Module, batch: Batch) -> Answered:
        """The model's logits where a batch's labels ask for something."""
        return self._own(batch, *self._read(model, batch))

    def written(self, model: nn.Module, prompts: Sequence[list[int]], writing: Writing) -> list[list[int]]:
        """New tokens that the model writes after each prompt, the likeliest each time, up to a token that ends the text.

        They go through all blocks, from the cached states of the tokens before.
        """
        new = continued(model, prompts, writing, do_sample=False).tolist()
        return [list(takewhile(lambda token: token not in writing.stops, tokens)) for tokens in new]

    def _read(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits where something is asked, in the model's number format and without the bias, and what is wanted there."""
        labels = batch["labels"]
        asking = {name: value for name, value in batch.items() if name != "labels"}
        if labels.ndim == 1:
            return self.whole(model, asking).logits, labels
        asked = labels[:, 1:] != -100
        head = _output_embedding(model)
        if head is None:
            logits = self.whole(model, asking).logits[:, :-1][asked]
        else:
            with _only_at(head, asked):
                logits = self.whole(model, asking).logits.squeeze(0)  # [0] would fill a second tensor with 0
        return logits, labels[:, 1:][asked]

    def _own(self, batch: Batch, logits: Tensor, wanted: Tensor) -> Answered:
        """With the client's own bias of its labels' tokens."""
        if self.bias is not None and batch["labels"].ndim > 1:
            return Answered(logits, wanted, self.bias, answer_places(batch["labels"]))
        return Answered(logits, wanted)


def continued(
    model: nn.Module, prompts: Sequence[list[int]], writing: Writing, stopping: Any = None, **how: Any
) -> Tensor:
    """New tokens after each prompt (prompts x tokens), filled up once a text has ended.

    Args:
        stopping: more criteria of Transformers by which a text ends. how: settings of Transformers' `GenerationConfig`.
    """
    device = next(model.parameters()).device
    padded = {name: value.to(device) for name, value in left_padded(prompts, writing.pad).items()}
    ends = {"pad_token_id": writing.pad, "eos_token_id": list(writing.stops) or None}
    settings = GenerationConfig(max_new_tokens=writing.room, **ends, **how)
    with _plain_generation(model), _in_one_piece(_output_embedding(model)):
        out: Tensor = model.generate(  # type: ignore[operator]
            **padded, generation_config=settings, stopping_criteria=stopping
        )
    return out[:, padded["input_ids"].shape[1] :]


@contextmanager
def _plain_generation(model: nn.Module) -> Iterator[None]:
    """Without the settings of the model's own generation_config: repetition penalties, banned n-grams, beams.

    Transformers takes from there whatever `generate` is not told, and nobody trained for it.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    own = base.generation_config
    base.generation_config = GenerationConfig(use_cache=own.use_cache)
    try:
        yield
    finally:
        base.generation_config = own


@contextmanager
def _in_one_piece(output: nn.Module | None) -> Iterator[None]:
    """Let the output embedding read the last states of the prompts from a tensor of their own.

    Transformers gives it a part of all states. By such a part PyTorch multiplies frozen weights row by row, and copies them
    for each row: a vocabulary of 151,936 entries, 64 prompts and bfloat16 took 17 GB and some minutes.
    """

    def pick(head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0].contiguous(), *args[1:])

    hook = output.register_forward_pre_hook(pick) if output is not None else None
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()


def answered_each(model: nn.Module, passes: Sequence[Passes], batches: Sequence[Batch], filler: int) -> list[Answered]:
    """One pass over the batches of several clients on one model, and what it says to each of them.

    Args:
        passes: of each client; all start from the same prefix. filler: id of the token that fills rows up.
    """
    joint = {name: _below_one_another([b[name] for b in batches], _FILL.get(name, filler)) for name in batches[0]}
    logits, wanted = passes[0]._read(model, joint)
    counts = _answers_of_each(joint["labels"], [len(batch["labels"]) for batch in batches])
    parts = zip(passes, batches, logits.split(counts), wanted.split(counts), strict=True)
    return [own._own(*part) for own, *part in parts]


_FILL = {"attention_mask": 0, "labels": -100}


def _below_one_another(parts: Sequence[Tensor], fill: int) -> Tensor:
    """Rows of all parts in one tensor, filled up on the right to the longest."""
    if parts[0].ndim == 1:
        return torch.cat(list(parts))
    longest = max(part.shape[1] for part in parts)
    return torch.cat([pad(part, (0, longest - part.shape[1]), value=fill) for part in parts])


def answers(batch: Batch) -> int:
    """How many terms the mean loss of a batch has: answer tokens, or rows for classes."""
    labels = batch["labels"]
    return len(labels) if labels.ndim == 1 else int((labels[:, 1:] != -100).sum())


def _answers_of_each(labels: Tensor, rows: Sequence[int]) -> list[int]:
    """`answers` of batches that lie below one another, so many rows each; a GPU is waited for once."""
    if labels.ndim == 1:
        return list(rows)
    of_rows: list[int] = (labels[:, 1:] != -100).sum(1).tolist()
    ends = list(accumulate(rows, initial=0))
    return [sum(of_rows[a:b]) for a, b in pairwise(ends)]


PLAIN = Passes()


def _output_embedding(model: nn.Module) -> nn.Module | None:
    """The map from hidden states to logits, where the model tells which it is."""
    find = getattr(model, "get_output_embeddings", None)
    head: nn.Module | None = find() if find else None
    return head


@contextmanager
def _only_at(output: nn.Module, asked: Tensor) -> Iterator[None]:
    """Let the output embedding read the asked places (rows x tokens - 1) alone: logits become 1 x places x vocabulary.

    A vocabulary of 262,144 entries at every token of a batch would take more memory and time than the blocks.
    """

    def pick(head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][:, :-1][asked][None], *args[1:])

    hook = output.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        hook.remove()
