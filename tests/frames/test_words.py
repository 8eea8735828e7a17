"""Frames by words: what practice promises, that one direction means the same in every model, and what is refused."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from federations import build

from h2tune import federation
from h2tune.config import parse_config
from h2tune.errors import QuorumError
from h2tune.frames.anchor_text import AnchorError
from h2tune.frames.sources import load_codes
from h2tune.frames.word_texts import columns_of, make_pool, practice_texts, question_of
from h2tune.frames.words import directions, written
from h2tune.methods.registry import MethodError
from h2tune.participant.base_models import ModelPool

GOOD, BAD = ("good", "happy", "sweet", "kind"), ("dark", "cruel", "angry", "cold")
PLAIN = ("house", "river", "horse", "garden", "window", "letter", "morning", "table")


def sentences(count: int, seed: int) -> list[tuple[str, int]]:
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        label = rng.randrange(2)
        words = rng.sample(PLAIN, 3) + rng.sample(GOOD if label else BAD, 2)
        rng.shuffle(words)
        found.append((" ".join(words), label))
    return found


def texts(count: int, seed: int) -> list[str]:
    """The sentences alone, each once."""
    return list(dict.fromkeys(text for text, _ in sentences(count, seed)))


def experiment(tmp_path: Path, kind: str = "choice", **changes: Any) -> Any:
    for part, seed in (("train", 0), ("test", 1)):
        rows = "".join(f"{text}\t{label}\n" for text, label in sentences(60, seed))
        (tmp_path / f"{part}.tsv").write_text("sentence\tlabel\n" + rows)
    (tmp_path / "public.txt").write_text("\n".join(texts(80, 2)) + "\n")
    method = {"name": "h2tune", "frames": "words", "private": 4, "practice_steps": 3, "train_factors": False,
              "train_private": False} | changes.pop("method", {})  # fmt: skip
    rows = [{"name": name, "model": f"zoo:{name}", "task": {"preset": "sst2", "kind": kind},
             "train": str(tmp_path / "train.tsv"), "test": str(tmp_path / "test.tsv"), "max_length": 64}
            for name in ("llama", "gpt2")]  # fmt: skip
    data = {"rounds": 2, "rank": 8, "depth": 1, "anchors": str(tmp_path / "public.txt"), "clients": rows, "device": "cpu",
            "method": method, "training": {"steps": 2, "batch_size": 8, "core_learning_rate": 0.02}}  # fmt: skip
    return parse_config(data | changes)


def test_a_written_core_is_the_core_that_would_be_received(tmp_path: Path) -> None:
    """The practice's shortcut for a batch of cores equals T written from S, row by row."""
    server, clients = build(experiment(tmp_path), tmp_path / "run", anchors=texts(40, 5))
    method = clients["gpt2"].method
    server.open()
    torch.manual_seed(0)
    w = directions(3, 2, 8)
    ids = torch.randint(5, 200, (3, 12))
    model = method.context.base.activate(method.context.adapter).eval()
    with torch.no_grad(), written(method, w, lambda *a: None):
        together = model(input_ids=ids).logits
    for row in range(3):
        method.core.S.data.zero_()
        method.core.S.data[:, 0, 0] = w[row, 0]
        method.core.write(method.core_leaves)
        with torch.no_grad():
            alone = model(input_ids=ids[row : row + 1]).logits[0]
        torch.testing.assert_close(together[row], alone, atol=1e-4, rtol=1e-4)
    assert method.core.S.shape == (1, 1, 8, 8)


def test_runs_resumes_and_sends_one_small_matrix(tmp_path: Path) -> None:
    metrics = federation.run(experiment(tmp_path), tmp_path / "run")
    for client in metrics["clients"].values():
        assert client["rounds"][-1]["bytes_up"] < 8 * 8 * 4 + 800
    frames = sorted((tmp_path / "run" / "frames").glob("words-*.safetensors"))
    assert len(frames) == 2  # one for each base
    # Another run with models that keep frames in a folder practises once, and finds them there.
    stamps = []
    for name in ("one", "two"):
        federation.run(experiment(tmp_path), tmp_path / name, models=ModelPool("cpu", tmp_path / "kept"))
        stamps.append([p.stat().st_mtime_ns for p in sorted((tmp_path / "kept").glob("*.safetensors"))])
    assert len(stamps[0]) == 2 and stamps[0] == stamps[1]
    # Frames are practised on a task's own prompt: another wording needs others.
    config = experiment(tmp_path)
    other = {
        "kind": "choice",
        "prompt": "{sentence} So it is",
        "answer": "{label}",
        "options": ["negative", "positive"],
    }
    rows = [client.model_copy(update={"task": other}) for client in config.clients]
    for part, seed in (("train", 3), ("test", 4)):
        text = "".join(f"{t}\t{('negative', 'positive')[label]}\n" for t, label in sentences(60, seed))
        (tmp_path / f"{part}.tsv").write_text("sentence\tlabel\n" + text)
    federation.run(
        config.model_copy(update={"clients": rows}), tmp_path / "three", models=ModelPool("cpu", tmp_path / "kept")
    )
    assert len(list((tmp_path / "kept").glob("*.safetensors"))) == 4


@pytest.mark.slow
def test_practice_that_diverged_is_not_kept(tmp_path: Path) -> None:
    reckless = experiment(tmp_path, method={"practice_rate": 1e30})
    server, _ = build(reckless, tmp_path / "run", models=ModelPool("cpu", tmp_path / "kept"))
    with pytest.raises(QuorumError, match="practice diverged"):
        server.open()
    assert not list((tmp_path / "kept").glob("*.safetensors"))


@pytest.mark.slow
def test_practice_is_the_same_for_every_seed_and_private_data(tmp_path: Path) -> None:
    """Frames are a function of public text and the base alone: other seeds and other private rows change no bit."""
    found = []
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        folder.mkdir()
        config = experiment(folder, seed=seed)
        if seed:
            rows = "".join(f"{text}\t{1 - label}\n" for text, label in sentences(50, 77))
            (folder / "train.tsv").write_text("sentence\tlabel\n" + rows)
        server, clients = build(config, folder / "run", anchors=texts(40, 5))
        server.open()
        found.append([p.detach().clone() for c in clients.values() for p in c.method.factors])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_texts_of_practice_hold_the_public_words_only() -> None:
    public = [text for text, _ in sentences(30, 3)]
    texts = practice_texts(public)
    words = set(" ".join(public).split())
    assert {w for (text,) in texts for w in text.split()} == words and {(text,) for text in public} <= set(texts)
    assert texts == practice_texts(public)
    lines = ["\t".join(public[i : i + 2]) for i in range(0, 30, 2)]
    pairs = practice_texts(lines, pairs=True)
    assert {w for pair in pairs for text in pair for w in text.split()} <= words
    assert {tuple(line.split("\t")) for line in lines} <= set(pairs) and pairs == practice_texts(lines, pairs=True)
    # Every kind of overlap is among them: from nothing to all of the second text's words.
    shares = [len(set(a.split()) & set(b.split())) / len(set(b.split())) for a, b in pairs]
    assert min(shares) < 0.2 and max(shares) == 1 and all(len(pair) == 2 for pair in pairs)


def with_pairs(tmp_path: Path, **changes: Any) -> Any:
    """One client asks about a text, two about pairs, with public pairs of their own; ``changes`` are those two's."""
    made = [text for text, _ in sentences(80, 7)]
    for part, begin in (("train", 0), ("test", 40)):
        rows = [
            (made[i], made[i if i % 2 else (i + 1) % 80], "yes" if i % 2 else "no") for i in range(begin, begin + 40)
        ]
        text = "".join(f"{a}\t{b} too {i}\t{answer}\n" for i, (a, b, answer) in enumerate(rows))
        (tmp_path / f"pairs-{part}.tsv").write_text("first\tsecond\tanswer\n" + text)
    public = [text for text, _ in sentences(40, 9)]
    (tmp_path / "pairs.txt").write_text("\n".join(f"{a}\t{b}" for a, b in zip(public[::2], public[1::2], strict=True)))
    task = {
        "kind": "choice",
        "prompt": "First: {first}\nSecond: {second}\nSame:",
        "answer": "{answer}",
        "options": ["no", "yes"],
    }
    files = {part: str(tmp_path / f"pairs-{part}.tsv") for part in ("train", "test")}
    rows = [{"name": name, "model": f"zoo:{name}", "task": task, "max_length": 96, "practice": str(tmp_path / "pairs.txt")} | files
            for name in ("gpt2", "qwen")]  # fmt: skip
    base = experiment(tmp_path).model_dump(mode="json")
    return parse_config(base | {"clients": [base["clients"][0], *(row | changes for row in rows)]})


@pytest.mark.slow
def test_tasks_about_pairs_share_a_slot_of_their_own(tmp_path: Path) -> None:
    server, clients = build(with_pairs(tmp_path), tmp_path / "run", anchors=texts(40, 5))
    server.open()
    assert server.method.shape.slots == ("any", "pair")
    server.one_round()
    trained = {name: client.method.core.S.detach().clone() for name, client in clients.items()}
    weights = {name: len(client.context.data.train) for name, client in clients.items()}
    torch.testing.assert_close(server.method.S[0, 0], trained["llama"][0, 0])
    both = sum(weights[n] * trained[n][0, 1] for n in ("gpt2", "qwen")) / (weights["gpt2"] + weights["qwen"])
    torch.testing.assert_close(server.method.S[0, 1], both)
    assert not trained["llama"][0, 1].any() and not trained["gpt2"][0, 0].any()
    assert all(t.abs().sum() > 0 for t in trained.values())


def test_codes_of_pairs_are_read_where_the_second_text_stands(tmp_path: Path) -> None:
    _, clients = build(with_pairs(tmp_path), tmp_path / "run")
    method = clients["qwen"].method
    codes = load_codes("builtin", clients["qwen"].context.rank, pairs=True)
    assert columns_of(method) == ("first", "second")
    pair = ("the river was dark", "the dark house")
    pool = make_pool(method, codes, [pair], question_of(method, pair).options)
    ids = pool.rows[0][0].input_ids
    tokens = clients["qwen"].context.tokenizer
    ends = [tokens.decode(ids[: place + 1]) for place in pool.places[0][0]]
    assert [end.split()[-1] for end in ends] == ["the", "dark", "house"] and all("Second:" in end for end in ends)
    shared = pool.places[0][1][:, 2 * codes.wide] > 0
    assert shared.tolist() == [True, True, False]


def test_what_it_cannot_do_is_said(tmp_path: Path) -> None:
    with pytest.raises(MethodError, match="needs a task that chooses"):
        federation.run(experiment(tmp_path, kind="classify"), tmp_path / "a")
    with pytest.raises(MethodError, match="needs `private:`"):
        federation.run(experiment(tmp_path, method={"private": 0}), tmp_path / "b")
    with pytest.raises(AnchorError, match=r"practice: there is no file nowhere\.txt"):
        federation.run(with_pairs(tmp_path, practice="nowhere.txt"), tmp_path / "c")
    alike = {"kind": "choice", "prompt": "{first} {second}", "answer": "{answer}", "options": ["no", "not", "yes"]}
    with pytest.raises(MethodError, match="begins two of these alike: no, not, yes; write them in other words"):
        federation.run(with_pairs(tmp_path, task=alike), tmp_path / "e")
    three = {"kind": "choice", "prompt": "{first} {second} {answer}", "answer": "{answer}", "options": ["no", "yes"]}
    with pytest.raises(MethodError, match="reads first, second, answer; name the text's column"):
        federation.run(with_pairs(tmp_path, task=three), tmp_path / "d")


@pytest.mark.slow
def test_a_direction_learnt_in_one_family_works_in_another(tmp_path: Path) -> None:
    """The promise itself, with some minutes of practice: S trained in llama is put into gpt2."""
    config = experiment(tmp_path, rank=16, method={"private": 16, "practice_steps": 500, "practice_rate": 5e-3, "ridge": 1.0},
                        rounds=1, training={"label_bias": False, "steps": 30, "batch_size": 16, "core_learning_rate": 0.05})  # fmt: skip
    server, clients = build(config, tmp_path / "run", anchors=texts(2000, 2))
    server.open()
    llama, gpt2 = clients["llama"].method, clients["gpt2"].method
    llama.train(1, server.method.download("llama"))
    before = clients["gpt2"].context.score(clients["gpt2"].context.data.test).metric
    gpt2.core.S.data.copy_(llama.core.S.data)
    gpt2.core.write(gpt2.core_leaves)
    after = clients["gpt2"].context.score(clients["gpt2"].context.data.test).metric
    assert after > max(before, 0.5) + 0.15, (before, after)
