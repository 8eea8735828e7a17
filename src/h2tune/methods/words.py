"""Frames by words: every model learns to read the same public codes of words, and to obey a direction in them.

What is practised, on public text without labels, before round 0 and without any exchange:

    reading     A_i x = code(w) where the model has just read the word w      (`h2tune.core.wordcodes`)
    obeying     with S = sum_c e_c w_c^T written for random directions w_c, the model answers with label c with
                probability softmax_c(3 w_c . f),  f the text's feature (the sum of its words' codes), w_0 = 0

A and B read and write in the frames; a private LoRA beside them, on all maps, is practised along, for a small model does not
hold the codes by itself. After that S means the same in every model: row c is the direction in word space that speaks
for label c, learnt from private examples by gradient, and the mean of S's is the mean of directions.

One S serves all blocks and slots. It works for tasks that choose among the same few labels (kind `choice`).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, log_softmax

from h2tune.core.anchors import vocabulary
from h2tune.core.glossary import fit_readers
from h2tune.core.slots import input_kind
from h2tune.core.wordcodes import WordCodes
from h2tune.methods.base import MethodError
from h2tune.seeds import derive
from h2tune.tasks.prompts import Encoded, encode
from h2tune.training.batches import collate
from h2tune.training.updates import Group

if TYPE_CHECKING:
    from h2tune.methods.h2tune import H2TuneClient
    from h2tune.methods.h2tune_settings import H2TuneSettings

SLOTS = ("o", "up", "down")  # where the core acts unless the settings name others
FITTED, BATCH, SHARPNESS, BIAS = 1500, 48, 3.0, 0.3
READING, FORMAT = 2.0, 0.3  # weights of the losses beside obeying


@dataclass
class Pool:
    """Practice texts as a model reads them.

    Attributes:
        rows: for each label, each text's prompt with that label as the answer.
        asked: index of the first answer token in each text's rows. first: its id for each label.
        places: for each text the last tokens of its known words, and the words' numbers.
        features: texts x rank.
    """

    prompts: list[str]
    rows: list[list[Encoded]]
    asked: list[int]
    first: list[int]
    places: list[tuple[list[int], list[int]]]
    features: Tensor


def practise_words(method: H2TuneClient) -> None:
    """Set the client's A and B, and the private LoRA, to practised frames; what was practised once is kept."""
    client, settings = method.client, method.settings
    if client.task.kind != "choice":
        raise MethodError(
            f"{client.name}: frames: words needs a task that chooses among labels, not {client.task.kind}"
        )
    codes = client.word_codes(settings.codes)
    texts = practice_texts(client.anchors)
    options = options_of(method, texts[0])
    what = (client.resident.fingerprint, client.rank, settings.private, settings.practice_steps, settings.practice_rate,
            settings.text_column, core_slots(settings), client.config.max_length, options, len(codes.words), float(codes.codes.sum()), texts)  # fmt: skip
    key = hashlib.sha256(repr(what).encode()).hexdigest()[:16]
    kept = client.residents.kept(f"words-{key}", lambda: _practised(method, codes, texts, options))
    with torch.no_grad():
        for index, parameter in enumerate(method.factors):
            parameter.copy_(kept[str(index)])


def practice_texts(sentences: list[str], seed: int = 0) -> list[str]:
    """The public sentences, bags of their words, and pairs of them: new company for every word."""
    rng = random.Random(seed)
    counts = vocabulary(sentences)
    # Added up once: thousands of words would be added up again for every bag.
    known, weights = list(counts), list(accumulate(count**0.5 for count in counts.values()))
    sizes = (rng.randint(2, 14) for _ in range(int(1.3 * len(sentences))))
    bags = [" ".join(rng.choices(known, cum_weights=weights, k=size)) for size in sizes]
    pairs = [" ".join(rng.sample(sentences, 2)) for _ in range(int(0.8 * len(sentences)))]
    texts = [*sentences, *bags, *pairs]
    rng.shuffle(texts)
    return texts


def core_slots(settings: H2TuneSettings) -> tuple[str, ...]:
    """Where the core acts."""
    return tuple(settings.slots or SLOTS)


def options_of(method: H2TuneClient, text: str) -> tuple[str, ...]:
    """The labels, as the task writes them."""
    return method.client.task.ask({method.settings.text_column: text}).options


def _practised(
    method: H2TuneClient, codes: WordCodes, texts: list[str], options: tuple[str, ...]
) -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(derive(0, "words"))
        pool = _pool(method, codes, texts, options)
        _fit(method, codes, pool)
        _practise(method, codes, pool)
    return {str(index): parameter.detach().clone() for index, parameter in enumerate(method.factors)}


def _pool(method: H2TuneClient, codes: WordCodes, texts: list[str], options: tuple[str, ...]) -> Pool:
    client = method.client
    longest = client.config.max_length or client.resident.context
    asked = [client.task.ask({method.settings.text_column: text}) for text in texts]
    rows = [
        encode([replace(e, answer=o, options=()) for e in asked], client.tokenizer, max_length=longest, truncate=True)
        for o in options
    ]
    borders = [next(i for i, label in enumerate(row.labels) if label != -100) for row in rows[0]]
    first = [row[0].labels[borders[0]] for row in rows]
    if len(set(first)) < len(first):
        raise MethodError(f"{client.name}: frames: words needs labels that begin with different tokens: {options}")
    encoded = client.tokenizer([e.prompt for e in asked], add_special_tokens=False, return_offsets_mapping=True)
    places: list[tuple[list[int], list[int]]] = []
    for example, text, border, ids, offsets in zip(
        asked, texts, borders, encoded["input_ids"], encoded["offset_mapping"], strict=True
    ):
        shift = border - len(ids)  # tokens before the prompt; negative where the text was cut
        ends = {end: i + shift for i, (_, end) in enumerate(offsets)}
        start = example.prompt.find(text)
        found = [(ends[start + end], word) for word, end in codes.known(text) if start + end in ends]
        found = [(place, word) for place, word in found if place >= 0] if shift >= 0 and start >= 0 else []
        places.append(([place for place, _ in found], [word for _, word in found]))
    return Pool([e.prompt for e in asked], rows, borders, first, places, codes.features(texts))


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


def _fit(method: H2TuneClient, codes: WordCodes, pool: Pool) -> None:
    """A reads the codes as well as one linear map can; B gets small random columns for the labels."""
    client, name = method.client, method.client.name
    resident, rank = client.resident, method.shared_rank
    table = {word: codes.codes[i] for word, i in codes.index.items()}
    fits = [p for p in pool.prompts[:FITTED] if len(client.tokenizer(p)["input_ids"]) <= resident.context]
    with resident.peft.disable_adapter():
        readers = fit_readers(
            resident.model, client.tokenizer, client.layout, fits, table, resident.context, resident.causal
        )
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
    name, rank = method.client.name, method.shared_rank
    with ExitStack() as stack:
        for block, slot, layer in _cores(method):

            def add(module: Any, args: tuple, out: Tensor, block: int = block, slot: str = slot) -> Tensor:
                u = linear(args[0], module.trilora_A[name][:rank])
                read(block, slot, u)
                return out + torch.einsum("btr,bcr->btc", u, w) @ module.trilora_B[name][:, : w.shape[1]].T

            stack.callback(layer.register_forward_hook(add).remove)
        yield


def _practise(method: H2TuneClient, codes: WordCodes, pool: Pool) -> None:
    client, settings, labels = method.client, method.settings, len(pool.first)
    schedule = client.training.model_copy(update={"schedule": "cosine", "warmup": 0.02})
    for parameter in method.factors:
        parameter.requires_grad_(True)
    for leaf in method.leaves:
        leaf.requires_grad_(False)
    group = Group(method.factors, settings.practice_rate, settings.practice_steps, schedule, client.accelerator)
    client.resident.activate(client.name).train()
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


def _loss(method: H2TuneClient, codes: WordCodes, pool: Pool, chosen: list[int], w: Tensor) -> Tensor:
    """Obeying + `READING` x reading + `FORMAT` x writing the answer out."""
    client = method.client
    device = client.accelerator.device
    says = torch.einsum("br,bcr->bc", pool.features[chosen], w)
    wanted = torch.softmax(SHARPNESS * torch.cat([torch.zeros(len(chosen), 1), says], dim=1), dim=1)
    answers = torch.multinomial(wanted, 1)[:, 0].tolist()
    batch = collate([pool.rows[c][i] for c, i in zip(answers, chosen, strict=True)], client.tokenizer.pad_token_id)
    places = [(row, place, word) for row, i in enumerate(chosen) for place, word in zip(*pool.places[i], strict=True)]
    at, token, words = (
        torch.tensor(part, dtype=torch.long) for part in (zip(*places, strict=True) if places else ((), (), ()))
    )
    target = codes.codes[words].to(device)
    unread: list[Tensor] = []

    def read(block: int, slot: str, u: Tensor) -> None:
        # The attention output mixes words, and early blocks have not read them to the end.
        if len(places) and slot != "o" and block >= client.layout.depth // 2:
            unread.append((u[at, token] - target).square().mean() / target.square().mean())

    with written(method, w.to(device), read):
        logits = client.resident.peft(**{k: v.to(device) for k, v in batch.items() if k != "labels"}).logits.float()
    rows = torch.arange(len(chosen))
    border = torch.tensor([pool.asked[i] for i in chosen])
    said = log_softmax(logits[rows, border - 1][:, pool.first], dim=1)
    loss = -(wanted.to(device) * said).sum(1).mean()
    asked = batch["labels"][:, 1:] != -100
    loss = loss + FORMAT * cross_entropy(logits[:, :-1][asked], batch["labels"][:, 1:][asked].to(device))
    return loss + READING * torch.stack(unread).mean() if unread else loss
