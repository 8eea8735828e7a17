"""Frames by words: every model learns to read the same public codes of words, and to obey a direction in them.

What is practised, on public text without labels, before round 0 and without any exchange:

    reading     A_i x = code(w) where the model has just read the word w      (`h2tune.frames.word_codes`)
    obeying     with S = sum_c e_c w_c^T written for random directions w_c, the model answers with label c with
                probability softmax_c(3 w_c . f),  f the text's feature (the sum of its words' codes), w_0 = 0

A and B read and write in the frames; a private LoRA beside them, on all maps, is practised along, for a small model does not
hold the codes by itself. After that S means the same in every model: row c is the direction in word space that speaks
for label c, learnt from private examples by gradient, and the mean of S's is the mean of directions.

One S serves all blocks and slots. It works for tasks that choose among the same few labels (kind `choice`). Tasks about two
texts have a slot of the core of their own, with codes that say which words of the second text the first one has.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, log_softmax

from h2tune.core.client_core import ANY
from h2tune.core.slots import input_kind
from h2tune.frames.lexicon import fit_readers
from h2tune.frames.word_codes import TextCodes
from h2tune.frames.word_texts import Pool, Texts, asked, columns_of, make_pool, practice_texts, question_of
from h2tune.methods.base import MethodError
from h2tune.participant.batches import collate
from h2tune.participant.optim import Group
from h2tune.utils.seeds import derive

if TYPE_CHECKING:
    from h2tune.methods.h2tune import H2TuneClient
    from h2tune.methods.h2tune_settings import H2TuneSettings

SLOTS = ("o", "up", "down")  # where the core acts unless the settings name others
FITTED, BATCH, SHARPNESS, BIAS = 1500, 48, 3.0, 0.3
READING, FORMAT = 2.0, 0.3  # weights of the losses beside obeying


def check_words(method: H2TuneClient) -> None:
    """Raise MethodError or AnchorError if the client's task or its public texts are nothing for these frames."""
    client = method.client
    if not method.settings.private:
        raise MethodError("frames: words needs `private:`, a LoRA that is practised along, for example 32")
    if client.task.kind != "choice":
        raise MethodError(
            f"{client.name}: frames: words needs a task that chooses among labels, not {client.task.kind}"
        )
    first, columns = client.public_texts()[0].split("\t"), columns_of(method)
    text = tuple((first * 2)[: len(columns)])
    asked(method, [text], question_of(method, text).options)


def practise_words(method: H2TuneClient) -> None:
    """Set the client's A and B, and the private LoRA, to practised frames; what was practised once is kept."""
    client, settings = method.client, method.settings
    columns = columns_of(method)
    codes = client.word_codes(settings.codes, pairs=len(columns) == 2)
    texts = practice_texts(client.public_texts(), pairs=len(columns) == 2)
    question = question_of(method, texts[0])
    what = (client.base.fingerprint, client.rank, settings.private, settings.practice_steps, settings.practice_rate,
            question, core_slots(settings), client.config.max_length, len(codes.words), float(codes.codes.sum()),
            ["\t".join(text) for text in texts])  # fmt: skip
    key = hashlib.sha256(repr(what).encode()).hexdigest()[:16]
    kept = client.models.kept(f"words-{key}", lambda: _practised(method, codes, texts, question.options))
    with torch.no_grad():
        for index, parameter in enumerate(method.factors):
            parameter.copy_(kept[str(index)])


def core_slots(settings: H2TuneSettings) -> tuple[str, ...]:
    """Where the core acts."""
    return tuple(settings.slots or SLOTS)


def tied_slot(method: H2TuneClient) -> str:
    """The slot of the core that a client's task reads: one for texts, another one for pairs of texts."""
    return ANY[len(columns_of(method)) - 1]


def _practised(
    method: H2TuneClient, codes: TextCodes, texts: list[Texts], options: tuple[str, ...]
) -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(derive(0, "words"))
        pool = make_pool(method, codes, texts, options)
        _fit(method, codes, pool)
        _practise(method, codes, pool)
    return {str(index): parameter.detach().clone() for index, parameter in enumerate(method.factors)}


def _cores(method: H2TuneClient) -> list[tuple[int, str, Any]]:
    """Block, slot and layer of every map on which the core acts."""
    layout = method.client.layout
    found = []
    for index, layer in enumerate(method.layers):
        block, module = divmod(index, len(layout.modules))
        slot = next(s for s, ref in layout.slots.items() if ref.module == layout.modules[module])
        if slot in core_slots(method.settings):
            found.append((block, slot, layer))
    return found


def _fit(method: H2TuneClient, codes: TextCodes, pool: Pool) -> None:
    """A reads the codes as well as one linear map can; B gets small random columns for the labels."""
    client, name = method.client, method.client.adapter
    base, rank = client.base, method.shared_rank
    table = codes.table()
    fits = [p for p in pool.prompts[:FITTED] if len(client.tokenizer(p)["input_ids"]) <= base.context]
    with base.peft.disable_adapter():
        readers = fit_readers(base.model, client.tokenizer, client.layout, fits, table, base.context, base.causal)
    labels = len(pool.first)
    with torch.no_grad():
        for layer in method.layers:
            # The private LoRA, too, starts from the practice's own seed: what a run's seed drew must not matter.
            nn.init.kaiming_uniform_(layer.trilora_A[name], a=5**0.5)
            layer.trilora_A[name][:rank] = 0
            layer.trilora_B[name].zero_()
        for block, slot, layer in _cores(method):
            layer.trilora_A[name][:rank] = readers[block][input_kind(slot)][:rank]
            layer.trilora_B[name][:, : labels - 1].normal_(0, 0.02)


def directions(count: int, labels: int, rank: int) -> Tensor:
    """Random w_c for every label but the first, count x (labels - 1) x rank; the constant's entry is small."""
    w = torch.randn(count, labels - 1, rank)
    w[..., :-1] /= (rank - 1) ** 0.5
    w[..., -1] *= BIAS
    return w


@contextmanager
def written(method: H2TuneClient, w: Tensor, read: Callable[[int, str, Tensor], None]) -> Iterator[None]:
    """Let every row of a batch have the core ``sum_c e_c w_c^T`` of its own; ``read`` is told what A reads."""
    name, rank = method.client.adapter, method.shared_rank
    with ExitStack() as stack:
        for block, slot, layer in _cores(method):

            def add(module: Any, args: tuple, out: Tensor, block: int = block, slot: str = slot) -> Tensor:
                u = linear(args[0], module.trilora_A[name][:rank])
                read(block, slot, u)
                return out + torch.einsum("btr,bcr->btc", u, w) @ module.trilora_B[name][:, : w.shape[1]].T

            stack.callback(layer.register_forward_hook(add).remove)
        yield


def _practise(method: H2TuneClient, codes: TextCodes, pool: Pool) -> None:
    client, settings, labels = method.client, method.settings, len(pool.first)
    schedule = client.training.model_copy(update={"schedule": "cosine", "warmup": 0.02})
    for parameter in method.factors:
        parameter.requires_grad_(True)
    for leaf in method.leaves:
        leaf.requires_grad_(False)
    group = Group(method.factors, settings.practice_rate, settings.practice_steps, schedule, client.accelerator)
    client.base.activate(client.adapter).train()
    order = sorted(range(len(pool.prompts)), key=lambda i: len(pool.rows[0][i].input_ids))
    for leaf in method.leaves:
        leaf.requires_grad_(False)
    size = min(BATCH, len(order))
    for step in range(settings.practice_steps):
        # Texts of like lengths: eight batches' worth in the order of length, and of these one batch.
        window = min(8 * size, len(order))
        begin = int(torch.randint(0, len(order) - window + 1, ()))
        chosen = [order[begin + int(i)] for i in torch.randperm(window)[:size]]
        loss = _loss(method, codes, pool, chosen, directions(size, labels, codes.rank))
        client.accelerator.backward(loss)
        method.updater.apply(group)
        if client.watch:
            client.watch(client.name, 0, "practice", step + 1, settings.practice_steps, float(loss.detach()))


def _loss(method: H2TuneClient, codes: TextCodes, pool: Pool, chosen: list[int], w: Tensor) -> Tensor:
    """Obeying + `READING` x reading + `FORMAT` x writing the answer out."""
    client = method.client
    device = client.accelerator.device
    says = torch.einsum("br,bcr->bc", pool.features[chosen], w)
    wanted = torch.softmax(SHARPNESS * torch.cat([torch.zeros(len(chosen), 1), says], dim=1), dim=1)
    answers = torch.multinomial(wanted, 1)[:, 0].tolist()
    batch = collate([pool.rows[c][i] for c, i in zip(answers, chosen, strict=True)], client.tokenizer.pad_token_id)
    at = torch.tensor([row for row, i in enumerate(chosen) for _ in pool.places[i][0]], dtype=torch.long)
    token = torch.tensor([place for i in chosen for place in pool.places[i][0]], dtype=torch.long)
    target = torch.cat([pool.places[i][1] for i in chosen]).to(device)
    unread: list[Tensor] = []

    def read(block: int, slot: str, u: Tensor) -> None:
        # The attention output mixes words, and early blocks have not read them to the end.
        if len(at) and slot != "o" and block >= client.layout.depth // 2:
            unread.append((u[at, token] - target).square().mean() / target.square().mean())

    with written(method, w.to(device), read):
        logits = client.base.peft(**{k: v.to(device) for k, v in batch.items() if k != "labels"}).logits.float()
    rows = torch.arange(len(chosen))
    border = torch.tensor([pool.asked[i] for i in chosen])
    said = log_softmax(logits[rows, border - 1][:, pool.first], dim=1)
    loss = -(wanted.to(device) * said).sum(1).mean()
    asked = batch["labels"][:, 1:] != -100
    loss = loss + FORMAT * cross_entropy(logits[:, :-1][asked], batch["labels"][:, 1:][asked].to(device))
    return loss + READING * torch.stack(unread).mean() if unread else loss
