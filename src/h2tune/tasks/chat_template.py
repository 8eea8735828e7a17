"""What a tokenizer's chat template writes: the prompt of a chat, and how an assistant's turn ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from h2tune.tasks.example import Example, TaskError

_MARK = "answer7319"


def has_chat_template(tokenizer: Any) -> bool:
    """Whether the tokenizer brings a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def render_chat(example: Example, tokenizer: Any) -> str:
    """The prompt of a chat, through the template.

    Raises:
        TaskError: naming the row, with the template's own words.
    """
    turns = list(example.messages or ())
    opened = turns[-1]["role"] == "assistant" if turns else False
    return _apply(turns, tokenizer, example, not opened)


def _apply(turns: Sequence[dict[str, Any]], tokenizer: Any, example: Example | None, ask: bool) -> str:
    options = {"tools": list(example.tools)} if example is not None and example.tools else {}
    try:
        return str(tokenizer.apply_chat_template(list(turns), add_generation_prompt=ask, tokenize=False, **options))
    except Exception as error:  # noqa: BLE001 - a template is a program of the model's authors and may raise anything
        roles = ", ".join(dict.fromkeys(str(turn["role"]) for turn in turns))
        place = f"{example.place}: " if example is not None and example.place else ""
        said = str(error).strip().split("\n")[0][:200] or type(error).__name__
        raise TaskError(
            f"{place}the model's chat template refuses this chat (turns of {roles}): {said};"
            " change or leave out that turn"
        ) from None


def answer_of_turn(example: Example, answer: str, tokenizer: Any) -> tuple[str, bool]:
    """An assistant's answer as the template writes it up to the token that ends the turn, and whether there is one."""
    turns = list(example.messages or ())
    prompt = render_chat(example, tokenizer)
    try:
        whole = _apply([*turns, {"role": "assistant", "content": answer}], tokenizer, example, False)
    except TaskError:
        whole = ""  # templates that know only one order of turns may refuse what they have asked for
    rest = whole[len(prompt) :] if whole.startswith(prompt) else ""
    for written in (answer, answer.strip()):
        if written and rest.startswith(written):
            end = _first_token(rest[len(written) :], tokenizer)
            return written + (end or ""), end is not None
    end = turn_end(tokenizer)
    return answer + (end or ""), end is not None


def turn_end(tokenizer: Any) -> str | None:
    """What the template writes after an assistant's text, up to its first added token; None if it adds none."""
    if not has_chat_template(tokenizer):
        return None
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _MARK}]
    try:
        after = _apply(turns, tokenizer, None, False).rpartition(_MARK)[2]
    except TaskError:
        return None
    return _first_token(after, tokenizer)


def _first_token(text: str, tokenizer: Any) -> str | None:
    """The text up to and with the first token that the tokenizer holds whole (``<|im_end|>``); None if there is none."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()} | set(tokenizer.all_special_tokens)
    found = [(start, token) for token in added if token.strip() and (start := text.find(token)) >= 0]
    if not found:
        return None
    start, token = min(found, key=lambda item: (item[0], -len(item[1])))
    return text[: start + len(token)]


def stop_tokens(tokenizer: Any, generation_config: Any = None) -> list[int]:
    """Ids that end an answer: the model's own, the tokenizer's, and the one that ends a turn of its template."""
    own = getattr(generation_config, "eos_token_id", None)
    ids = list(own) if isinstance(own, list | tuple) else [own]
    ids.append(tokenizer.eos_token_id)
    if end := turn_end(tokenizer):
        ids.append(tokenizer(end, add_special_tokens=False)["input_ids"][-1])
    return list(dict.fromkeys(int(token) for token in ids if token is not None))
