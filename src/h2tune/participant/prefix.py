"""The cached prefix: what the blocks below the adapted ones say of a text, computed once.

With ``blocks`` below 1 only the top blocks of a model are adapted. What enters the first of them never changes, so it is
worked out once for every text and training, scoring and anchors start from there. Each text is run alone, in a shape that
depends on nothing but the text: its states are equal bit for bit whether they were kept, evicted or worked out again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from h2tune.core.slots import Layout
from h2tune.participant.base_models import LoadedModel, kernels_of
from h2tune.participant.batches import Batch
from h2tune.participant.state_cache import StateCache


class _Reached(Exception):
    """The first adapted block is reached: the rest of the pass is not needed."""


class Prefix:
    """Passes of one model that start at its first adapted block.

    Args:
        model: the base model, whatever adapters sit on its top blocks.
        layout: which blocks are adapted. identity: of the base's weights (`LoadedModel.fingerprint`).
    """

    def __init__(self, model: nn.Module, layout: Layout, identity: str, cache: StateCache) -> None:
        self.model, self.layout, self.cache = model, layout, cache
        embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
        self.dtype, self.device = embedding.weight.dtype, embedding.weight.device
        self.identity = f"{identity} {layout.blocks} {layout.first} {self.dtype} {kernels_of(model)}"
        self.width = 0
        self._answers_with: Callable[[Tensor], Any] | None = None

    @contextmanager
    def starting(self, batch: Batch) -> Iterator[None]:
        """For a while every pass over this right-padded batch starts from what is known of its rows."""
        hidden = self._padded(batch)
        below = self.layout.below(self.model)
        answers_with = self._answers_with
        assert answers_with is not None  # `_padded` has run at least one text

        def passed(states: Tensor, *args: Any, **kwargs: Any) -> Any:
            return answers_with(states)

        with ExitStack() as stack:
            for block in below[:-1]:
                stack.enter_context(standing_in(block, passed))
            stack.enter_context(standing_in(below[-1], lambda *args, **kwargs: answers_with(hidden)))
            yield

    def _padded(self, batch: Batch) -> Tensor:
        """What enters the first adapted block, rows x tokens x width, 0 where a row is padded."""
        ids = batch["input_ids"].cpu()
        lengths = batch["attention_mask"].sum(1).tolist() if "attention_mask" in batch else [ids.shape[1]] * len(ids)
        rows = [self.states(row[:length]) for row, length in zip(ids, lengths, strict=True)]
        hidden = torch.zeros(len(rows), ids.shape[1], self.width, dtype=self.dtype)
        for place, states in enumerate(rows):
            hidden[place, : len(states)] = states
        return hidden.to(self.device)

    def states(self, ids: Tensor) -> Tensor:
        """What enters the first adapted block when the model reads these tokens, tokens x width."""
        key = hashlib.sha256(f"{self.identity} {ids.tolist()}".encode()).hexdigest()[:32]
        if self._answers_with is not None:
            known = self.cache.get(key, (len(ids), self.width), self.dtype)
            if known is not None:
                return known
        found = self._run(ids)
        self.cache.put(key, found)
        return found

    @torch.no_grad()
    def _run(self, ids: Tensor) -> Tensor:
        """One text through the blocks below, alone: a pass that ends where the first adapted block begins."""
        taken: list[Tensor] = []

        def reach(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            taken.append(args[0] if args else kwargs["hidden_states"])
            raise _Reached

        def learn_form(block: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            if self._answers_with is None:  # some families' blocks answer with a tuple
                rest = tuple(None for _ in out[1:]) if isinstance(out, tuple) else None
                self._answers_with = (lambda x: x) if rest is None else (lambda x: (x, *rest))

        top, below = self.layout.blocks_of(self.model)[0], self.layout.below(self.model)
        hooks = [
            top.register_forward_pre_hook(reach, with_kwargs=True),
            below[-1].register_forward_hook(learn_form),
        ]
        was_training = self.model.training
        switch = was_training or any(block.training for block in below)  # it visits every module: not for each text
        if switch:
            self.model.eval()
        try:
            config: Any = self.model.config
            options = {"use_cache": False} if hasattr(config.get_text_config(), "use_cache") else {}
            whole = ids[None].to(self.device)
            # Training asks within autocast, scoring does not: both are given the same.
            with torch.autocast(self.device.type, enabled=False):
                self.model(input_ids=whole, attention_mask=torch.ones_like(whole), **options)
        except _Reached:
            pass
        finally:
            if switch:
                self.model.train(was_training)
            for hook in hooks:
                hook.remove()
        found = taken[0][0].to(self.dtype).cpu().clone()
        self.width = found.shape[1]
        return found


def prefix_of(base: LoadedModel, layout: Layout, cache: StateCache) -> Prefix:
    """The prefix of a base below a layout's blocks; all clients on the base use the same."""
    key = ("prefix", layout.first)
    if key not in base.cache:
        base.cache[key] = Prefix(base.model, layout, base.fingerprint, cache)
    found: Prefix = base.cache[key]
    return found


@contextmanager
def standing_in(block: nn.Module, stand_in: Callable[..., Any]) -> Iterator[None]:
    """Let a module run something else for a while."""
    own = block.__dict__.get("forward")
    block.forward = stand_in
    try:
        yield
    finally:
        del block.forward
        if own is not None:
            block.forward = own
