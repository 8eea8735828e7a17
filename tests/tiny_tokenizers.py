"""Tokenizers of four kinds, trained on a few lines: byte-level BPE, character BPE, Unigram and WordPiece."""

from __future__ import annotations

from functools import cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

LINES = [
    "The old farmer walked slowly to the market, and bought seven apples.",
    "Two ships left the harbour at noon; only one came back before winter.",
    "She counted the stars above the river until the morning light.",
    "A doctor wrote down what the patient said about the pain.",
    "Water boils at a lower temperature on a high mountain.",
    "He didn't know whether 3.5 litres would be enough for them.",
    "The children laughed when the small brown dog chased its tail.",
    "Every engine needs oil, air and a spark to start in the cold.",
]
_SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def _bytes() -> tuple[Tokenizer, Any]:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return made, trainers.BpeTrainer(
        vocab_size=340, initial_alphabet=alphabet, special_tokens=list(_SPECIAL.values()), show_progress=False
    )


def _characters() -> tuple[Tokenizer, Any]:
    """As small as the tiny models' vocabulary of 64."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made, trainers.BpeTrainer(
        vocab_size=64, special_tokens=["<pad>", "<s>", "</s>", "<unk>"], show_progress=False
    )


def _unigram() -> tuple[Tokenizer, Any]:
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    special = list(_SPECIAL.values())
    return made, trainers.UnigramTrainer(
        vocab_size=120, unk_token="<unk>", special_tokens=special, show_progress=False
    )


def _wordpiece() -> tuple[Tokenizer, Any]:
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return made, trainers.WordPieceTrainer(vocab_size=160, special_tokens=list(_SPECIAL.values()), show_progress=False)


_KINDS = {"bytes": _bytes, "characters": _characters, "unigram": _unigram, "wordpiece": _wordpiece}
KINDS = tuple(_KINDS)


@cache
def tokenizer(kind: str, special: bool = True) -> PreTrainedTokenizerFast:
    """A trained tokenizer; with ``special`` it puts ``<s>`` before and ``</s>`` after every text."""
    made, trainer = _KINDS[kind]()
    made.train_from_iterator(LINES * 4, trainer)
    if special:
        ends = [("<s>", made.token_to_id("<s>")), ("</s>", made.token_to_id("</s>"))]
        made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=512, **_SPECIAL)
