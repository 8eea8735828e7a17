"""The label bias: fitted to the least loss, the same for every method, kept, exported and used by predict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from federations import ANCHORS
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from h2tune.config import parse_config
from h2tune.exporting import export
from h2tune.federation import run
from h2tune.inference import predict
from h2tune.participant import label_bias
from h2tune.participant.label_bias import LabelBias, label_tokens, telling_tokens
from h2tune.participant.passes import Answered
from h2tune.tasks.example import Example
from h2tune.tasks.prompts import Encoded
from h2tune.trained import load_trained

BOUND = st.integers(0, 10_000)


@given(BOUND)
def test_no_other_bias_has_a_smaller_loss(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(12, 20, generator=generator) * 3
    tokens = [3, 7, 11]
    wanted = torch.tensor(tokens)[torch.randint(3, (12,), generator=generator)]
    bias = LabelBias(tokens)
    bias.fit(logits, wanted, 12)

    counts = torch.bincount(wanted, minlength=20).float()  # as if each label had been seen 16 times more
    weights = ((counts + 16) / counts.clamp_min(1) * 12 / (12 + 16 * (counts > 0).sum()))[wanted]

    def loss(values: torch.Tensor) -> float:
        other = LabelBias(tokens, values)
        return float(
            (cross_entropy(other.added_to(logits), wanted, reduction="none") @ weights) + 0.01 * values.square().sum()
        )

    best = loss(bias.values)
    for _ in range(8):
        assert best <= loss(bias.values + 0.1 * torch.randn(3, generator=generator)) + 1e-3


def test_a_certain_answer_is_told_apart_by_the_frequencies_of_the_labels() -> None:
    # A model that says nothing about two labels: the bias is their log odds, up to the small pull towards 0.
    logits = torch.full((100, 8), -40.0)
    logits[:, [2, 5]] = 0
    bias = LabelBias([2, 5])
    bias.fit(logits, torch.tensor([2] * 75 + [5] * 25), 100)
    assert abs(float(bias.values[0] - bias.values[1]) - torch.log(torch.tensor((75 + 16) / (25 + 16)))) < 0.01


def test_only_fixed_options_have_a_bias() -> None:
    def tokenizer(texts: list[str], **_: object) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(c) for c in text] for text in texts]}

    different = [Example("a", " x", " x", (" x", " y")), Example("b", " z", " z", (" z", " y"))]
    assert label_tokens(different, tokenizer) == []
    assert label_tokens([Example("a", " x", " x", ())], tokenizer) == []


def test_what_every_option_has_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def encoded(examples: list[Example], *_: object, **__: object) -> list[list[Encoded]]:
        return [[Encoded([1, *t], [-100, *t]) for t in ([9, 4, 0], [7, 4, 0])] for _ in examples]

    monkeypatch.setattr(label_bias, "encode_options", encoded)
    rows = [Example("a", " yes", " yes", (" yes", " no"))] * 2
    assert label_tokens(rows, None) == [0, 4, 7, 9]
    assert telling_tokens(rows, None) == [7, 9]


def test_a_choice_among_tokens_hears_nothing_else() -> None:
    logits = torch.randn(4, 12, requires_grad=True)
    out = Answered(logits, torch.tensor([7, 0, 9, 0])).among([7, 9])
    assert out.wanted.tolist() == [0, 1]
    assert float(out.loss.detach()) == pytest.approx(
        float(cross_entropy(logits.detach()[[0, 2]][:, [7, 9]], out.wanted))
    )
    (gradient,) = torch.autograd.grad(out.loss, logits)
    assert not gradient[[1, 3]].any() and (gradient[[0, 2]] != 0).sum() == 4


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two clients that choose between two fixed words."""
    folder = tmp_path_factory.mktemp("bias")
    texts = [("the sun is warm", 1), ("the rain is cold", 0), ("a warm day", 1), ("a warm sea", 1)]
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"sentence": text, "label": label}) + "\n" for text, label in texts * 6))
    clients = [
        {"name": name, "model": model, "task": {"preset": "sst2", "kind": "choice"}}
        | dict.fromkeys(("train", "validation", "test"), str(rows))
        for name, model in (("one", "zoo:llama"), ("two", "zoo:gpt2"))
    ]
    training = {"steps": 2, "batch_size": 4}
    data = {
        "method": "local",
        "rounds": 1,
        "rank": 4,
        "blocks": 0.5,
        "anchors": ANCHORS,
        "device": "cpu",
        "training": training,
    }
    run(parse_config(data | {"clients": clients}), folder / "run")
    return folder / "run"


def test_the_bias_lies_beside_the_adapter_and_predict_uses_it(finished: Path) -> None:
    kept = json.loads((finished / "clients" / "one" / "adapter" / "label_bias.json").read_text())
    trained = load_trained(finished, "one")
    assert trained.passes.bias is not None and trained.passes.bias.plain() == kept
    metrics = json.loads((finished / "metrics.json").read_text())
    rows = [json.loads(line) for line in (finished.parent / "rows.jsonl").read_text().splitlines()]
    right = [p["prediction"] == ("positive" if row["label"] else "negative")
             for p, row in zip(predict(finished, "one", finished.parent / "rows.jsonl"), rows, strict=True)]  # fmt: skip
    assert sum(right) / len(right) == metrics["clients"]["one"]["final"]["metric"]


def test_an_export_tells_the_bias(finished: Path, tmp_path: Path) -> None:
    export(finished, "one", tmp_path / "out")
    told = json.loads((tmp_path / "out" / "task.json").read_text())["label_bias"]
    kept = json.loads((finished / "clients" / "one" / "label_bias.json").read_text())
    assert [int(token) for token in told] == kept["tokens"] and list(told.values()) == kept["values"]
    assert "## Label bias" in (tmp_path / "out" / "README.md").read_text()
