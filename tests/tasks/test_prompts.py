"""Prompts as tokens: the same in training and in use, answers learnt to their end."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from h2tune.tasks import TaskError, prompts
from h2tune.tasks.example import Example
from h2tune.tasks.prompts import encode, encode_options, encode_prompts, fit_prompts, render

TEXT = ["Question: how many nuts now?\nAnswer: 11", "the answer is 12", "abcdefghijklmnopqrstuvwxyz 0123456789"]
TEMPLATE = "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>{% endfor %}<s>assistant{{ '\n' }}"


@functools.cache
def tokenizer(kind: str = "bytes", *, bos: bool = False, template: bool = False) -> Any:
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(unk_token=None if kind == "bytes" else "<unk>"))
    if kind == "bytes":
        core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    else:
        core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    alphabet = pre_tokenizers.ByteLevel.alphabet() if kind == "bytes" else []
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    core.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    )
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>" if kind == "encoder" else "<s> $A", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    made.chat_template = TEMPLATE if template else None
    return made


EXAMPLE = Example("Question: how many nuts now?\nAnswer:", " 11", "11")
CHAT = Example("user: hi\nassistant:", " hello", "hello", messages=({"role": "user", "content": "hi"},))


@pytest.mark.parametrize("kind", ["bytes", "metaspace", "encoder"])
@pytest.mark.parametrize("bos", [False, True])
def test_row_21_the_prompt_is_the_same_in_training_and_in_use(kind: str, bos: bool) -> None:
    tok = tokenizer(kind, bos=bos)
    (encoded,), (prompt,) = encode([EXAMPLE], tok, max_length=100), encode_prompts([EXAMPLE], tok)
    assert list(encoded.input_ids[: len(prompt)]) == prompt
    assert list(encoded.labels[: len(prompt)]) == [-100] * len(prompt)
    assert encoded.labels[len(prompt) :] == encoded.input_ids[len(prompt) :]
    assert encoded.input_ids[-1] == tok.eos_token_id and encoded.labels[-1] == tok.eos_token_id
    assert prompt.count(tok.bos_token_id) == int(bos) and tok.eos_token_id not in prompt
    assert tok.decode(encoded.labels[len(prompt) : -1]).strip() == "11"


@settings(max_examples=50, deadline=None)
@given(st.text(min_size=1, max_size=40), st.text(min_size=1, max_size=20))
def test_answers_come_back_and_borders_hold(prompt: str, answer: str) -> None:
    tok = tokenizer(bos=True)
    example = Example(prompt, " " + answer, answer)
    (encoded,), (own,) = encode([example], tok, max_length=1000), encode_prompts([example], tok)
    assert list(encoded.input_ids[: len(own)]) == own
    assert len(encoded.labels) == len(encoded.input_ids)
    learnt = [label for label in encoded.labels if label != -100]
    assert learnt[-1] == tok.eos_token_id
    if not any(special in prompt + answer for special in ("<s>", "</s>", "<pad>", "<unk>")):
        assert tok.decode(learnt[:-1], clean_up_tokenization_spaces=False) == " " + answer


def test_too_long_says_how_many() -> None:
    examples = [EXAMPLE, Example("a" * 400 + " end:", " 11", "11")]
    with pytest.raises(TaskError, match=r"1 of 2 examples are longer than 50 tokens \(the longest has \d+\)"):
        encode(examples, tokenizer(), max_length=50)
    placed = [EXAMPLE, replace(examples[1], place="a.jsonl: row 7")]
    with pytest.raises(TaskError, match=r"the longest has \d+, first a.jsonl: row 7\); shorten them"):
        encode(placed, tokenizer(), max_length=50)


def test_cutting_takes_the_beginning_of_the_prompt() -> None:
    tok = tokenizer(bos=True)
    long = Example("a" * 400 + " end:", " 11", "11")
    (cut,), (full,) = encode([long], tok, max_length=20, truncate=True), encode([long], tok, max_length=999)
    assert len(cut.input_ids) == len(cut.labels) == 20
    assert cut.input_ids[0] == tok.bos_token_id and cut.input_ids[1:] == full.input_ids[-19:]
    (prompt,), count = fit_prompts(encode_prompts([long], tok), tok, context=12, new_tokens=2)
    assert (
        len(prompt) == 10
        and count == 1
        and prompt[0] == tok.bos_token_id
        and prompt[1:] == list(cut.input_ids[: cut.labels.count(-100)][-9:])
    )


def test_an_answer_that_does_not_fit_alone_loses_its_end_but_stops() -> None:
    tok = tokenizer()
    (cut,) = encode([Example("q:", " " + "z" * 99, "z")], tok, max_length=8, truncate=True)
    assert len(cut.input_ids) == 8 and cut.labels == cut.input_ids and cut.labels[-1] == tok.eos_token_id


def test_classification_keeps_the_special_tokens() -> None:
    tok = tokenizer("encoder", bos=True)
    long = Example("nuts " * 50, "", "yes", label=1)
    (whole,) = encode([Example("how many", "", "no", label=0)], tok, max_length=50)
    assert whole.label == 0 and not whole.labels and list(whole.input_ids) == tok("how many")["input_ids"]
    (cut,) = encode([long], tok, max_length=12, truncate=True)
    assert len(cut.input_ids) == 12 and cut.label == 1
    assert cut.input_ids[0] == tok.bos_token_id and cut.input_ids[-1] == tok.eos_token_id


def test_options_are_encoded_as_answers() -> None:
    example = Example("q:", " 7", "7", (" 7", " 12", " 60"))
    ((seven, twelve, sixty),) = encode_options([example], tokenizer(), max_length=50)
    assert seven == encode([example], tokenizer(), max_length=50)[0]
    assert twelve.input_ids[:2] == seven.input_ids[:2] and twelve.input_ids != sixty.input_ids


def test_chats_with_and_without_a_template() -> None:
    plain, chatty = tokenizer(bos=True), tokenizer(bos=True, template=True)
    assert render(CHAT, plain) == "user: hi\nassistant:"
    assert render(CHAT, chatty) == "<s>user\nhi</s><s>assistant\n"
    assert render(EXAMPLE, chatty) == EXAMPLE.prompt
    (encoded,), (prompt,) = encode([CHAT], chatty, max_length=99), encode_prompts([CHAT], chatty)
    # The template writes the beginning itself, and the answer follows its header without a space.
    assert prompt[0] == chatty.bos_token_id and prompt[1] != chatty.bos_token_id
    assert chatty.decode(encoded.input_ids[len(prompt) :]) == "hello</s>"
    (encoded,) = encode([CHAT], plain, max_length=99)
    assert plain.decode(encoded.input_ids) == "<s>user: hi\nassistant: hello</s>"


def test_a_tokenizer_without_an_end_is_an_error() -> None:
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer().backend_tokenizer)
    with pytest.raises(TaskError, match="end-of-text"):
        encode([EXAMPLE], bare, max_length=50)
    assert encode([Example("x", "", "no", label=0)], bare, max_length=50)[0].label == 0


def test_many_rows_become_tokens_in_parts_and_are_kept_small(monkeypatch: pytest.MonkeyPatch) -> None:
    tok, longest = tokenizer(), Example("a" * 400 + " end:", " 11", "11", place="a.jsonl: row 7")
    mixed = [EXAMPLE, Example("how many", "", "no", label=0), CHAT, longest, EXAMPLE, replace(EXAMPLE, answer=" 7")]
    whole, own = encode(mixed, tok, max_length=999), encode_prompts(mixed, tok)
    sizes: list[int] = []

    def counted(texts: Any, **options: Any) -> Any:
        sizes.append(len(texts) if isinstance(texts, list) else 1)
        return tok(texts, **options)

    class Watched:
        all_special_ids, eos_token_id, chat_template = tok.all_special_ids, tok.eos_token_id, None
        __call__ = staticmethod(counted)

    watched = Watched()
    monkeypatch.setattr(prompts, "_AT_ONCE", 2)
    assert encode(mixed, watched, max_length=999) == whole and encode_prompts(mixed, watched) == own
    assert max(sizes) == 2
    with pytest.raises(TaskError, match=r"1 of 6 examples are longer than 50 .*, first a.jsonl: row 7\)"):
        encode(mixed, watched, max_length=50)
    assert all(memoryview(row.input_ids).itemsize == 4 for row in whole)  # type: ignore[arg-type]
