"""Public practice problems for frames by glossary (`h2tune.frames.lexicon`).

Rows have the columns ``prompt``, ``answer``, ``lexicon`` (term -> the meaning it has in this problem) and ``episode``
(problems with the same number share one lexicon). The meanings are drawn at random, so the rows are public.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from h2tune.frames.lexicon import Episode
from h2tune.tasks.example import Example, TaskError
from h2tune.tasks.prompts import encode
from h2tune.tasks.sources import read_rows

_COLUMNS = ("prompt", "answer", "lexicon", "episode")


def load_practice(source: str, tokenizer: Any, max_length: int) -> list[Episode]:
    """The episodes of a practice source, in order of their numbers.

    Raises:
        TaskError: for missing columns, or an episode whose rows disagree on a term.
    """
    episodes: dict[Any, list[Mapping[str, Any]]] = {}
    for number, row in enumerate(read_rows(source), 1):
        if missing := [c for c in _COLUMNS if c not in row]:
            raise TaskError(
                f"{source}: row {number} has no column {missing[0]!r}; practice needs {', '.join(_COLUMNS)}"
            )
        episodes.setdefault(row["episode"], []).append(row)
    return [_episode(source, rows, tokenizer, max_length) for _, rows in sorted(episodes.items())]


def _episode(source: str, rows: list[Mapping[str, Any]], tokenizer: Any, max_length: int) -> Episode:
    lexicon: dict[str, str] = {}
    for row in rows:
        for term, meaning in row["lexicon"].items():
            if lexicon.setdefault(str(term), str(meaning)) != str(meaning):
                raise TaskError(f"{source}: episode {row['episode']} gives {term!r} two meanings")
    examples = [Example(str(row["prompt"]), f" {str(row['answer']).strip()}", "") for row in rows]
    encoded = encode(examples, tokenizer, max_length=max_length)
    return Episode(lexicon, encoded, [example.prompt for example in examples])
