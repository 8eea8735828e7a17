"""Chats in their usual forms, as turns that a chat template takes: OpenAI's messages, ShareGPT's, lists of parts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from h2tune.tasks.cells import beginning, whole_text
from h2tune.tasks.example import Example, Row, RowError

Turn = dict[str, Any]
COLUMNS = ("messages", "conversations")
_SHAREGPT = {"human": "user", "gpt": "assistant", "observation": "tool"}


def is_chat(value: Any) -> bool:
    """Whether a cell is a list of turns, also as JSON text, as tables hold it."""
    value = _parsed(value)
    keys = ({"role", "content"}, {"role", "tool_calls"}, {"from", "value"})
    return (
        isinstance(value, list | tuple)
        and len(value) > 0
        and all(isinstance(turn, dict) and any(wanted <= turn.keys() for wanted in keys) for turn in value)
    )


def read_turns(value: Any, column: str) -> list[Turn]:
    """The turns of a cell, each with a role and a content that is text.

    Raises:
        RowError: naming the column and the turn.
    """
    value = _parsed(value)
    if not isinstance(value, list | tuple) or not value:
        raise RowError(f"column {column!r} is not a list of {{role, content}}")
    return [_turn(turn, f"column {column!r}: turn {number}") for number, turn in enumerate(value, 1)]


def _parsed(value: Any) -> Any:
    """A cell as a list where it is one in another form: a list as JSON text, an array; else as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value.tolist() if hasattr(value, "tolist") else value


def _turn(turn: Any, where: str) -> Turn:
    if not isinstance(turn, dict):
        raise RowError(f"{where} is {beginning(turn)}; write {{role: ..., content: ...}}")
    if "from" in turn and turn.get("role") is None:
        # Files that mix both forms hold null for role and content here.
        rest = {key: value for key, value in turn.items() if key not in ("from", "value", "role", "content")}
        said, role = turn.get("value"), turn["from"]
        role = _SHAREGPT.get(role, role) if isinstance(role, str) else role
        turn = {"role": role, "content": turn.get("content") if said is None else said} | rest
    role, calls = turn.get("role"), turn.get("tool_calls")
    if not isinstance(role, str):
        raise RowError(f"{where} needs a role and a content, both text")
    content = _content(turn.get("content"), where, empty=bool(calls))
    whole_text(content, where)
    # Arrow tables fill the keys that other turns have with nothing; a template must not meet them.
    rest = {key: value for key, value in turn.items() if key not in ("role", "content") and value is not None}
    return {"role": role, "content": content} | rest


def _content(value: Any, where: str, empty: bool) -> str:
    if isinstance(value, str):
        return value
    if value is None and empty:
        return ""  # a turn that only calls a tool
    if isinstance(value, list | tuple):
        parts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in value]
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) == len(parts):
            return "".join(texts)
        raise RowError(
            f"{where} has parts that are not text ({beginning(value)}); only text is learnt, leave them out"
        )
    raise RowError(f"{where} needs a role and a content, both text, not {beginning(value)}")


def chat_prompt(turns: Sequence[Turn], tools: Any = None, *, opened: bool = True) -> Example:
    """The question that some turns are, answer still empty; ``opened`` lets an assistant's turn begin."""
    tools = _tools(tools)
    lines = [f"tools: {json.dumps(tools)}\n"] if tools else []
    lines += [f"{turn['role']}: {_plain(turn)}\n" for turn in turns]
    return Example("".join(lines) + "assistant:" * opened, "", "", messages=tuple(turns), tools=tuple(tools))


def _tools(tools: Any) -> list[Any]:
    """What a cell says of the tools there are: a list, one tool, either as JSON text, or nothing."""
    if hasattr(tools, "tolist"):
        tools = tools.tolist()
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except (ValueError, RecursionError):
            raise RowError(f"column 'tools' is not a list of tools: {beginning(tools)}") from None
    if isinstance(tools, dict):
        return [tools]
    if tools is not None and not isinstance(tools, list | tuple):
        raise RowError(f"column 'tools' is not a list of tools: {beginning(tools)}")
    return list(tools or ())


def _plain(turn: Turn) -> str:
    calls = turn.get("tool_calls")
    said = [turn["content"]] if turn["content"] or not calls else []
    return " ".join([*said, json.dumps(calls, ensure_ascii=False)] if calls else said)


def chat_example(turns: Sequence[Turn], column: str, tools: Any = None) -> Example:
    """The last assistant turn is the answer, what stands before it the prompt.

    Raises:
        RowError: where there is nothing to learn, or nothing before it.
    """
    last = max((i for i, turn in enumerate(turns) if turn["role"] == "assistant"), default=None)
    if last is None:
        raise RowError(f"column {column!r} has no assistant turn to learn from")
    if last == 0:
        raise RowError(f"column {column!r} has nothing before its last assistant turn")
    answer = turns[last]["content"]
    if not answer.strip():
        does = "only calls a tool" if turns[last].get("tool_calls") else "is empty"
        raise RowError(f"column {column!r}: the last assistant turn {does}; leave the row out, or let it end in text")
    return replace(chat_prompt(turns[:last], tools), answer=" " + answer, gold=answer.strip())


def chat_question(turns: Sequence[Turn], column: str, tools: Any = None) -> Example:
    """The same without looking at the answer: an assistant turn at the end is left away.

    Raises:
        RowError: where nothing is asked.
    """
    before = turns[:-1] if turns[-1]["role"] == "assistant" else turns
    if not before:
        raise RowError(f"column {column!r} has nothing before its last assistant turn")
    return chat_prompt(before, tools)


def ask_chat(row: Row, column: str, *, whole: bool = False) -> Example:
    """The question of a column of turns; ``whole`` keeps a last assistant turn, for judging a chat."""
    if whole:
        return chat_prompt(read_turns(row[column], column), row.get("tools"), opened=False)
    return chat_question(read_turns(row[column], column), column, row.get("tools"))


def solve_chat(
    row: Row, columns: Sequence[str], solve: Callable[[str, Example], Example], example: Example
) -> Example:
    """The answered example of one column of turns, or of a prompt's turns and a completion's.

    The turn is kept as it was written, since a chat model answers in its own words; ``solve`` adds what is compared.
    """
    turns = [turn for column in columns for turn in read_turns(row[column], column)]
    answer = chat_example(turns, columns[-1], row.get("tools"))
    solved = solve(answer.answer.removeprefix(" "), example)
    return replace(
        solved, answer=answer.answer, prompt=answer.prompt, messages=answer.messages, tools=answer.tools, lead=" "
    )
