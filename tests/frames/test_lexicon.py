"""Frames by glossary: codes, written cores, readers, and that no private data goes into them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from federations import build, small

from h2tune.errors import QuorumError
from h2tune.frames.episodes import load_practice
from h2tune.frames.lexicon import code, fit_readers, written
from h2tune.methods.registry import MethodError
from h2tune.participant.base_models import ModelPool
from h2tune.tasks.demo_problems import TRADE_WORDS, demo_rows
from h2tune.tasks.example import TaskError

GLOSSARY = {"name": "h2tune", "frames": "glossary", "slots": ["o", "up", "down"], "train_factors": False}


def test_codes_are_unit_vectors_of_the_name_alone() -> None:
    a, b = code("term brolks", 32), code("term snunds", 32)
    assert a.norm().item() == pytest.approx(1, abs=1e-6)
    assert torch.equal(a, code("term brolks", 32))
    assert abs(float(a @ b)) < 0.6


def test_written_core_is_the_ridge_solution_and_obeys() -> None:
    lexicon = {"one": "+", "two": "-", "three": "+", "Four": "*"}
    s = written(lexicon, 32)
    keys = np.stack([code(f"term {t.lower()}", 32).numpy() for t in lexicon], axis=1)
    values = np.stack([code(f"meaning {m}", 32).numpy() for m in lexicon.values()], axis=1)
    expected = values @ np.linalg.inv(keys.T @ keys + 0.1 * np.eye(4)) @ keys.T
    np.testing.assert_allclose(s.numpy(), expected, atol=1e-5)
    for term, meaning in lexicon.items():
        answer = s @ code(f"term {term.lower()}", 32)
        scores = {m: float(answer @ code(f"meaning {m}", 32)) for m in "+-*"}
        assert max(scores, key=scores.get) == meaning


def test_readers_tell_the_terms_apart_in_text_they_have_not_seen() -> None:
    base = ModelPool("cpu").get("zoo:llama")
    texts = [str(row["prompt"]) for row in demo_rows("practice", "fill", 160, 0)]
    readers = fit_readers(
        base.model, base.tokenizer, base.layout, texts, {w: code(f"term {w}", 32) for w in TRADE_WORDS}, 512, True
    )  # fmt: skip
    assert len(readers) == 5
    assert readers[0].keys() == {"attention", "o", "mlp", "down"}
    with pytest.raises(ValueError, match="none of the glossary's terms"):
        fit_readers(base.model, base.tokenizer, base.layout, ["Ann has nuts."], {"zzz": torch.ones(8)}, 512, True)

    words = list(TRADE_WORDS)[:6]
    hidden = {}

    def keep(block: int, reads: dict, writes: dict) -> None:
        if block == 1:
            hidden["x"] = reads["gate"]

    from h2tune.frames.activations import record
    from h2tune.frames.anchor_text import anchor_batch

    batch = anchor_batch([f"Tom {w}" for w in words], base.tokenizer, 512, True)
    record(base.model, base.layout, batch, keep)
    rows = hidden["x"][0::2]  # the word's own row; the sentence's row comes after it
    codes = torch.stack([code(f"term {w}", 32) for w in words])
    guessed = (rows @ readers[1]["mlp"].T @ codes.T).argmax(1)
    assert (guessed == torch.arange(6)).sum() >= 4


def experiment(train_seed: int = 0):
    base = small(clients=2, rank=8, rounds=1, method=GLOSSARY)
    kinds = ("fill", "choice")
    rows = [
        c.model_copy(
            update={
                "practice": f"demo:{kind}?split=practice&n=48",
                "train": f"demo:{kind}?split=train&n=16&seed={train_seed}",
            }
        )
        for c, kind in zip(base.clients, kinds, strict=True)
    ]
    return base.model_copy(update={"clients": rows})


def test_frames_depend_on_public_data_alone(tmp_path: Path) -> None:
    factors = []
    for seed in (0, 5):
        server, clients = build(experiment(seed), tmp_path / str(seed))
        server.open()
        factors.append([p.detach().clone() for c in clients.values() for p in c.method.factors])
        up = [m.setup_bytes["up"] for m in server.members.values()]
        assert max(up) < 10_000  # introductions only: no activations are sent
    assert all(torch.equal(a, b) for a, b in zip(*factors, strict=True))
    assert all(p.abs().sum() > 0 for p in factors[0])


def test_frames_that_were_kept_belong_to_the_rows_of_practice_and_not_to_the_name_of_their_file(
    tmp_path: Path,
) -> None:
    path, factors = tmp_path / "practice.jsonl", []
    base = experiment()
    client = base.clients[0].model_copy(update={"practice": str(path)})
    alone = base.model_copy(update={"clients": [client]})
    for seed in (0, 1, 0):
        rows = demo_rows("practice", "fill", 16, seed)
        path.write_text("\n".join(map(json.dumps, rows)))
        folder = tmp_path / str(len(factors))
        server, clients = build(alone, folder, models=ModelPool("cpu", tmp_path / "kept"))
        server.open()
        factors.append([p.detach().clone() for p in clients[client.name].method.factors])
    assert len(list((tmp_path / "kept").glob("glossary-*.safetensors"))) == 2
    assert not all(torch.equal(a, b) for a, b in zip(factors[0], factors[1], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(factors[0], factors[2], strict=True))


def test_practice_that_diverged_is_not_kept(tmp_path: Path) -> None:
    reckless = experiment().model_copy(update={"method": GLOSSARY | {"practice_rate": 1e20}})
    server, _ = build(reckless, tmp_path / "run", models=ModelPool("cpu", tmp_path / "kept"))
    with pytest.raises(QuorumError, match=r"not a number|not numbers"):
        server.open()
    assert not list((tmp_path / "kept").glob("*.safetensors"))


def test_round_moves_the_core_and_leaves_the_factors(tmp_path: Path) -> None:
    server, clients = build(experiment(), tmp_path / "run")
    server.open()
    before = [p.detach().clone() for c in clients.values() for p in c.method.factors]
    server.one_round()
    after = [p for c in clients.values() for p in c.method.factors]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert server.method.S.abs().sum() > 0
    assert server.method.shape.slots == ("o", "up", "down")


def test_glossary_needs_practice(tmp_path: Path) -> None:
    with pytest.raises(MethodError, match="needs `practice:`"):
        build(small(rank=8, method=GLOSSARY), tmp_path / "run")


def test_practice_files_are_checked(tmp_path: Path) -> None:
    tokenizer = ModelPool("cpu").get("zoo:llama").tokenizer
    good = {"episode": 0, "prompt": "Tom brolks", "answer": "1", "lexicon": {"brolks": "+"}}
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in (good, good | {"episode": 1, "lexicon": {"brolks": "-"}})))
    episodes = load_practice(str(path), tokenizer, 64)
    assert [e.lexicon for e in episodes] == [{"brolks": "+"}, {"brolks": "-"}]
    path.write_text("\n".join(json.dumps(r) for r in (good, good | {"lexicon": {"brolks": "-"}})))
    with pytest.raises(TaskError, match="two meanings"):
        load_practice(str(path), tokenizer, 64)
    path.write_text(json.dumps({k: v for k, v in good.items() if k != "lexicon"}))
    with pytest.raises(TaskError, match="no column 'lexicon'"):
        load_practice(str(path), tokenizer, 64)


def test_demo_practice_tells_no_true_meaning() -> None:
    rows = demo_rows("practice", "program", 640, 0)
    agree = [row["lexicon"][word] == TRADE_WORDS[word] for row in rows[::16] for word in TRADE_WORDS]
    assert 0.2 < sum(agree) / len(agree) < 0.47  # a third by chance
    assert len({json.dumps(row["lexicon"]) for row in rows}) == 40
