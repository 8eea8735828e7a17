"""How the small models that ship with the package were made.

Run as: python -m h2tune.zoo.pretrain llama --books children/train.txt --out weights/llama
Stopped at any moment, the same command goes on from the last checkpoint.

Every model has its own tokenizer, trained on its own sample, and its own books, so that a federation of
them is heterogeneous in the ways that real ones are: family, width, depth, vocabulary, past.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from h2tune.zoo.corpus import generate

SPECIAL = ["<pad>", "<eos>", "<unk>"]
BOOK_SEPARATOR = "<|endoftext|>"


@dataclass(frozen=True)
class Recipe:
    """One zoo model: its architecture, its tokenizer and how long it is trained."""

    name: str
    config: PretrainedConfig
    tokenizer: str
    vocab_size: int
    seed: int
    books: slice
    tokens: int = 18_000_000
    learning_rate: float = 4e-3
    batch_tokens: int = 8192


_IDS: dict[str, Any] = dict(
    pad_token_id=0, eos_token_id=1, bos_token_id=1, max_position_embeddings=512, tie_word_embeddings=True
)
RECIPES = {
    "llama": Recipe(
        "llama",
        LlamaConfig(vocab_size=1536, hidden_size=96, intermediate_size=256, num_hidden_layers=5,
                    num_attention_heads=6, num_key_value_heads=2, **_IDS),
        "metaspace", 1536, 1, slice(0, None, 1),
    ),  # fmt: skip
    "gpt2": Recipe(
        "gpt2",
        GPT2Config(vocab_size=1280, n_embd=112, n_layer=4, n_head=4, n_positions=512, n_inner=448,
                   resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, pad_token_id=0, eos_token_id=1, bos_token_id=1),
        "bytes", 1280, 2, slice(0, None, 2),
    ),  # fmt: skip
    "qwen": Recipe(
        "qwen",
        Qwen3Config(vocab_size=2048, hidden_size=128, intermediate_size=320, num_hidden_layers=3,
                    num_attention_heads=4, num_key_value_heads=2, head_dim=32, **_IDS),
        "unigram", 2048, 3, slice(1, None, 2),
    ),  # fmt: skip
}  # fmt: skip


def build_tokenizer(kind: str, vocab_size: int, texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a tokenizer of one of three kinds on ``texts``; numbers are always split into digits."""
    digits = pre_tokenizers.Digits(individual_digits=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer: trainers.Trainer
    if kind == "metaspace":
        tok = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
        lines = pre_tokenizers.Split("\n", "isolated")
        tok.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Metaspace(), lines, pre_tokenizers.Punctuation(), digits]
        )
        tok.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
        special = [*SPECIAL, *(f"<0x{i:02X}>" for i in range(256))]
        trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, limit_alphabet=120)
    elif kind == "bytes":
        tok = Tokenizer(models.BPE())
        tok.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        tok.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=SPECIAL, initial_alphabet=alphabet)
    else:
        tok = Tokenizer(models.Unigram())
        tok.normalizer = normalizers.NFKC()
        tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(add_prefix_space=False), digits])
        tok.decoder = decoders.ByteLevel()
        trainer = trainers.UnigramTrainer(
            vocab_size=vocab_size, special_tokens=SPECIAL, unk_token="<unk>", initial_alphabet=alphabet
        )
    tok.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tok, pad_token="<pad>", eos_token="<eos>", bos_token="<eos>", unk_token="<unk>",
        model_max_length=512, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def paragraphs(path: Path, books: slice) -> list[str]:
    """Pieces of a few hundred characters, from every ``books`` of the file."""
    pieces = []
    for book in path.read_text(encoding="utf-8").split(BOOK_SEPARATOR)[books]:
        piece = ""
        for paragraph in book.split("\n\n"):
            piece += paragraph.strip() + "\n"
            if len(piece) > 900:
                pieces.append(piece)
                piece = ""
    return pieces


def _encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """All ``texts`` as one array of ids, each closed by the end token, and where each starts."""
    ids: list[np.ndarray] = []
    for start in range(0, len(texts), 2000):
        for row in tokenizer(texts[start : start + 2000])["input_ids"]:
            ids.append(np.array([*row, tokenizer.eos_token_id], dtype=np.uint16))
    starts = np.cumsum([0, *(len(r) for r in ids[:-1])])
    return np.concatenate(ids), starts


class Mixture:
    """Batches of rows that start where a document starts: half books, half generated text."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, books: Path) -> None:
        pieces = paragraphs(books, recipe.books)
        made = list(itertools.islice(generate(recipe.seed), 260_000))
        self.parts = [_encode(tokenizer, pieces), _encode(tokenizer, made)]
        self.recipe = recipe

    def batch(self, step: int, length: int) -> torch.Tensor:
        rng = random.Random(self.recipe.seed * 1_000_003 + step)
        rows = []
        for i in range(self.recipe.batch_tokens // length):
            ids, starts = self.parts[i % 2]
            at = min(int(starts[rng.randrange(len(starts))]), len(ids) - length)
            rows.append(ids[at : at + length].astype(np.int64))
        return torch.from_numpy(np.stack(rows))


def _learning_rate(step: int, steps: int, peak: float) -> float:
    warmup = min(150, steps // 10)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))))


def _optimiser(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW that decays matrices, not norms and biases."""
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95))


def _save(checkpoint: Path, model: nn.Module, optimiser: torch.optim.Optimizer, step: int) -> None:
    partial = checkpoint.with_suffix(".partial")
    torch.save({"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step}, partial)
    os.replace(partial, checkpoint)


def _restore(checkpoint: Path, model: nn.Module, optimiser: torch.optim.Optimizer) -> int:
    """The number of steps that were done before, 0 without a checkpoint."""
    if not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, weights_only=True)
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"])


def pretrain(recipe: Recipe, books: Path, out: Path) -> None:
    """Train one model and leave weights, tokenizer and log in ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sample = paragraphs(books, recipe.books)
    random.Random(recipe.seed).shuffle(sample)
    tokenizer = build_tokenizer(
        recipe.tokenizer,
        recipe.vocab_size,
        sample[:3000] + list(itertools.islice(generate(recipe.seed + 100), 12_000)),
    )
    recipe.config.vocab_size = len(tokenizer)
    tokenizer.save_pretrained(out)
    model = AutoModelForCausalLM.from_config(recipe.config).to(device)
    size = sum(p.numel() for p in model.parameters())
    steps = recipe.tokens // recipe.batch_tokens
    print(
        f"{recipe.name}: {size:,} parameters, vocabulary {len(tokenizer)}, {steps} steps, {recipe.tokens / size:.0f} tokens per parameter"
    )

    data = Mixture(tokenizer, recipe, books)
    optimiser, checkpoint = _optimiser(model), out / "checkpoint.pt"
    begin = time.time()
    for step in range(_restore(checkpoint, model, optimiser), steps):
        # The last tenth sees the full context, so that every position is trained.
        rows = data.batch(step, 512 if step >= 0.9 * steps else 256).to(device)
        for group in optimiser.param_groups:
            group["lr"] = _learning_rate(step, steps, recipe.learning_rate)
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        if step % 50 == 0:
            print(f"{step} loss {loss.item():.3f} {time.time() - begin:.0f} s", flush=True)
        if step % 200 == 199:
            _save(checkpoint, model, optimiser, step + 1)
    model.to(torch.float16).save_pretrained(out)
    facts = {"parameters": size, "tokens": steps * recipe.batch_tokens, "steps": steps, "seed": recipe.seed}
    (out / "pretraining.json").write_text(json.dumps(facts, indent=2) + "\n")
    checkpoint.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=sorted(RECIPES))
    parser.add_argument("--books", type=Path, required=True, help="plain text, books separated by <|endoftext|>")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    pretrain(RECIPES[args.model], args.books, args.out)


if __name__ == "__main__":
    main()
