"""Local training of several clients in one pass of the base model that they share, and their scoring.

Every client's action runs as it always does until it has declared its local training (`LocalTraining`); then it waits. When
all clients of a group wait, their updates are made side by side: one pass over the rows of all, each through its own
adapter, one backward pass from the sum of their losses. All else is each client's own: its mean loss, penalty, clipping,
optimiser, schedule and random state. A client's gradients depend on its own loss alone, so the sum couples nothing.

A client that scores waits at every batch (`h2tune.participant.scored_together`). Such questions come first: who has scored
declares its training next, so that all train together.

The figures are those of training one after the other up to rounding: a product over more rows may add up in another order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import Tensor, nn

from h2tune.adapter.side_by_side import SideBySide, shape_of, switch_to
from h2tune.config import Training
from h2tune.participant.batches import MOST_LOGITS, Batch, vocabulary
from h2tune.participant.passes import Answered, Passes, answered_each, answers
from h2tune.participant.scored_together import Active, Asked, SharedPasses, answer_together
from h2tune.participant.trainer import LocalTraining, NanLossError, OnStep, Trainer, Update, answer_loss
from h2tune.utils.turns import Turn, hand_over, takes_turns

# Tokens that fill a pass. More made an update no cheaper on one core of a CPU (docs/scale.md); on a GPU none was at hand to try.
FULL, FULL_GPU = 2048, 65536
FULL_WRITING = 8192  # where models write, most steps read one token a row: more rows cost little
WASTE = 0.25  # share of a pass that may be padding between clients; above it they get passes of their own


@dataclass
class Declared:
    """A client's local training that waits for others.

    Attributes:
        active: the client's adapter. alone: whether the client is to carry it out itself.
        losses: of each phase. error: why it came to nothing.
    """

    training: LocalTraining
    on_step: OnStep | None
    active: Active
    alone: bool = False
    losses: dict[str, list[float]] = field(default_factory=dict)
    error: NanLossError | None = None

    @property
    def model(self) -> PeftModel:
        return self.active.model

    def has_rows(self) -> bool:
        """Whether batches are rows of tokens; the loss of others makes passes of its own."""
        if not self.training.phases:
            return True  # no batch of it may be taken: who made them may go on with them
        batches = self.training.batches
        first = next(batches)
        self.training = replace(self.training, batches=chain([first], batches))
        return "input_ids" in first[0]


@dataclass
class Part:
    """A client's share of a pass: its batch, the rows' numbers, and the weight of its loss in the update's."""

    declared: Declared
    update: Update
    batch: Batch
    rows: list[int]
    weight: float


@dataclass
class Limit:
    """Most clients in a pass, found by trying.

    Attributes:
        tell: told once if a pass did not fit into memory and was halved. who: which clients, for its text.
    """

    most: int
    tell: Callable[[str], None] | None
    who: str = ""

    def within(self, parts: list[Any], act: Callable[[list[Any]], None]) -> None:
        """Act on all, or where that does not fit into memory on one half after the other."""
        if len(parts) > self.most:
            self.within(parts[: self.most], act)
            self.within(parts[self.most :], act)
            return
        try:
            act(parts)
            return
        except RuntimeError as error:
            if len(parts) == 1 or not _says_no_memory(error):
                raise
        self.most = -(-len(parts) // 2)
        if self.tell:
            clients = f"{len(parts)} clients {self.who}".rstrip()
            self.tell(f"{clients} side by side do not fit into memory; from now on {self.most} at a time")
            self.tell = None
        self.within(parts, act)


class TogetherTrainer(Trainer):
    """Carries out the local training of clients that take turns side by side, that of others as `Trainer` does.

    Args:
        tell: told once if a pass did not fit into memory and was halved.

    Attributes:
        limit, scoring_limit: clients in a pass of training and of scoring. full: tokens that fill one.
    """

    def __init__(
        self, settings: Training, accelerator: Accelerator, most: int, tell: Callable[[str], None] | None = None
    ) -> None:
        super().__init__(settings, accelerator)
        self.limit = Limit(most, tell)
        self.scoring_limit = Limit(most, tell, "that are scored")
        self.full = FULL_GPU if accelerator.device.type == "cuda" else FULL

    def run(self, training: LocalTraining, on_step: OnStep | None = None) -> dict[str, float]:
        model: Any = training.model
        if not takes_turns() or not isinstance(model, PeftModel):
            return super().run(training, on_step)
        declared = Declared(training, on_step, Active.on(model))
        hand_over(declared)
        declared.active.enter()
        if declared.error:
            raise declared.error
        if declared.alone:
            return super().run(declared.training, on_step)
        return {phase: sum(values) / len(values) for phase, values in declared.losses.items()}

    def scoring(self, model: nn.Module, passes: Passes) -> Passes:
        if not takes_turns() or not isinstance(model, PeftModel):
            return passes
        return SharedPasses(passes.prefix, passes.bias, Active.on(model))

    def together(self, acts: Sequence[Callable[[], Any]]) -> list[Any]:
        """What several clients' actions return, with their local training and their scoring side by side.

        PyTorch's generators are the process's: each action goes on with those that it stopped with.
        """
        turns = [Turn(act) for act in acts]
        begun = generators()
        states = [begun] * len(turns)

        def go_on(some: Iterable[int]) -> None:
            for i in some:
                set_generators(states[i])
                turns[i].go_on()
                states[i] = generators()

        try:
            go_on(range(len(turns)))
            while handed := {i: turn.handed for i, turn in enumerate(turns) if not turn.ended}:
                asked = {i: what for i, what in handed.items() if isinstance(what, Asked)}
                for some in self._to_answer(asked):
                    self.scoring_limit.within([asked[i] for i in some], answer_together)
                    go_on(some)  # before the next pass: what a model says to all at a time need not fit into memory
                if not asked:
                    self.carry_out(list(handed.values()))
                    go_on(handed)
        finally:
            for turn in turns:
                turn.close()
            set_generators(begun)
        return [turn.answer for turn in turns]

    def _to_answer(self, asked: dict[int, Asked]) -> list[list[int]]:
        """Clients that score whose questions fit into one pass together."""
        alike: dict[Hashable, dict[int, tuple[int, int]]] = {}
        for i, question in asked.items():
            alike.setdefault(question.kind, {})[i] = question.shape
        found = []
        for shapes in alike.values():
            first = asked[next(iter(shapes))]
            full = self.full if first.writing is None else max(self.full, FULL_WRITING)
            most = MOST_LOGITS // vocabulary(first.active.model)
            found += packs(shapes, full, {i: asked[i].positions for i in shapes}, most)
        return found

    def carry_out(self, all_declared: Sequence[Declared]) -> None:
        """Train those side by side that can be; the others are told to do it alone."""
        alike: dict[Any, list[Declared]] = {}
        drawing: dict[int, bool] = {}
        for declared in all_declared:
            model = declared.model
            if id(model) not in drawing:
                drawing[id(model)] = draws(model)
            lonely = self.accelerator.scaler is not None or drawing[id(model)] or not declared.has_rows()
            key = (id(model), id(declared if lonely else None), shape_of(model, declared.active.adapter))
            alike.setdefault(key, []).append(declared)
        for group in alike.values():
            if len(group) == 1:
                group[0].alone = True
                continue
            for declared in group:
                declared.active.listen()
            group[0].model.train(group[0].active.training)
            for number in range(max(len(declared.training.phases) for declared in group)):
                self._update_all([d for d in group if not d.error and number < len(d.training.phases)], number)
            for declared in group:
                declared.active.listen(False)

    def _update_all(self, group: list[Declared], number: int) -> None:
        """One update of every client that has one left."""
        updates = [declared.training.updates[declared.training.phases[number]] for declared in group]
        for update in updates:
            update.before()
        totals = self._gradients(group, updates)
        for declared, update, total in zip(group, updates, totals, strict=True):
            phases = declared.training.phases
            if declared.error:
                for parameter, _ in declared.active.listening:
                    parameter.grad = None
                continue
            update.after()
            self.apply(update.groups)
            declared.losses.setdefault(phases[number], []).append(total)
            if declared.on_step:
                declared.on_step(phases[number], number + 1, len(phases), total)

    def _gradients(self, group: list[Declared], updates: list[Update]) -> list[float]:
        """As `Trainer.gradients`, for all at once; returns the loss of each."""
        totals = dict.fromkeys(range(len(group)), 0.0)
        taken = [[next(d.training.batches) for _ in range(self.settings.accumulation)] for d in group]
        for micro in range(self.settings.accumulation):
            parts = {}
            for i, (declared, update) in enumerate(zip(group, updates, strict=True)):
                whole = max(1, sum(answers(batch) for batch, _ in taken[i]))
                batch, rows = taken[i][micro]
                batch = {name: value.to(self.accelerator.device) for name, value in batch.items()}
                parts[i] = Part(declared, update, batch, rows, answers(batch) / whole if len(taken[i]) > 1 else 1.0)
            for numbers in packs({i: p.batch["input_ids"].shape for i, p in parts.items() if not p.declared.error}):
                for i, loss in zip(numbers, self._trained([parts[i] for i in numbers]), strict=True):
                    totals[i] += loss
        return list(totals.values())

    def _trained(self, parts: list[Part]) -> list[float]:
        """The losses of a pass, whose gradients are added to those that are there."""
        losses: list[float] = []

        def trained(some: list[Part]) -> None:
            listening = [p for part in some for p, _ in part.declared.active.listening]
            held = [(p, p.grad if p.grad is None else p.grad.clone()) for p in listening]
            try:
                losses.extend(self._pass(some))
            except RuntimeError:
                for parameter, gradient in held:
                    parameter.grad = gradient
                raise

        self.limit.within(parts, trained)
        return losses

    def _pass(self, parts: list[Part]) -> list[float]:
        """Forward and backward over the rows of some clients; returns their losses."""
        model: Any = parts[0].declared.model
        beside = SideBySide([p.declared.active.adapter for p in parts], [len(p.rows) for p in parts])
        runs, filler = [p.declared.training.passes for p in parts], model.config.get_text_config().pad_token_id or 0
        with beside.on(model), self.accelerator.autocast():
            found = answered_each(model, runs, [p.batch for p in parts], filler)
        values = [self._loss(part, answered) for part, answered in zip(parts, found, strict=True)]
        weighed = [v if part.weight == 1 else v * part.weight for v, part in zip(values, parts, strict=True)]
        losses = torch.stack([v.detach() for v in weighed]).tolist()  # a GPU is waited for once, not once a client
        shares = []
        for i, part in enumerate(parts):
            if math.isfinite(losses[i]):
                shares.append(weighed[i])
            else:
                losses[i] = 0.0
                text = f"the loss is not a number on the training rows {part.rows[:8]}"
                part.declared.error = NanLossError(text)
        if shares:
            again = model.get_base_model().is_gradient_checkpointing  # then blocks run once more for their gradients
            with beside.on(model) if again else nullcontext():
                self.accelerator.backward(torch.stack(shares).sum())
        return losses

    def _loss(self, part: Part, answered: Answered) -> Tensor:
        """A client's own loss; what else it asks its model goes through its own adapter."""
        if part.update.loss is answer_loss:
            return answered.loss
        declared = part.declared
        alone = partial(self.forward, declared.model, rows=part.rows, passes=declared.training.passes)
        switch_to(declared.model, declared.active.adapter)
        with self.accelerator.autocast():
            return part.update.loss(lambda batch: answered if batch is part.batch else alone(batch), part.batch)


def packs(
    shapes: Mapping[int, tuple[int, ...]],
    full: float = math.inf,
    positions: Mapping[int, int] | None = None,
    most: float = math.inf,
) -> list[list[int]]:
    """Clients for each pass, by the shape (rows x tokens) of their batches: little of a pass is padding.

    Args:
        full: most tokens in a pass of several. positions: where each asks for logits. most: such positions in a pass of several.
    """
    found: list[list[int]] = []
    positions = positions or {}
    for number in sorted(shapes, key=lambda i: (-shapes[i][1], i)):
        if found:
            together = [*found[-1], number]
            used, length = sum(shapes[i][0] * shapes[i][1] for i in together), shapes[together[0]][1]
            whole = length * sum(shapes[i][0] for i in together)
            logits = sum(positions.get(i, 0) for i in together)
            if used >= (1 - WASTE) * whole and whole <= full and logits <= most:
                found[-1].append(number)
                continue
        found.append([number])
    return [sorted(pack) for pack in found]


State = tuple[Tensor, list[Tensor]]
"""Of PyTorch's generators, of the CPU and of each GPU that is in use."""


def generators() -> State:
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


def set_generators(state: State) -> None:
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])


def draws(model: nn.Module) -> bool:
    """Whether training the model draws random numbers: rows side by side would draw them in another order."""
    return any(
        isinstance(value, float) and value > 0 and ("drop" in name or (name == "p" and isinstance(module, nn.Dropout)))
        for module in model.modules()
        for name, value in vars(module).items()
    )


def _says_no_memory(error: RuntimeError) -> bool:
    return (
        isinstance(error, torch.OutOfMemoryError)
        or "allocate memory" in str(error)
        or "not enough memory" in str(error)
    )
