"""Predictions as common coordinates: what models with different vocabularies say of the same words.

    E_i   rows of the output embedding for words that are one token, times the size of what it reads, less their mean
    G     consensus of the left factors of E_i over the words that all models have
    z     = M_i x,  M_i = G^T W_i / words       x what the output embedding reads, W_i its centred rows
    J_l   = mean over anchors of dz / d(output of a map of block l), at the last token

z is a model's prediction in R numbers that mean the same in every model; J_l says how a map's output moves it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from h2tune.core.slots import Layout
from h2tune.participant.context import ClientContext
from h2tune.participant.passes import Passes
from h2tune.zoo import word_vectors

SHIPPED = 6000  # of the word list that ships with the package, the commonest
_MEASURED = 24  # anchors on which the effect of a block is measured
_AT_ONCE = 8
_BEFORE = "a"


@cache
def common_words() -> list[str]:
    """The words whose predictions are compared, the same for every client."""
    return [word for word in word_vectors()[0][:SHIPPED] if word.isalpha()]


def single_tokens(tokenizer: Any, words: Sequence[str]) -> Tensor:
    """The token of each word as it stands within a text, after a space; -1 for a word of several tokens."""
    # After another word: at the start of a text some tokenizers write a space of their own.
    before = tokenizer(_BEFORE, add_special_tokens=False)["input_ids"]
    ids = tokenizer([f"{_BEFORE} {word}" for word in words], add_special_tokens=False)["input_ids"]
    alone = [own[-1] if own[:-1] == before else -1 for own in ids]
    return torch.tensor(alone)


class Predictions:
    """The predictions of one client's base model; without an output embedding (an encoder with a head) it has none."""

    def __init__(self, context: ClientContext) -> None:
        self.context = context
        self.words = common_words()
        self.tokens = single_tokens(context.tokenizer, self.words)
        head = context.base.model.get_output_embeddings()
        if head is None:
            self.tokens = torch.full_like(self.tokens, -1)
        self.known = self.tokens >= 0

    def rows(self, of: Tensor) -> Tensor:
        """Centred rows of the output embedding for some words (words, as booleans), words x d."""
        weight: Tensor = self.context.base.model.get_output_embeddings().weight
        rows = weight.detach()[self.tokens[of].to(weight.device)].float().cpu()
        return rows - rows.mean(0)

    def scaled_rows(self) -> Tensor:
        """E_i for the words that this model has as one token."""
        with torch.no_grad():
            size = torch.cat([x.detach().float().cpu() for x in self._read()]).square().mean(0).sqrt()
        return self.rows(self.known) * size

    def effect(self, layout: Layout, coordinates: Tensor, shared: Tensor) -> list[Tensor]:
        """J of every map of a layout, block by block, R x d_out.

        Args:
            coordinates: G, words x R. shared: the words that it is about, as booleans over all words.
        """
        of = shared & self.known
        return self.moved(layout, coordinates[of[shared]].T @ self.rows(of) / int(of.sum()))

    def moved(self, layout: Layout, matrix: Tensor) -> list[Tensor]:
        """The mean over anchors of d(matrix x) / d(output of a map), R x d_out; x is what the output embedding reads."""
        outputs: list[Tensor] = []
        places = [
            block.get_submodule(m) for block in layout.blocks_of(self.context.base.model) for m in layout.modules
        ]
        found: list[Tensor] = []
        with _probed(places, outputs):
            for read in self._read(outputs.clear):
                last = self._last.to(read.device)
                z = read.float() @ matrix.T.to(read.device)
                for r in range(z.shape[1]):
                    grads = torch.autograd.grad(z[:, r].sum(), outputs, retain_graph=r + 1 < z.shape[1])
                    for place, grad in enumerate(grads):
                        if len(found) <= place:
                            found.append(torch.zeros(z.shape[1], grad.shape[-1]))
                        picked = grad[torch.arange(len(last)), last]
                        found[place][r] += picked.float().sum(0).cpu() / self._count
        return found

    def _read(self, before: Any = None) -> Iterator[Tensor]:
        """What the output embedding reads at the last token of some anchors, rows x d, a few anchors at a time."""
        context = self.context
        step = max(1, len(context.anchors) // _MEASURED)
        anchors = list(context.anchors[::step][:_MEASURED])
        self._count = len(anchors)
        passes, device = Passes(context.prefix), context.accelerator.device
        with context.base.untouched() as model:
            was_training = model.training
            model.eval()
            for start in range(0, len(anchors), _AT_ONCE):
                ids = context.tokenizer(anchors[start : start + _AT_ONCE])["input_ids"]
                batch = {name: t.to(device) for name, t in _padded(ids, context.tokenizer.pad_token_id or 0).items()}
                self._last = batch["attention_mask"].sum(1) - 1
                if before:
                    before()
                taken: list[Tensor] = []
                head: Any = model.get_output_embeddings()
                hook = head.register_forward_pre_hook(lambda _, args, taken=taken: _take(args[0], taken))
                try:
                    passes.whole(model, batch)
                finally:
                    hook.remove()
                yield taken[0][torch.arange(len(ids)), self._last]
            model.train(was_training)


def _take(hidden: Tensor, taken: list[Tensor]) -> tuple[Tensor]:
    """Keep what the output embedding is given, and give it one token only: its logits are not needed.

    In a tensor of its own: by a part of one PyTorch multiplies frozen weights with a copy of them for each row, which took
    seconds and 2 GB for a vocabulary of 151,936 entries.
    """
    taken.append(hidden)
    return (hidden[:, :1].contiguous(),)


def _padded(rows: list[list[int]], pad: int) -> dict[str, Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


@contextmanager
def _probed(places: Sequence[nn.Module], outputs: list[Tensor]) -> Iterator[None]:
    """Collect what some maps give, as tensors to which gradients flow."""

    def probe(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        out = out.detach() if not out.requires_grad else out
        out = out + torch.zeros_like(out).requires_grad_()
        outputs.append(out)
        return out

    with ExitStack() as stack:
        for place in places:
            stack.callback(place.register_forward_hook(probe).remove)
        yield
