"""Anchor rows are words: the same ones, in the same order, whatever the tokenizer cuts them into."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import build
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizers import KINDS, LINES, tokenizer

from h2tune.frames.anchor_text import AnchorError, anchor_batch, coverage, vocabulary, words

EVERY = pytest.mark.parametrize(("kind", "special"), [(kind, special) for kind in KINDS for special in (True, False)])


def spelled(text: str) -> list[str]:
    return [text[a:b] for a, b in words(text)]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("He didn't pay 3.50 for it.", ["He", "didn't", "pay", "3.50", "for", "it", "."]),
        ("  Two  spaces\tand a tab ", ["Two", "spaces", "and", "a", "tab"]),
        ("naïve café, résumé!", ["naïve", "café", ",", "résumé", "!"]),
        ("(a+b)=c", ["(", "a", "+", "b", ")", "=", "c"]),
        ("", []),
        ("   ", []),
    ],
)
def test_words_follow_unicode_and_leave_out_space(text: str, wanted: list[str]) -> None:
    assert spelled(text) == wanted


@given(st.text(max_size=60))
def test_words_cover_every_character_but_space_once(text: str) -> None:
    spans = words(text)
    assert all(a < b for a, b in spans)
    assert all(one[1] <= two[0] for one, two in pairwise(spans))
    inside = {i for a, b in spans for i in range(a, b)}
    assert all(text[i].isspace() for i in range(len(text)) if i not in inside)


def rows_by_hand(kind: str, special: bool, causal: bool) -> list[list[int]]:
    """Flat token positions behind each row: a word's tokens are those whose largest overlap is with it.

    A decoder is read at the last of them, the only one that has seen the whole word.
    """
    made = tokenizer(kind, special)
    found: list[list[int]] = []
    longest = max(len(made(text)["input_ids"]) for text in LINES)
    for s, text in enumerate(LINES):
        coded = made(text, return_offsets_mapping=True, return_special_tokens_mask=True)
        spans, groups = words(text), {}
        for t, (start, end) in enumerate(coded["offset_mapping"]):
            overlaps = [max(0, min(end, b) - max(start, a)) for a, b in spans]
            if not coded["special_tokens_mask"][t] and max(overlaps) > 0:
                groups.setdefault(overlaps.index(max(overlaps)), []).append(s * longest + t)
        found += [groups[w][-1:] if causal else groups[w] for w in range(1, len(spans))]
        found.append([s * longest + (len(coded["input_ids"]) - 1 if causal else 0)])
    return found


@EVERY
@pytest.mark.parametrize("causal", [True, False])
def test_a_row_is_the_mean_over_a_word_or_in_a_decoder_its_end(kind: str, special: bool, causal: bool) -> None:
    batch = anchor_batch(LINES, tokenizer(kind, special), 512, causal)
    activations = torch.randn(*batch.input_ids.shape, 5, generator=torch.Generator().manual_seed(0))
    flat = activations.view(-1, 5)
    wanted = torch.stack([flat[group].mean(0) for group in rows_by_hand(kind, special, causal)])
    torch.testing.assert_close(batch.average(activations), wanted)


@EVERY
def test_chunks_hold_sentences_of_like_lengths_and_average_to_the_same_rows(kind: str, special: bool) -> None:
    batch = anchor_batch(LINES, tokenizer(kind, special), 512, causal=False)
    chunks = batch.chunks(batch.input_ids.shape[1])
    assert len(chunks) > 1
    assert sum(len(c.input_ids) for c in chunks) == len(LINES)
    assert all(c.input_ids.numel() <= batch.input_ids.shape[1] for c in chunks)
    assert all(c.attention_mask[:, -1].any() for c in chunks)  # padded to their own longest only
    table = torch.randn(int(batch.input_ids.max()) + 1, 5, generator=torch.Generator().manual_seed(0))
    out = torch.zeros(batch.rows, 5)
    for chunk in chunks:
        chunk.average(table[chunk.input_ids], out)
    torch.testing.assert_close(out, batch.average(table[batch.input_ids]))


def test_anchors_that_fit_are_one_chunk_in_their_own_order() -> None:
    batch = anchor_batch(LINES, tokenizer("bytes"), 512, causal=True)
    (chunk,) = batch.chunks(batch.input_ids.numel())
    assert torch.equal(chunk.input_ids, batch.input_ids)
    assert torch.equal(chunk.token, batch.token)


@EVERY
@pytest.mark.parametrize("causal", [True, False])
def test_every_tokenizer_has_the_same_rows(kind: str, special: bool, causal: bool) -> None:
    """The characters behind a row are its word, or in a decoder the end of it, in any tokenizer."""
    batch = anchor_batch(LINES, tokenizer(kind, special), 512, causal)
    wanted = [word.strip(" ") for text in LINES for word in [*spelled(text)[1:], ""]]
    assert batch.rows == len(wanted)
    longest = batch.input_ids.shape[1]
    reads: list[list[str]] = [[] for _ in range(batch.rows)]
    for row, place in zip(batch.row.tolist(), batch.token.tolist(), strict=True):
        s, t = divmod(place, longest)
        a, b = tokenizer(kind, special)(LINES[s], return_offsets_mapping=True)["offset_mapping"][t]
        reads[row].append(LINES[s][a:b])
    for word, pieces in zip(wanted, reads, strict=True):
        text = "".join(pieces).strip()
        assert not word or (text and word.endswith(text) if causal else text == word)
    weights = torch.zeros(batch.rows).index_add_(0, batch.row, batch.weight)
    torch.testing.assert_close(weights, torch.ones(batch.rows))


@EVERY
def test_first_words_special_tokens_and_padding_are_in_no_word(kind: str, special: bool) -> None:
    made = tokenizer(kind, special)
    batch = anchor_batch(LINES, made, 512, causal=True)
    longest = batch.input_ids.shape[1]
    last = {s * longest + int(n) - 1 for s, n in enumerate(batch.attention_mask.sum(1))}
    counts = [len(spelled(text)) for text in LINES]
    heads = {sum(counts[: s + 1]) - 1 for s in range(len(LINES))}  # one row a sentence is what a head reads
    for row, place in zip(batch.row.tolist(), batch.token.tolist(), strict=True):
        s, t = divmod(place, longest)
        assert batch.attention_mask[s, t] == 1
        if row in heads:
            assert place in last
        else:
            assert int(batch.input_ids[s, t]) not in made.all_special_ids
            assert made(LINES[s], return_offsets_mapping=True)["offset_mapping"][t][0] >= words(LINES[s])[0][1]


def test_an_encoder_s_head_reads_the_first_place() -> None:
    batch = anchor_batch(LINES[:1], tokenizer("wordpiece"), 512, causal=False)
    assert batch.token[batch.row == batch.rows - 1].tolist() == [0]


class Told:
    """A tokenizer that cuts as it is told."""

    is_fast, pad_token_id = True, None

    def __init__(self, offsets: list[tuple[int, int]]) -> None:
        self.coded = {"input_ids": [list(range(len(offsets)))], "offset_mapping": [offsets]}

    def __call__(self, texts: list[str], **options: Any) -> dict[str, Any]:
        return self.coded | {"special_tokens_mask": [[0] * len(self.coded["input_ids"][0])]}


def test_a_token_over_two_words_goes_to_the_one_it_overlaps_most() -> None:
    """And a word left without any has the token that touches it, or at the very least the last."""
    #      ab         c       d efg   .        x y
    cut = [(0, 2), (3, 4), (4, 9), (9, 10), (11, 14)]
    batch = anchor_batch(["ab cd efg. x y z"], Told(cut), 512, causal=False)
    reads = list(zip(batch.row.tolist(), batch.token.tolist(), strict=True))
    assert reads == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 4), (5, 4), (6, 0)]
    assert batch.rows == 7


def test_anchors_that_do_not_fit_the_context_are_refused_not_cut() -> None:
    longest = max(len(ids) for ids in tokenizer("bytes")(LINES)["input_ids"])
    assert anchor_batch(LINES, tokenizer("bytes"), longest, True).input_ids.shape[1] == longest
    with pytest.raises(AnchorError, match=rf"An anchor has {longest} tokens, the model reads {longest - 1}: split"):
        anchor_batch(LINES, tokenizer("bytes"), longest - 1, True)


def test_slow_tokenizers_are_refused() -> None:
    with pytest.raises(AnchorError, match="fast tokenizer"):
        anchor_batch(LINES, SimpleNamespace(is_fast=False), 512, True)


def test_padding_changes_no_row() -> None:
    """Rows of a sentence are the same alone and beside longer ones."""
    model, made = build("llama"), tokenizer("characters")

    def rows(lines: list[str]) -> torch.Tensor:
        batch = anchor_batch(lines, made, 512, causal=True)
        with torch.no_grad():
            hidden = model.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        return batch.average(hidden)

    short = "Two ships left."
    alone = rows([short])
    assert len(alone) == 4
    torch.testing.assert_close(rows([short, LINES[1][:40]])[:4], alone, atol=1e-5, rtol=0)


def test_coverage_by_hand() -> None:
    anchors = ["The doctor wrote.", "Water boils"]
    texts = ["The DOCTOR boils 3 eggs, the doctor's eggs.", "eggs!"]
    # the doctor boils eggs the doctor's eggs eggs: 8 occurrences with letters; the, doctor, boils, the are known.
    share, missing = coverage(anchors, texts)
    assert share == pytest.approx(4 / 8)
    assert missing == ["eggs", "doctor's"]
    assert vocabulary(texts)["the"] == 2
    assert coverage(anchors, []) == (0.0, [])
    assert coverage(anchors, ["12 + 7"]) == (0.0, [])
    assert coverage(texts, texts) == (1.0, [])
