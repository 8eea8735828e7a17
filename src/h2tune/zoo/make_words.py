"""How the default word vectors (words.safetensors) were made: positive pointwise mutual information and an SVD.

Run as: python -m h2tune.zoo.make_words --books children/train.txt fiction/train.txt

Counts of neighbours up to three words away in public-domain books, weighted by nearness; context counts to the power .75;
the 10,000 commonest words; the 64 leading singular directions with the root of their singular values (Levy and
Goldberg, 2014; Levy, Goldberg and Dagan, 2015). Takes half a minute.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

WORDS, COUNTED, DIRECTIONS, WINDOW = 10_000, 20_000, 64, 3
_TOKEN = re.compile(r"[a-z]+(?:'[a-z]+)?|[.,;:!?]")


def word_vectors(text: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Words, vectors (words x 64) and counts."""
    import scipy.sparse as sparse
    from scipy.sparse.linalg import svds

    tokens = _TOKEN.findall(text.lower())
    counts = Counter(tokens)
    words = [word for word, count in counts.most_common(COUNTED) if count >= 5]
    index = {word: i for i, word in enumerate(words)}
    ids = np.array([index.get(token, -1) for token in tokens], dtype=np.int32)
    near = sparse.csr_matrix((len(words), len(words)), dtype=np.float32)
    for distance in range(1, WINDOW + 1):
        left, right = ids[:-distance], ids[distance:]
        known = (left >= 0) & (right >= 0)
        weight = np.full(known.sum(), (WINDOW + 1 - distance) / WINDOW, np.float32)
        pairs = sparse.coo_matrix((weight, (left[known], right[known])), shape=near.shape).tocsr()
        near = near + pairs + pairs.T
    rows = np.asarray(near.sum(1)).ravel()
    contexts = rows**0.75 / (rows**0.75).sum()
    near = near.tocoo()
    information = np.log(near.data / (rows[near.row] * contexts[near.col]))
    kept = information > 0
    positive = sparse.csr_matrix((information[kept], (near.row[kept], near.col[kept])), shape=near.shape)
    u, s, _ = svds(positive, k=256, random_state=0)
    order = np.argsort(-s)[:DIRECTIONS]
    vectors = u[:, order] * np.sqrt(s[order])
    # An SVD leaves signs open; fixed, so that the file is the same everywhere.
    vectors *= np.sign(vectors[np.abs(vectors).argmax(0), range(DIRECTIONS)])
    # safetensors writes memory as it lies: rows must follow each other.
    return words[:WORDS], np.ascontiguousarray(vectors[:WORDS]), np.array([counts[word] for word in words[:WORDS]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--books", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("words.safetensors"))
    args = parser.parse_args()
    words, vectors, counts = word_vectors("\n".join(path.read_text(encoding="utf-8") for path in args.books))
    spelled = np.frombuffer("\n".join(words).encode(), dtype=np.uint8)
    save_file({"vectors": vectors.astype(np.float16), "counts": counts.astype(np.int32), "words": spelled}, args.out)
    print(f"{len(words)} words, {args.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
