"""Scoring of several clients in passes of the base model that they share.

A client that scores asks its model for one batch after the other. Inside a `Turn` each question waits until the others of a
group have asked theirs (`SharedPasses`); then those that fit together are answered in one pass, each client's rows through
its own adapter. What a client makes of the answers is its own.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from h2tune.adapter.side_by_side import SideBySide, parameters_of, shape_of, switch_to
from h2tune.participant.batches import Batch
from h2tune.participant.passes import PLAIN, Answered, Passes, Writing, answered_each, answers
from h2tune.participant.scoring import evaluating
from h2tune.utils.turns import hand_over


@dataclass
class Active:
    """A client's adapter on the model that it shares, with gradients as the client had it when it stopped.

    Attributes:
        training: whether the model was in training mode. listening: the adapter's parameters, and whether they get gradients.
    """

    model: PeftModel
    adapter: str
    training: bool
    listening: list[tuple[nn.Parameter, bool]]

    @classmethod
    def on(cls, model: PeftModel) -> Active:
        """The adapter that is active now."""
        adapter = str(model.active_adapter)
        return cls(model, adapter, model.training, [(p, p.requires_grad) for p in parameters_of(model, adapter)])

    def listen(self, whole: bool = True) -> None:
        """Let gradients flow to the parameters as the client had it, or to none."""
        for parameter, flag in self.listening:
            parameter.requires_grad_(flag and whole)

    def enter(self) -> None:
        """Let the model be as the client left it."""
        switch_to(self.model, self.adapter)
        self.model.train(self.training)
        self.listen()


@dataclass
class Asked:
    """A client's question to its model, which waits for those of others.

    Attributes:
        batch: rows whose answers are read, or prompts that are to be continued as ``writing`` says. answer: comes last.
    """

    active: Active
    passes: Passes
    batch: Batch | Sequence[list[int]]
    writing: Writing | None = None
    answer: Any = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, and tokens of the longest one when it is read or written."""
        if isinstance(self.batch, dict):
            rows, tokens = self.batch["input_ids"].shape
            return rows, tokens
        assert self.writing
        return len(self.batch), max(map(len, self.batch)) + self.writing.room

    @property
    def positions(self) -> int:
        """Where logits of the vocabulary are asked for: each answer token that is read, the end of each text that is written."""
        if not isinstance(self.batch, dict):
            return len(self.batch)
        return answers(self.batch) if self.batch["labels"].ndim > 1 else 0

    @property
    def kind(self) -> Hashable:
        """What questions have in common that may be answered in one pass."""
        model = self.active.model
        names = tuple(self.batch) if isinstance(self.batch, dict) else None
        return id(model), shape_of(model, self.active.adapter), id(self.passes.prefix), self.writing, names


@dataclass(frozen=True)
class SharedPasses(Passes):
    """Passes for scoring, without gradients, of a client that takes turns with others on one model."""

    active: Active | None = field(default=None, repr=False)

    def answered(self, model: nn.Module, batch: Batch) -> Answered:
        found: Answered = self._asked(model, batch)
        return found

    def written(self, model: nn.Module, prompts: Sequence[list[int]], writing: Writing) -> list[list[int]]:
        found: list[list[int]] = self._asked(model, prompts, writing)
        return found

    def _asked(self, model: nn.Module, batch: Batch | Sequence[list[int]], writing: Writing | None = None) -> Any:
        active = self.active
        assert active and model is active.model
        asked = Asked(active, Passes(self.prefix, self.bias), batch, writing)
        model.train(active.training)  # others find the model as this client found it
        hand_over(asked)
        active.enter()
        model.eval()
        answer, asked.answer = asked.answer, None  # kept by nobody: the answers to all may be too much
        return answer


@torch.no_grad()
def answer_together(parts: Sequence[Asked]) -> None:
    """Answer the questions of some clients, all of one kind, in one pass; one alone is asked as it always is."""
    model: Any = parts[0].active.model
    with evaluating(model):
        if len(parts) == 1:
            # Also what gets gradients is as the client had it: frozen weights and trained ones are multiplied by two
            # libraries (`products`), which differ in the last digits.
            parts[0].active.enter()
            model.eval()
            _answer(model, parts)
        else:
            with SideBySide([p.active.adapter for p in parts], [p.shape[0] for p in parts]).on(model):
                _answer(model, parts)


def _answer(model: Any, parts: Sequence[Asked]) -> None:
    passes, batches, writing = [p.passes for p in parts], [p.batch for p in parts], parts[0].writing
    found: Sequence[Any]
    if writing is None:
        filler = model.config.get_text_config().pad_token_id or 0
        found = answered_each(model, passes, batches, filler)  # type: ignore[arg-type]  # all of one kind
    else:
        new = iter(PLAIN.written(model, [prompt for prompts in batches for prompt in prompts], writing))  # type: ignore[misc]
        found = [[next(new) for _ in prompts] for prompts in batches]
    for part, answer in zip(parts, found, strict=True):
        part.answer = answer
