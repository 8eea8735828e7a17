"""From examples to tokens: the same tokens of a prompt in training, in generation and in comparing options."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from h2tune.tasks.chat_template import answer_of_turn, has_chat_template, render_chat
from h2tune.tasks.example import Example, TaskError

IGNORED = -100
_AT_ONCE = 1000  # texts that a tokenizer is given: what it makes beside the tokens takes 200 bytes for each of them


@dataclass(frozen=True)
class Encoded:
    """One example as tokens; `encode` makes arrays, where a token takes 4 bytes and not 36 as in a list.

    input_ids: prompt, answer and end of text; for ``classify`` the text with the tokenizer's own special tokens.
    labels: as long as input_ids, -100 on the prompt; empty for ``classify``.
    label: the class, for ``classify``.
    """

    input_ids: Sequence[int]
    labels: Sequence[int]
    label: int | None = None


def templated(example: Example, tokenizer: Any) -> bool:
    """Whether an example is a chat that goes through the tokenizer's chat template."""
    return example.messages is not None and has_chat_template(tokenizer)


def render(example: Example, tokenizer: Any) -> str:
    """The text of the prompt: through the chat template where the row was a chat and there is a template.

    Raises:
        TaskError: naming the row, if the template refuses the chat.
    """
    return render_chat(example, tokenizer) if templated(example, tokenizer) else example.prompt


def encode(examples: Sequence[Example], tokenizer: Any, *, max_length: int, truncate: bool = False) -> list[Encoded]:
    """Training examples as tokens, at most ``max_length`` each.

    With ``truncate`` a longer prompt loses its beginning (special tokens at its start stay), and only an answer that
    does not fit alone loses its end.

    Raises:
        TaskError: if an example is longer and ``truncate`` is false, or its text gives no tokens.
    """
    special = frozenset(tokenizer.all_special_ids)
    rows: list[Encoded] = []
    lengths: list[int] = []
    for start in range(0, len(examples), _AT_ONCE):
        part = examples[start : start + _AT_ONCE]
        pairs = _tokens(part, tokenizer)
        lengths += [len(prompt) + len(answer) for prompt, answer in pairs]
        rows += [_join(*pair, e.label, max_length, special) for pair, e in zip(pairs, part, strict=True)]
    if not truncate:
        _check_lengths(examples, lengths, max_length)
    return rows


def _tokens(examples: Sequence[Example], tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    """Of each example the tokens before the answer, and those of the answer."""
    texts = [i for i, example in enumerate(examples) if not example.answer]
    pairs = [i for i, example in enumerate(examples) if example.answer]
    done: dict[int, tuple[list[int], list[int]]] = {i: (ids, []) for i, ids in _texts(examples, texts, tokenizer)}
    done.update(_pairs(examples, pairs, tokenizer))
    return [done[i] for i in range(len(examples))]


def encode_prompts(examples: Sequence[Example], tokenizer: Any) -> list[list[int]]:
    """The prompts alone, for generation: the very tokens that ``encode`` puts before the answers.

    Raises:
        TaskError: naming a row whose prompt gives no token.
    """
    start = _start(tokenizer)
    ids = _plain([render(example, tokenizer) for example in examples], tokenizer)
    # A chat template writes its own beginning of text.
    prompts = [own if templated(e, tokenizer) else start + own for e, own in zip(examples, ids, strict=True)]
    _require_tokens(examples, prompts)
    return prompts


def encode_options(
    examples: Sequence[Example], tokenizer: Any, *, max_length: int, truncate: bool = False
) -> list[list[Encoded]]:
    """For every example its options, each encoded as if it were the answer."""
    flat = [replace(example, answer=option) for example in examples for option in example.options]
    encoded = iter(encode(flat, tokenizer, max_length=max_length, truncate=truncate))
    return [[next(encoded) for _ in example.options] for example in examples]


def fit_prompts(
    prompts: Sequence[list[int]], tokenizer: Any, *, context: int, new_tokens: int
) -> tuple[list[list[int]], int]:
    """Prompts that leave room for an answer, and how many were cut for it.

    Each row by itself, whatever stands beside it: room for ``new_tokens``, but no more than a quarter of the context.
    """
    room = max(1, context - min(new_tokens, max(1, context // 4)))
    special = frozenset(tokenizer.all_special_ids)
    return [cut_left(ids, room, special) for ids in prompts], sum(len(ids) > room for ids in prompts)


def _plain(texts: list[str], tokenizer: Any) -> list[list[int]]:
    parts = (texts[start : start + _AT_ONCE] for start in range(0, len(texts), _AT_ONCE))
    return [ids for part in parts for ids in tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]]


def _start(tokenizer: Any) -> list[int]:
    """The special tokens that the tokenizer puts before a text."""
    plain, full = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    return full[: full.index(plain[0])] if plain and plain[0] in full else []


def _texts(examples: Sequence[Example], where: list[int], tokenizer: Any) -> list[tuple[int, list[int]]]:
    found = []
    for through in (True, False):
        part = [i for i in where if templated(examples[i], tokenizer) is through]
        texts = [render(examples[i], tokenizer) for i in part]
        if texts:
            ids = tokenizer(texts, verbose=False, add_special_tokens=not through)["input_ids"]
            _require_tokens([examples[i] for i in part], ids)
            found += list(zip(part, ids, strict=True))
    return found


def _require_tokens(examples: Sequence[Example], rows: Sequence[list[int]]) -> None:
    for example, ids in zip(examples, rows, strict=True):
        if not ids:
            raise TaskError(f"{example.place or 'a row'}: the tokenizer makes no token of {example.prompt[:40]!r}")


def _pairs(examples: Sequence[Example], where: list[int], tokenizer: Any) -> dict[int, tuple[list[int], list[int]]]:
    if not where:
        return {}
    chosen = [examples[i] for i in where]
    prompts = encode_prompts(chosen, tokenizer)
    answers = [_answer_text(example, tokenizer) for example in chosen]
    joint = _plain([render(e, tokenizer) + text for e, (text, _) in zip(chosen, answers, strict=True)], tokenizer)
    alone = _plain([text for text, _ in answers], tokenizer)
    start = len(_start(tokenizer))
    pairs = {}
    for i, example, prompt, both, answer, (_, ended) in zip(
        where, chosen, prompts, joint, alone, answers, strict=True
    ):
        own = prompt if templated(example, tokenizer) else prompt[start:]
        # Tokens of the whole text are the natural ones; where they blur the border, prompt and answer go separately.
        natural = both[: len(own)] == own and len(both) > len(own)
        pairs[i] = (prompt, (both[len(own) :] if natural else answer) + ([] if ended else [_end(tokenizer)]))
    return pairs


def _answer_text(example: Example, tokenizer: Any) -> tuple[str, bool]:
    """The answer as it follows the prompt, and whether the template has ended it."""
    if templated(example, tokenizer):
        # After a template's header line the answer follows at once; the space belongs to plain prompts.
        return answer_of_turn(example, example.answer.removeprefix(" "), tokenizer)
    return example.answer, False


def _end(tokenizer: Any) -> int:
    if tokenizer.eos_token_id is None:
        raise TaskError("the tokenizer has no end-of-text token, so an answer could not end")
    return int(tokenizer.eos_token_id)


def _check_lengths(examples: Sequence[Example], lengths: list[int], max_length: int) -> None:
    long = [i for i, length in enumerate(lengths) if length > max_length]
    if not long:
        return
    first = f", first {examples[long[0]].place}" if examples[long[0]].place else ""
    raise TaskError(
        f"{len(long)} of {len(lengths)} examples are longer than {max_length} tokens (the longest has {max(lengths)}"
        f"{first}); shorten them, or allow cutting with truncate: true"
    )


def _join(
    prompt: list[int], answer: list[int], label: int | None, max_length: int, special: frozenset[int]
) -> Encoded:
    if len(answer) > max_length:
        # The end of text is learnt even then.
        answer = answer[: max_length - 1] + answer[-1:]
    prompt = cut_left(prompt, max_length - len(answer), special)
    labels = [IGNORED] * len(prompt) + answer if answer else []
    return Encoded(array("i", prompt + answer), array("i", labels), label)


def cut_left(ids: list[int], room: int, special: frozenset[int]) -> list[int]:
    """The last ``room`` tokens, but with the special tokens that the text began with."""
    if len(ids) <= room:
        return ids
    kept = 0
    while kept < min(len(ids), room) and ids[kept] in special:
        kept += 1
    return ids[:kept] + ids[len(ids) - (room - kept) :]
