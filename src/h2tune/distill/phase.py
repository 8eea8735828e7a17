"""A student's phase: it checks the paths it was given, learns from them beside its own data, and keeps that if it helped.

    L = CE(own batch) + lambda mean_i [ NLL(y+) per token + mu ell_i ]

Own data enter by the cross-entropy, by the reference theta0 (the model after the round's own updates), by the student's
own errors as negatives, and by acceptance: of the model before the phase, the one after it and their mean the one is kept
that validates best.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from h2tune.distill.corruption import corrupted
from h2tune.distill.learnability import NOISE
from h2tune.distill.packing import Given
from h2tune.distill.paths import contrast, path_sums, score_paths, targets
from h2tune.distill.reasoner import SIZE, Reasoner
from h2tune.methods.adapter_client import AdapterClient
from h2tune.participant.batches import Batch, collate
from h2tune.participant.scoring import evaluating
from h2tune.participant.trainer import Forward, LocalTraining, answer_loss
from h2tune.tasks.prompts import Encoded
from h2tune.utils.seeds import derive

State = dict[str, Tensor]


@dataclass(frozen=True)
class Lesson:
    """A question's set of paths.

    Attributes:
        rows: the teacher's paths first, then the negatives, each with the question as tokens.
        positives: how many are the teacher's. sizes: bytes of each. tokens: tokens of each, with its end.
        q: wanted distribution over them. references: s of each under theta0.
    """

    item: int
    rows: tuple[Encoded, ...]
    positives: int
    sizes: tuple[int, ...]
    tokens: tuple[int, ...]
    q: Tensor
    references: tuple[float, ...] = ()


@dataclass
class Phase:
    """What became of the paths of a round.

    Attributes:
        lessons: what passed the gate. refused: what did not, by reason.
        kept: share of the way from the model before the phase to the one after it; None where nothing was learnt.
        moves: mean sigma(beta (Delta+ - Delta-)) of each batch before its update, with its questions (for `bandit`).
    """

    lessons: list[Lesson]
    refused: dict[str, int]
    kept: float | None = None
    moves: list[tuple[list[int], float]] | None = None


def gate(reasoner: Reasoner, given: Sequence[Given], own: dict[int, str], round: int) -> Phase:
    """The student's own check of what it was given: usable, right, better than its own loss, and not held out."""
    settings, phase = reasoner.settings, Phase([], {})
    scored = reasoner.scored([entry.item for entry in given], [entry.path for entry in given])
    passed: dict[int, list[tuple[Given, Encoded]]] = {}
    checked = settings.gate and reasoner.questions.answered
    usable = [(entry.item, entry.path) for entry, found in zip(given, scored, strict=True) if found is not None]
    wrong = (
        {path for path, right in zip(usable, reasoner.rights(usable), strict=True) if not right} if checked else set()
    )
    for entry, found in zip(given, scored, strict=True):
        if found is None:
            reason = "cannot be used"
        elif reasoner.is_held_out(entry.item):
            reason = "is one of the own held-out questions"
        elif (entry.item, entry.path) in wrong:
            reason = "is wrong"
        elif settings.gate and 1 - (entry.logp / found.score.logp) < NOISE:
            reason = "is no likelier to its writer than to this model"
        else:
            passed.setdefault(entry.item, []).append((entry, found.row))
            continue
        phase.refused[reason] = phase.refused.get(reason, 0) + 1
    phase.lessons = [_lesson(reasoner, item, good, own.get(item, ""), round) for item, good in passed.items()]
    return phase


def _lesson(reasoner: Reasoner, item: int, good: list[tuple[Given, Encoded]], own: str, round: int) -> Lesson:
    """The paths with their negative: the student's own wrong path, else the first with one number or operator changed."""
    settings, context = reasoner.settings, reasoner.context
    rows, texts = [row for _, row in good], [entry.path for entry, _ in good]
    if settings.contrast:
        wrong = own if own and own not in texts and (not settings.gate or not reasoner.right(item, own)) else ""
        if not wrong and settings.gate:
            wrong = corrupted(texts[0], derive(context.seed, context.data_seed, "corrupt", round, item)) or ""
        if wrong and (bad := reasoner.encoded(item, wrong)) is not None:
            rows.append(bad)
            texts.append(wrong)
    sums: list[float | None] = [entry.logp for entry, _ in good]
    sums += [None] * (len(rows) - len(good))
    sizes = [len(text.encode()) for text in texts]
    q = targets(sums, sizes, margin=settings.bound, tau=settings.tau, gamma=settings.gamma)
    tokens = tuple(sum(label != -100 for label in r.labels) for r in rows)
    return Lesson(item, tuple(rows), len(good), tuple(sizes), tokens, q)


def learn(reasoner: Reasoner, host: AdapterClient, phase: Phase, round: int, steps: int) -> None:
    """Make the phase's updates; of what they changed keep all, half or nothing, whichever validates best."""
    context, settings = reasoner.context, reasoner.settings
    before, good = context.validation_loss(), host.state()
    phase.lessons = _referenced(reasoner, phase.lessons)
    phase.moves = []
    model = host.activate()
    loss = _Loss(model, reasoner, phase, _turns(phase.lessons, _share(phase, context.training.batch_size), round))
    update = replace(host.update_of(settings.phase), loss=loss)
    batches = context.batches(round, "distil")
    context.train(LocalTraining.of_one_kind(model, "distil", steps, update, batches))
    phase.kept = 1.0
    if settings.accept:
        phase.kept = _keep(reasoner, host, good, before)


def _keep(reasoner: Reasoner, host: AdapterClient, good: State, before: float) -> float:
    """Take the best of the model after the phase, the one before it and their mean, by validation; returns its share.

    An update too far is no reason to forget the direction: small data overfit within a phase, and half of it often
    validates better than either end.
    """
    context, after = reasoner.context, host.state()
    losses = {0.0: before, 1.0: context.validation_loss()}
    host.load_state(_mixed(good, after))
    losses[0.5] = context.validation_loss()
    kept = min(losses, key=lambda share: (losses[share], -share))
    if kept != 0.5:
        host.load_state(after if kept else good)
    return kept


def _mixed(before: State, after: State) -> State:
    """What is trained half way between two states; optimisers and whole numbers as they are after."""
    return {
        name: torch.lerp(before[name], tensor, 0.5)
        if name.startswith(("adapter.", "core.")) and tensor.is_floating_point()
        else tensor
        for name, tensor in after.items()
    }


def _referenced(reasoner: Reasoner, lessons: Sequence[Lesson]) -> list[Lesson]:
    """The lessons with all sums under theta0, once and without gradients."""
    rows = [row for lesson in lessons for row in lesson.rows]
    model = reasoner.model()
    with evaluating(model):
        scores = iter(score_paths(model, rows, reasoner.context.tokenizer.pad_token_id, SIZE, reasoner.passes))
    return [replace(lesson, references=tuple(next(scores).logp for _ in lesson.rows)) for lesson in lessons]


def _share(phase: Phase, batch_size: int) -> int:
    """Questions of an update: a pass through all of them where that fits into a batch."""
    return max(1, min(len(phase.lessons), max(batch_size // 2, 1)))


def _turns(lessons: Sequence[Lesson], share: int, seed: int) -> Iterator[list[Lesson]]:
    """Endless batches of lessons, shuffled anew every pass."""
    rng = random.Random(seed)
    while True:
        order = rng.sample(range(len(lessons)), len(lessons))
        for start in range(0, len(order), share):
            yield [lessons[i] for i in order[start : start + share]]


class _Loss:
    """The loss of an update on a batch of own rows and the next batch of lessons."""

    def __init__(self, model: Any, reasoner: Reasoner, phase: Phase, turns: Iterator[list[Lesson]]) -> None:
        self.model, self.reasoner, self.phase, self.turns = model, reasoner, phase, turns

    def __call__(self, forward: Forward, batch: Batch) -> Tensor:
        settings, lessons = self.reasoner.settings, next(self.turns)
        own = answer_loss(forward, batch)
        rows = [row for lesson in lessons for row in lesson.rows]
        padded = collate(rows, self.reasoner.context.tokenizer.pad_token_id)
        # The model itself: `forward` adds the bias of the own task's labels, and may be one pass for several clients.
        sums = path_sums(self.model, {k: v.to(own.device) for k, v in padded.items()}, self.reasoner.passes)
        terms, moves = [], []
        for lesson, part in zip(lessons, sums.split([len(lesson.rows) for lesson in lessons]), strict=True):
            term, move = lesson_loss(part, lesson, settings)
            terms.append(term)
            if move is not None:
                moves.append(move)
        if moves and self.phase.moves is not None:
            self.phase.moves.append(([lesson.item for lesson in lessons], sum(moves) / len(moves)))
        return own + settings.weight * torch.stack(terms).mean()


def lesson_loss(sums: Tensor, lesson: Lesson, settings: Any) -> tuple[Tensor, float | None]:
    """``anchor NLL(y+) per token + mu ell`` of one question, and sigma(beta (Delta+ - Delta-)) where there is a negative.

    Args:
        sums: s of the lesson's paths under the model that learns.
    """
    references = torch.tensor(lesson.references, device=sums.device)
    sizes = torch.tensor(lesson.sizes, dtype=torch.float32, device=sums.device)
    delta = (sums - references) / sizes**settings.gamma
    tokens = torch.tensor(lesson.tokens[: lesson.positives], dtype=torch.float32, device=sums.device)
    term = settings.anchor * (-sums[: lesson.positives] / tokens).mean()
    if settings.contrast and len(lesson.rows) > 1:
        term = term + settings.contrast * contrast(delta, lesson.q, settings.beta)
    if len(lesson.rows) == lesson.positives:
        return term, None
    gap = delta[: lesson.positives].mean() - delta[lesson.positives :].mean()
    return term, float((settings.beta * gap).sigmoid().detach())
