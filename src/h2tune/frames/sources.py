"""Where anchor text comes from: the sentences that ship with the package, the demo's, or a file."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import torch

from h2tune.frames.anchor_text import AnchorError
from h2tune.frames.word_codes import PairCodes, TextCodes, WordCodes
from h2tune.zoo import word_vectors


def load_anchors(source: str, words_file: str | None = None) -> list[str]:
    """Sentences of an anchor source; with a file of the domain's words, sentences around them are added.

    Raises:
        AnchorError: if the source is missing or holds too little.
    """
    if source == "builtin":
        sentences = _lines((files("h2tune.zoo") / "anchors.txt").read_text(encoding="utf-8"))
    elif source == "demo":
        from h2tune.tasks.demo_problems import demo_anchors

        sentences = demo_anchors()
    else:
        sentences = _file("anchors", source, "use `builtin`, `demo`, or a file with one sentence a line")
    if words_file:
        sentences += word_sentences(_file("anchor_words", words_file, "it should hold the domain's words, one a line"))
    if len(sentences) < 20:
        raise AnchorError(f"anchors: {source} holds {len(sentences)} sentences; frames need at least 20, better 300.")
    return sentences


def load_texts(source: str) -> list[str]:
    """Public texts of one client, one a line, or two with a tab between them.

    Raises:
        AnchorError: if the file is missing or holds too little.
    """
    texts = _file("practice", source, "frames: words needs public texts, one a line")
    if len(texts) < 20:
        raise AnchorError(f"practice: {source} holds {len(texts)} texts; frames: words needs some thousand.")
    return texts


def _file(key: str, source: str, wanted: str) -> list[str]:
    path = Path(source)
    if not path.is_file():
        what = f"{source} is a folder" if path.is_dir() else f"there is no file {source}"
        raise AnchorError(f"{key}: {what}; {wanted}.")
    try:
        return _lines(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise AnchorError(f"{key}: {source} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def load_codes(source: str, rank: int, pairs: bool = False) -> TextCodes:
    """Codes of words, or of pairs of texts: the package's own, or from a text file of word vectors, commonest word first.

    Raises:
        AnchorError: if the file is missing, malformed or too narrow.
    """
    try:
        if pairs:
            return PairCodes(_word_codes(source, PairCodes.room(rank) + 1), rank)
        return _word_codes(source, rank)
    except (ValueError, OSError, IndexError) as error:
        raise AnchorError(
            f"codes: {source}: {error}; give `builtin` or a text file, a word and its numbers a line."
        ) from None


def _word_codes(source: str, rank: int) -> WordCodes:
    if source == "builtin":
        return WordCodes(*word_vectors(), rank)
    lines = [line.split() for line in _lines(Path(source).read_text(encoding="utf-8"))]
    vectors = torch.tensor([[float(x) for x in line[1:]] for line in lines])
    # Without counts, frequency goes by rank (Zipf).
    counts = 1 / torch.arange(1, len(lines) + 1)
    return WordCodes([line[0].lower() for line in lines], vectors, counts, rank)


_AROUND = (
    "We wrote down {} today.",
    "They asked about {} and waited.",
    "The first one was {}.",
    "Then somebody {} it again.",
)


def word_sentences(words: list[str]) -> list[str]:
    """Plain sentences that hold the given words, each in several places."""
    return [pattern.format(word) for word in words for pattern in _AROUND]
