"""Codes of words: the formula against NumPy, what they must not depend on, and the file that ships."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from h2tune.frames.anchor_text import AnchorError
from h2tune.frames.sources import load_codes
from h2tune.frames.word_codes import PairCodes, WordCodes


def small(rank: int = 5) -> tuple[WordCodes, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    vectors, counts = rng.normal(size=(6, 8)), np.array([900, 50, 20, 10, 5, 1])
    words = ["the", "good", "bad", "film", "don't", "rare"]
    return WordCodes(words, torch.tensor(vectors), torch.tensor(counts), rank), vectors, counts


def test_codes_are_centred_scaled_and_end_in_one() -> None:
    codes, vectors, counts = small()
    q = counts / counts.sum()
    x = vectors[:, :4] - (q[:, None] * vectors[:, :4]).sum(0)
    x = x / np.linalg.norm(x, axis=1, keepdims=True) * (0.01 / (0.01 + q))[:, None] * 2
    np.testing.assert_allclose(codes.codes[:, :4], x, atol=1e-6)
    assert (codes.codes[:, 4] == 1).all()
    lengths = codes.codes[:, :4].norm(dim=1)
    assert lengths[0] < 0.1 * lengths[5]  # frequent words weigh little


def test_features_sum_words_and_forget_what_is_unknown() -> None:
    codes, _, _ = small()
    texts = ["A GOOD film", "good film", "film, good!", "bad bad", "unknown words only"]
    found = codes.features([(text,) for text in texts])
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[1], found[2])
    assert (found[:, -1] == 1).all() and not found[4, :-1].any()
    ratio = found[3, :-1] / (2 * codes.codes[2, :-1] / 2**0.5)
    torch.testing.assert_close(ratio, ratio[:1].expand(4))
    assert codes.known("the film don't end") == [(0, 3), (3, 8), (4, 14)]


def test_codes_of_pairs_say_what_the_first_text_has() -> None:
    codes, _, counts = small(rank=3)
    pairs = PairCodes(codes, 7)  # two entries of meaning, twice; two of weight; the constant
    found = {(n, end): code for n, end, code in pairs.read(("A good film", "the GOOD dragon"))}
    assert set(found) == {(1, 3), (1, 8), (1, 15)}
    the, good, dragon = (found[1, end] for end in (3, 8, 15))
    q = counts / counts.sum()
    weight = lambda i: 3 * 0.01 / (0.01 + q[i])  # noqa: E731
    torch.testing.assert_close(good, torch.tensor([*codes.codes[1, :2], 0, 0, weight(1), 0, 1], dtype=torch.float32))
    torch.testing.assert_close(the, torch.tensor([0, 0, *codes.codes[0, :2], 0, weight(0), 1], dtype=torch.float32))
    assert dragon.tolist() == [0, 0, 0, 0, 0, 3, 1]  # without a vector it says nothing but that it is there


def test_features_of_pairs_are_the_shares_that_either_text_has_of_the_other() -> None:
    codes, _, counts = small(rank=3)
    pairs = PairCodes(codes, 7)
    texts = [("good film", "film good"), ("good film", "bad rare"), ("the film", "film"), ("xx yy", "film xx")]
    found = pairs.features(texts)
    q = counts / counts.sum()
    w = dict(zip(codes.words, 0.01 / (0.01 + q), strict=True)) | {"xx": 1.0, "yy": 1.0}
    shares = np.array([
        [sum(w[x] for x in set(a.split()) & set(b.split())) / sum(w[x] for x in side.split()) for side in (a, b)]
        for a, b in texts
    ])  # fmt: skip
    wanted = 3 * (shares - shares.mean(0)) / shares.std(0)
    np.testing.assert_allclose(found[:, 4:6], wanted, rtol=1e-4)
    assert (found[:, 6] == 1).all()
    assert not found[0, 2:4].any() and not found[1, :2].any()  # nothing is not shared; nothing is shared
    torch.testing.assert_close(found[0, :2] / found[2, 0] * codes.codes[3, 0] * 2**0.5,
                               (codes.codes[1, :2] + codes.codes[3, :2]))  # fmt: skip
    with pytest.raises(ValueError, match="at least 5"):
        PairCodes.room(4)


def test_builtin_codes_hold_meaning_and_files_of_vectors_are_read(tmp_path: Path) -> None:
    codes = load_codes("builtin", 32)
    assert codes.codes.shape == (10_000, 32)
    unit = codes.codes[:, :-1] / codes.codes[:, :-1].norm(dim=1, keepdim=True)

    def near(a: str, b: str) -> float:
        return float(unit[codes.index[a]] @ unit[codes.index[b]])

    assert near("mother", "father") > near("mother", "river") + 0.2
    assert near("monday", "tuesday") > near("monday", "apple") + 0.2
    path = tmp_path / "vectors.txt"
    path.write_text("good 1 0 2\nbad -1 0 1\n")
    assert load_codes(str(path), 4).index == {"good": 0, "bad": 1}
    for bad in ("good 1 0\nbad 1\n", "", "good one two\n"):
        path.write_text(bad)
        with pytest.raises(AnchorError, match="codes:"):
            load_codes(str(path), 3)
    with pytest.raises(AnchorError, match="rank 99"):
        load_codes("builtin", 99)
