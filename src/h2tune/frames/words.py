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
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, log_softmax

from h2tune.config import ClientConfig
from h2tune.core.client_core import ANY, CoreShape
from h2tune.core.slots import Layout, input_kind
from h2tune.errors import MethodError, ProtocolError
from h2tune.frames.base import ClientFrames, FramedAdapter, FrameKind, FrameSettings, ServerFrames
from h2tune.frames.lexicon import fit_readers
from h2tune.frames.sources import load_codes, load_texts
from h2tune.frames.word_codes import TextCodes
from h2tune.frames.word_texts import Pool, Texts, asked, columns_of, make_pool, practice_texts, question_of
from h2tune.participant.batches import collate
from h2tune.participant.context import ClientContext
from h2tune.participant.trainer import Group, NanLossError
from h2tune.protocol.codec import Payload
from h2tune.tasks.example import Task
from h2tune.utils.seeds import derive

SLOTS = ("o", "up", "down")  # where the core acts unless the settings name others
FITTED, BATCH, SHARPNESS, BIAS = 1500, 48, 3.0, 0.3
READING, FORMAT = 2.0, 0.3  # weights of the losses beside obeying


def check_words(method: FramedAdapter) -> None:
    """Raise AnchorError if the client's public texts are nothing for these frames."""
    context = method.context
    first, columns = public_texts(context)[0].split("\t"), columns_of(method)
    text = tuple((first * 2)[: len(columns)])
    asked(method, [text], question_of(method, text).options)


def practise_words(method: FramedAdapter) -> None:
    """Set the client's A and B, and the private LoRA, to practised frames; what was practised once is kept."""
    context, settings = method.context, method.settings
    columns = columns_of(method)
    codes = load_codes(settings.codes, context.rank, pairs=len(columns) == 2)
    texts = practice_texts(public_texts(context), pairs=len(columns) == 2)
    question = question_of(method, texts[0])
    what = (context.base.fingerprint, context.rank, method.adapter_rank - method.shared_rank, settings.practice_steps, settings.practice_rate,
            question, core_slots(settings), context.config.max_length, len(codes.words), float(codes.codes.sum()),
            ["\t".join(text) for text in texts])  # fmt: skip
    key = hashlib.sha256(repr(what).encode()).hexdigest()[:16]
    kept = context.models.kept(f"words-{key}", lambda: _practised(method, codes, texts, question.options))
    with torch.no_grad():
        for index, parameter in enumerate(method.factors):
            parameter.copy_(kept[str(index)])


def public_texts(context: ClientContext) -> list[str]:
    """What is practised on: the client's own public texts, or the anchors."""
    return load_texts(context.config.practice) if context.config.practice else list(context.anchors)


def core_slots(settings: FrameSettings) -> tuple[str, ...]:
    """Where the core acts."""
    return tuple(settings.slots or SLOTS)


def practised_factors(method: FramedAdapter) -> dict[str, Tensor]:
    """A and B after practice, as they are kept.

    Raises:
        NanLossError: practice diverged; such frames must not be kept.
    """
    found = {str(index): parameter.detach().clone() for index, parameter in enumerate(method.factors)}
    if not all(bool(tensor.isfinite().all()) for tensor in found.values()):
        raise NanLossError("practice diverged: A and B hold values that are not numbers; use a smaller practice_rate")
    return found


class WordsClient(ClientFrames):
    @classmethod
    def suits(cls, settings: Any, client: ClientConfig, task: Task) -> None:
        if settings.private == 0:
            raise MethodError("frames: words needs `private:`, a LoRA that is practised along, for example 32")
        if task.kind != "choice":
            raise MethodError(f"{client.name}: frames: words needs a task that chooses among labels, not {task.kind}")

    def check(self) -> None:
        super().check()
        check_words(self.adapter)

    @property
    def layout(self) -> Layout:
        return self.context.layout.only(core_slots(self.settings))

    @property
    def tied(self) -> str:
        """One slot of the core for tasks about a text, another one for tasks about pairs of texts."""
        return ANY[len(columns_of(self.adapter)) - 1]

    def introduction(self, fresh: bool) -> dict[str, Any]:
        return {"slots": self.core_slots}

    def set_up(self, payload: Payload, shape: CoreShape, relation: Tensor) -> Tensor:
        practise_words(self.adapter)
        return relation


class WordsServer(ServerFrames):
    def check_introduction(self, payload: Payload) -> None:
        slots = set(payload.meta["slots"])
        if not slots or slots - set(ANY):
            raise ProtocolError("its introduction has slots that do not belong to frames: words")


WORDS = FrameKind(
    "words", "practised on public codes of words", WordsClient, WordsServer, tied=True, whole_adapter=True
)


def _practised(
    method: FramedAdapter, codes: TextCodes, texts: list[Texts], options: tuple[str, ...]
) -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(derive(0, "words"))
        pool = make_pool(method, codes, texts, options)
        _fit(method, codes, pool)
        _practise(method, codes, pool)
    return practised_factors(method)


def _cores(method: FramedAdapter) -> list[tuple[int, str, Any]]:
    """Block, slot and layer of every map on which the core acts."""
    layout = method.context.layout
    found = []
    for index, layer in enumerate(method.layers):
        block, module = divmod(index, len(layout.modules))
        held = [
            slot for slot, ref in layout.slots.items() if ref.module == layout.modules[module]
        ]  # of a fused map several
        if acted_on := [slot for slot in held if slot in core_slots(method.settings)]:
            found.append((block, acted_on[0], layer))
    return found


def _fit(method: FramedAdapter, codes: TextCodes, pool: Pool) -> None:
    """A reads the codes as well as one linear map can; B gets small random columns for the labels."""
    context, name = method.context, method.context.adapter
    base, rank = context.base, method.shared_rank
    table = codes.table()
    fits = [p for p in pool.prompts[:FITTED] if len(context.tokenizer(p)["input_ids"]) <= base.context]
    with base.untouched() as model:
        readers = fit_readers(model, context.tokenizer, context.layout, fits, table, base.context, base.causal)
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
def written(method: FramedAdapter, w: Tensor, read: Callable[[int, str, Tensor], None]) -> Iterator[None]:
    """Let every row of a batch have the core ``sum_c e_c w_c^T`` of its own; ``read`` is told what A reads."""
    name, rank = method.context.adapter, method.shared_rank
    with ExitStack() as stack:
        for block, slot, layer in _cores(method):

            def add(
                module: Any, args: tuple[Tensor, ...], out: Tensor, block: int = block, slot: str = slot
            ) -> Tensor:
                u = linear(args[0], module.trilora_A[name][:rank])
                read(block, slot, u)
                b: Tensor = module.trilora_B[name][:, : w.shape[1]]
                return out + torch.einsum("btr,bcr->btc", u, w) @ b.T

            stack.callback(layer.register_forward_hook(add).remove)
        yield


def _practise(method: FramedAdapter, codes: TextCodes, pool: Pool) -> None:
    context, settings, labels = method.context, method.settings, len(pool.first)
    schedule = context.training.model_copy(update={"schedule": "cosine", "warmup": 0.02})
    for parameter in method.factors:
        parameter.requires_grad_(True)
    for leaf in method.middles:
        leaf.requires_grad_(False)
    group = Group(method.factors, settings.practice_rate, settings.practice_steps, schedule)
    context.base.activate(context.adapter).train()
    order = sorted(range(len(pool.prompts)), key=lambda i: len(pool.rows[0][i].input_ids))
    for leaf in method.middles:
        leaf.requires_grad_(False)
    size = min(BATCH, len(order))
    for step in range(settings.practice_steps):
        # Texts of like lengths: eight batches' worth in the order of length, and of these one batch.
        window = min(8 * size, len(order))
        begin = int(torch.randint(0, len(order) - window + 1, ()))
        chosen = [order[begin + int(i)] for i in torch.randperm(window)[:size]]
        loss = _loss(method, codes, pool, chosen, directions(size, labels, codes.rank))
        context.accelerator.backward(loss)
        context.trainer.apply([group])
        context.on_step("practice", step + 1, settings.practice_steps, float(loss.detach()))


def _loss(method: FramedAdapter, codes: TextCodes, pool: Pool, chosen: list[int], w: Tensor) -> Tensor:
    """Obeying + `READING` x reading + `FORMAT` x writing the answer out."""
    context = method.context
    device = context.accelerator.device
    says = torch.einsum("br,bcr->bc", pool.features[chosen], w)
    wanted = torch.softmax(SHARPNESS * torch.cat([torch.zeros(len(chosen), 1), says], dim=1), dim=1)
    answers = torch.multinomial(wanted, 1)[:, 0].tolist()
    batch = collate([pool.rows[c][i] for c, i in zip(answers, chosen, strict=True)], context.tokenizer.pad_token_id)
    at = torch.tensor([row for row, i in enumerate(chosen) for _ in pool.places[i][0]], dtype=torch.long)
    token = torch.tensor([place for i in chosen for place in pool.places[i][0]], dtype=torch.long)
    target = torch.cat([pool.places[i][1] for i in chosen]).to(device)
    unread: list[Tensor] = []

    def read(block: int, slot: str, u: Tensor) -> None:
        # The attention output mixes words, and early blocks have not read them to the end.
        if len(at) and slot != "o" and block >= context.layout.depth // 2:
            unread.append((u[at, token] - target).square().mean() / target.square().mean())

    with written(method, w.to(device), read):
        logits = context.base.activate(context.adapter)(
            **{k: v.to(device) for k, v in batch.items() if k != "labels"}
        ).logits.float()
    rows = torch.arange(len(chosen))
    border = torch.tensor([pool.asked[i] for i in chosen])
    said = log_softmax(logits[rows, border - 1][:, pool.first], dim=1)
    loss = -(wanted.to(device) * said).sum(1).mean()
    asked = batch["labels"][:, 1:] != -100
    loss = loss + FORMAT * cross_entropy(logits[:, :-1][asked], batch["labels"][:, 1:][asked].to(device))
    return loss + READING * torch.stack(unread).mean() if unread else loss
