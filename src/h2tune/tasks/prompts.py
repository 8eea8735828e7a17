"""From examples to tokens: the same tokens of a prompt in training, in generation and in comparing options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from h2tune.tasks.example import Example, TaskError

IGNORED = -100


@dataclass(frozen=True)
class Encoded:
    """One example as tokens.

    input_ids: prompt, answer and end of text; for ``classify`` the text with the tokenizer's own special tokens.
    labels: as long as input_ids, -100 on the prompt; empty for ``classify``.
    label: the class, for ``classify``.
    """

    input_ids: list[int]
    labels: list[int]
    label: int | None = None


def has_chat_template(tokenizer: Any) -> bool:
    """Whether the tokenizer brings a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def render(example: Example, tokenizer: Any) -> str:
    """The text of the prompt: through the chat template where the row was a chat and there is a template."""
    if example.messages and has_chat_template(tokenizer):
        return tokenizer.apply_chat_template(list(example.messages), add_generation_prompt=True, tokenize=False)
    return example.prompt


def encode(examples: Sequence[Example], tokenizer: Any, *, max_length: int, truncate: bool = False) -> list[Encoded]:
    """Training examples as tokens, at most ``max_length`` each.

    Longer ones raise ``TaskError`` unless ``truncate``: then the prompt loses its beginning (special tokens at
    its start stay), and only an answer that does not fit alone loses its end.
    """
    texts = [i for i, example in enumerate(examples) if not example.answer]
    pairs = [i for i, example in enumerate(examples) if example.answer]
    done: dict[int, tuple[list[int], list[int]]] = {i: (ids, []) for i, ids in _texts(examples, texts, tokenizer)}
    done.update(_pairs(examples, pairs, tokenizer))
    lengths = [len(done[i][0]) + len(done[i][1]) for i in range(len(examples))]
    _check_lengths(lengths, max_length, truncate)
    special = set(tokenizer.all_special_ids)
    return [_join(*done[i], examples[i].label, max_length, special) for i in range(len(examples))]


def encode_prompts(
    examples: Sequence[Example], tokenizer: Any, *, max_length: int | None = None, truncate: bool = False
) -> list[list[int]]:
    """The prompts alone, for generation: the very tokens that ``encode`` puts before the answers.

    max_length: room for the prompt, that is the context of the model less the tokens to be generated.
    """
    prompts = _prompts(examples, tokenizer)
    if max_length is None:
        return prompts
    _check_lengths([len(ids) for ids in prompts], max_length, truncate)
    special = set(tokenizer.all_special_ids)
    return [_cut_left(ids, max_length, special) for ids in prompts]


def encode_options(
    examples: Sequence[Example], tokenizer: Any, *, max_length: int, truncate: bool = False
) -> list[list[Encoded]]:
    """For every example its options, each encoded as if it were the answer."""
    flat = [replace(example, answer=option) for example in examples for option in example.options]
    encoded = iter(encode(flat, tokenizer, max_length=max_length, truncate=truncate))
    return [[next(encoded) for _ in example.options] for example in examples]


def _plain(texts: list[str], tokenizer: Any) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []


def _start(tokenizer: Any) -> list[int]:
    """The special tokens that the tokenizer puts before a text."""
    plain, full = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    return full[: full.index(plain[0])] if plain and plain[0] in full else []


def _prompts(examples: Sequence[Example], tokenizer: Any) -> list[list[int]]:
    start = _start(tokenizer)
    template = has_chat_template(tokenizer)
    ids = _plain([render(example, tokenizer) for example in examples], tokenizer)
    # A chat template writes its own beginning of text.
    return [own if example.messages and template else start + own for example, own in zip(examples, ids, strict=True)]


def _texts(examples: Sequence[Example], where: list[int], tokenizer: Any) -> list[tuple[int, list[int]]]:
    texts = [render(examples[i], tokenizer) for i in where]
    return list(zip(where, tokenizer(texts, verbose=False)["input_ids"] if texts else [], strict=True))


def _pairs(examples: Sequence[Example], where: list[int], tokenizer: Any) -> dict[int, tuple[list[int], list[int]]]:
    if not where:
        return {}
    end = tokenizer.eos_token_id
    if end is None:
        raise TaskError("the tokenizer has no end-of-text token, so an answer could not end")
    chosen = [examples[i] for i in where]
    prompts = _prompts(chosen, tokenizer)
    answers = [_answer_text(example, tokenizer) for example in chosen]
    joint = _plain([render(e, tokenizer) + answer for e, answer in zip(chosen, answers, strict=True)], tokenizer)
    alone = _plain(answers, tokenizer)
    start = len(_start(tokenizer))
    pairs = {}
    for i, example, prompt, both, answer in zip(where, chosen, prompts, joint, alone, strict=True):
        own = prompt if example.messages and has_chat_template(tokenizer) else prompt[start:]
        # Tokens of the whole text are the natural ones; where they blur the border, prompt and answer go separately.
        natural = both[: len(own)] == own and len(both) > len(own)
        pairs[i] = (prompt, (both[len(own) :] if natural else answer) + [end])
    return pairs


def _answer_text(example: Example, tokenizer: Any) -> str:
    # After a template's header line the answer follows at once; the space belongs to plain prompts.
    return example.answer[1:] if example.messages and has_chat_template(tokenizer) else example.answer


def _check_lengths(lengths: list[int], max_length: int, truncate: bool) -> None:
    long = sum(length > max_length for length in lengths)
    if long and not truncate:
        raise TaskError(
            f"{long} of {len(lengths)} examples are longer than {max_length} tokens (the longest has {max(lengths)});"
            " shorten them, or allow cutting with truncate: true"
        )


def _join(prompt: list[int], answer: list[int], label: int | None, max_length: int, special: set[int]) -> Encoded:
    if len(answer) > max_length:
        # The end of text is learnt even then.
        answer = answer[: max_length - 1] + answer[-1:]
    prompt = _cut_left(prompt, max_length - len(answer), special)
    labels = [IGNORED] * len(prompt) + answer if answer else []
    return Encoded(prompt + answer, labels, label)


def _cut_left(ids: list[int], room: int, special: set[int]) -> list[int]:
    """The last ``room`` tokens, but with the special tokens that the text began with."""
    if len(ids) <= room:
        return ids
    kept = 0
    while kept < min(len(ids), room) and ids[kept] in special:
        kept += 1
    return ids[:kept] + ids[len(ids) - (room - kept) :]
