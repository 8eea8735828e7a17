"""Writing reasoning paths in batches: left padding, key-value cache, an early stop once an answer is written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from h2tune.participant.batches import by_length
from h2tune.participant.passes import Writing, continued
from h2tune.participant.scoring import evaluating
from h2tune.tasks.chat_template import stop_tokens
from h2tune.tasks.scoring import own_part

_ANSWERED = re.compile(r"(?:\banswer\s+is\b|####)[^\n]*\d[^\n]*(?=\n)", re.IGNORECASE)
_LINE = re.compile(r"\s*\S[^\n]*(?=\n)")


class Answered(StoppingCriteria):
    """Ends a row once its answer is written: when a line ends that states it.

    Only rows whose newest token ends a line are read, so that the check costs next to nothing.

    Args:
        start: length of the padded prompts. one_line: whether the first line is the whole answer.
    """

    def __init__(self, tokenizer: Any, start: int, one_line: bool) -> None:
        self.tokenizer, self.start, self.pattern = tokenizer, start, _LINE if one_line else _ANSWERED
        self.done: list[bool] = []

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Any:
        self.done = self.done or [False] * len(input_ids)
        for row, piece in enumerate(self.tokenizer.batch_decode(input_ids[:, -1:])):
            if "\n" in piece and not self.done[row]:
                text = self.tokenizer.decode(input_ids[row, self.start :], skip_special_tokens=True)
                self.done[row] = self.pattern.match(text) is not None if self.pattern is _LINE else (
                    self.pattern.search(text) is not None
                )  # fmt: skip
        return torch.tensor(self.done, device=input_ids.device)


# Over 45 lines with its docstring: one loop over batches, and all that a batch needs.
def write_paths(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    *,
    new_tokens: int,
    size: int,
    one_line: bool,
    temperature: float | None = None,
) -> list[str]:
    """One continuation of each prompt, as text; greedy without a temperature.

    Sampling draws from PyTorch's own generator: seed it around the call. The batches are fixed by the prompts' lengths.

    Args:
        prompts: tokens; each must leave room for ``new_tokens`` in the model's context.
        size: prompts in a batch. one_line: whether an answer ends with its first line.
    """
    stops = stop_tokens(tokenizer, getattr(model, "generation_config", None))
    writing, texts = Writing(new_tokens, tuple(stops), tokenizer.pad_token_id), [""] * len(prompts)
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature is not None:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    with evaluating(model):
        for picked in by_length([len(prompt) for prompt in prompts], size, split=False):
            some = [prompts[i] for i in picked]
            answered = StoppingCriteriaList([Answered(tokenizer, max(map(len, some)), one_line)])
            out = continued(model, some, writing, answered, use_cache=True, **sampling)
            for i, new in zip(picked, out.tolist(), strict=True):
                kept = list(takewhile(lambda token: token not in stops, new))
                texts[i] = tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return texts


def tidy(text: str, lead: str, one_line: bool) -> str:
    """A generated text as a path: without what follows the answer, led as an answer is led; empty if nothing is left."""
    text = own_part(text)
    if one_line:
        text = text.split("\n")[0]
    elif (found := _ANSWERED.search(text + "\n")) is not None:
        text = text[: found.end()]
    text = text.strip()
    return lead + text if text else ""
