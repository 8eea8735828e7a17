"""The label bias: fitted to the least loss, the same for every method, kept, exported and used by predict."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from federations import ANCHORS
from hypothesis import assume, given
from hypothesis import strategies as st
from model_folders import write_rows
from torch.nn.functional import cross_entropy

from h2tune.config import parse_config
from h2tune.exporting import export
from h2tune.federation import run
from h2tune.inference import predict
from h2tune.participant import label_bias
from h2tune.participant.base_models import ModelPool
from h2tune.participant.context import ClientContext
from h2tune.participant.label_bias import Heard, LabelBias, answer_places, fitted_to, label_tokens, telling_tokens
from h2tune.participant.passes import Answered
from h2tune.participant.scoring import heard
from h2tune.tasks.example import Example
from h2tune.tasks.prompts import Encoded
from h2tune.trained import load_trained

BOUND = st.integers(0, 10_000)


def fitted(tokens: list[list[int]], *said: torch.Tensor) -> LabelBias:
    """The bias for logits, wanted tokens and places."""
    return LabelBias.fitted(tokens, [Heard.of(tokens, *said)])


def weighted_loss(bias: LabelBias, logits: torch.Tensor, wanted: torch.Tensor, places: torch.Tensor) -> float:
    """By its definition: labels as if each had been seen 16 times more, what every answer has as it is."""
    total = 0.0
    for place, (tokens, values) in enumerate(zip(bias.tokens, bias.values, strict=True)):
        seen = wanted[places == place].tolist()
        kinds = len(set(seen))
        for token in set(seen):
            told = logits[(places == place) & (wanted == token)].clone()
            told[:, list(tokens)] += torch.tensor(values)
            times = seen.count(token)
            weight = (times + 16) / times * len(seen) / (len(seen) + 16 * kinds) if kinds > 1 else 1
            total += weight * float(-told.log_softmax(1)[:, token].sum())
        total += 0.01 * sum(value**2 for value in values)
    return total


@given(BOUND)
def test_no_other_bias_has_a_smaller_loss(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, places = torch.randn(24, 20, generator=generator) * 3, torch.arange(2).repeat(12)
    label = torch.tensor([3, 7, 11])[torch.randint(3, (12,), generator=generator)]
    assume(len(set(label.tolist())) == 3)  # what is never seen has no loss of its own
    wanted = torch.stack([label, torch.full((12,), 5)], 1).flatten()  # each label, then the end
    tokens = [[3, 7, 11], [5]]
    bias = fitted(tokens, logits, wanted, places)

    best = weighted_loss(bias, logits, wanted, places)
    for _ in range(8):
        moves = (0.1 * torch.randn(4, generator=generator)).tolist()
        other = [[v + m for v, m in zip(bias.values[0], moves, strict=False)], [bias.values[1][0] + moves[3]]]
        assert best <= weighted_loss(LabelBias(tokens, other), logits, wanted, places) + 1e-3


@given(BOUND, st.integers(1, 7))
def test_batches_say_what_all_rows_say_together(seed: int, size: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, places = torch.randn(24, 20, generator=generator), torch.arange(2).repeat(12)
    label = torch.tensor([3, 7, 11])[torch.randint(3, (12,), generator=generator)]
    said = (logits, torch.stack([label, torch.full((12,), 5)], 1).flatten(), places)
    tokens = [[3, 7, 11], [5]]
    parts = [Heard.of(tokens, *part) for part in zip(*(value.split(2 * size) for value in said), strict=True)]
    assert LabelBias.fitted(tokens, parts) == fitted(tokens, *said)


def test_what_is_fitted_to_is_taken_in_parts_and_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    logits, wanted = torch.randn(23, 300, generator=generator), torch.arange(23) % 3
    sizes: list[int] = []

    def whole_copy(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.numel())
        return tensor.to(torch.float64)

    monkeypatch.setattr(torch.Tensor, "double", whole_copy)
    whole = Heard.of([[0, 1, 2]], logits, wanted, torch.zeros(23))
    monkeypatch.setattr(label_bias, "_AT_ONCE", 1000)
    parts = Heard.of([[0, 1, 2]], logits, wanted, torch.zeros(23))
    for one, other in zip(whole.places[0], parts.places[0], strict=True):
        assert torch.equal(one, other)
    assert sizes[0] == 23 * 300 and max(sizes[1:]) <= 1200 and sum(sizes[1:]) == 23 * 300
    none = Heard.of([[0, 1, 2]], logits, wanted, torch.ones(23)).places[0]  # no answer is that short
    assert [tuple(part.shape) for part in none] == [(0, 3), (0, 1), (0,)]


def test_the_end_of_the_answer_does_not_compete_where_the_label_is_read() -> None:
    # Tokens 2 and 5 are labels, 0 ends; the model never ends by itself, and its labels lie 20 below another token.
    logits = torch.zeros(8, 10)
    logits[:, 0] = -10
    logits[::2, 9] = 20
    wanted = torch.tensor([2, 0, 5, 0] * 2)
    bias = fitted([[2, 5], [0]], logits, wanted, torch.arange(2).repeat(4))

    read = bias.added_to(logits, torch.arange(2).repeat(4))
    assert torch.equal(read[::2, 0], logits[::2, 0]) and torch.equal(read[1::2, [2, 5]], logits[1::2, [2, 5]])
    assert (read[::2].argmax(1)[:, None] == torch.tensor([2, 5])).any(1).all()
    assert (read[1::2].argmax(1) == 0).all()


def test_each_position_gets_the_numbers_of_its_place() -> None:
    labels = torch.tensor([[-100, -100, 4, 6, -100], [-100, 4, 4, 8, 6]])  # answers of two and of four tokens
    assert answer_places(labels).tolist() == [0, 1, 0, 1, 2, 3]
    bias = LabelBias([[4], [4, 6], [6]], [[1.0], [2.0, 3.0], [4.0]])
    told = bias.added_to(torch.zeros(6, 9), answer_places(labels))
    expected = torch.zeros(6, 9)
    expected[[0, 2], 4] = 1
    expected[[1, 3], 4], expected[[1, 3], 6] = 2, 3
    expected[4:, 6] = 4  # the last place stands for what follows
    assert torch.equal(told, expected)


def test_a_file_of_before_places_means_what_it_meant() -> None:
    bias, logits = LabelBias.read({"tokens": [2, 5], "values": [1.0, -1.0]}), torch.zeros(3, 6)
    expected = torch.zeros(3, 6)
    expected[:, 2], expected[:, 5] = 1, -1
    assert torch.equal(bias.added_to(logits, torch.arange(3)), expected)
    assert LabelBias.read(asdict(bias)) == bias


def test_a_token_that_no_option_has_there_is_left_out_of_the_fit() -> None:
    logits, places = torch.zeros(4, 6), torch.tensor([0, 1, 0, 1])
    bias = fitted([[2, 3], [0]], logits, torch.tensor([2, 0, 3, 5]), places)  # one answer was cut
    again = fitted([[2, 3], [0]], logits[:3], torch.tensor([2, 0, 3]), places[:3])
    assert bias == again


def test_a_certain_answer_is_told_apart_by_the_frequencies_of_the_labels() -> None:
    # A model that says nothing about two labels: the bias is their log odds, up to the small pull towards 0.
    logits = torch.full((100, 8), -40.0)
    logits[:, [2, 5]] = 0
    bias = fitted([[2, 5]], logits, torch.tensor([2] * 75 + [5] * 25), torch.zeros(100))
    (less, more), wanted = reversed(bias.values[0]), math.log((75 + 16) / (25 + 16))
    assert abs(more - less - wanted) < 0.01


@given(BOUND)
def test_a_label_that_no_row_has_can_still_be_predicted(seed: int) -> None:
    """The model would rather say something else; of the labels it knows which is right. One is not in the rows."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([3, 7, 11])
    wanted = labels[torch.randint(3, (30,), generator=generator)]
    logits = 0.1 * torch.randn(30, 20, generator=generator)
    logits[:, 0] += 12.0
    logits[torch.arange(30), wanted] += 4.0
    trained = wanted != 11
    assume({3, 7} <= set(wanted[trained].tolist()))

    bias = fitted([labels.tolist()], logits[trained], wanted[trained], torch.zeros(int(trained.sum())))
    assert bias.values[0][2] == min(bias.values[0][:2]) > 4
    said = bias.added_to(logits, torch.zeros(30, dtype=torch.long)).argmax(1)
    assert torch.equal(said, wanted)


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
    assert label_tokens(rows, None) == [[7, 9], [4], [0]]
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


@pytest.mark.parametrize("kind", ["choice", "generate"])
def test_what_is_written_has_no_bias_though_its_rows_have_options(kind: str, tmp_path: Path) -> None:
    row = {"question": "What is two and one?", "options": ["A)1", "B)3", "C)9"]}
    path = write_rows(tmp_path / "rows.jsonl", [row | {"correct": letter} for letter in "BBAB"])
    client = {"name": "c", "model": "zoo:llama", "task": {"preset": "aqua", "kind": kind}}
    client |= dict.fromkeys(("train", "validation", "test"), str(path))
    experiment = parse_config({"anchors": ANCHORS, "device": "cpu", "method": "local", "clients": [client]})
    context = ClientContext(experiment.clients[0], experiment, ModelPool("cpu"))
    assert all(example.options == (" A", " B", " C") for example in context.data.train.examples)
    assert (context.passes.bias is not None) is (kind == "choice")
    assert len(context.telling) == (3 if kind == "choice" else 0)


def rows_fitted_to(client: dict[str, str], monkeypatch: pytest.MonkeyPatch, **changes: object) -> list[Encoded]:
    """The rows that a client's label bias is fitted to."""
    seen: list[list[Encoded]] = []

    def spy(model: object, rows: list[Encoded], *rest: object) -> list[Heard]:
        seen.append(list(rows))
        return heard(model, rows, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("h2tune.participant.context.heard", spy)
    plain = {"anchors": ANCHORS, "device": "cpu", "method": "local", "clients": [client]}
    experiment = parse_config(plain | changes)
    context = ClientContext(experiment.clients[0], experiment, ModelPool("cpu"))
    assert context.passes.bias is not None
    (rows,) = seen
    if len(rows) == len(context.data.train):
        assert rows == list(context.data.train.encoded)  # in their order
    return rows


def test_of_many_rows_the_bias_is_fitted_to_a_sample_that_the_seed_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"sentence": f"number {i}", "label": i % 2} for i in range(30)]
    client = {"name": "c", "model": "zoo:llama", "task": {"preset": "sst2", "kind": "choice"}}
    client |= dict.fromkeys(("train", "validation", "test"), str(write_rows(tmp_path / "rows.jsonl", rows)))
    assert len(rows_fitted_to(client, monkeypatch)) == 30 <= label_bias.MOST_ROWS <= 2048
    monkeypatch.setattr(label_bias, "MOST_ROWS", 12)
    first = rows_fitted_to(client, monkeypatch)
    assert len(first) == 12 and first == rows_fitted_to(client, monkeypatch, method="fedit")
    other = rows_fitted_to(client, monkeypatch, seed=1)
    assert len(other) == 12 and first != other


@given(BOUND)
def test_a_sample_holds_a_row_of_each_answer(seed: int) -> None:
    rows = [Encoded([1, 2, i], [-100, -100, 7 if i == 9_000 else i % 2]) for i in range(10_000)]
    drawn = fitted_to(rows, seed)
    assert len(drawn) in (label_bias.MOST_ROWS, label_bias.MOST_ROWS + 1)
    assert sum(row.labels[-1] == 7 for row in drawn) == 1
    assert drawn == fitted_to(rows, seed)


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
    assert trained.passes.bias is not None and asdict(trained.passes.bias) == kept
    metrics = json.loads((finished / "metrics.json").read_text())
    rows = [json.loads(line) for line in (finished.parent / "rows.jsonl").read_text().splitlines()]
    right = [p["prediction"] == ("positive" if row["label"] else "negative")
             for p, row in zip(predict(finished, "one", finished.parent / "rows.jsonl"), rows, strict=True)]  # fmt: skip
    assert sum(right) / len(right) == metrics["clients"]["one"]["final"]["metric"]


def test_an_export_tells_the_bias(finished: Path, tmp_path: Path) -> None:
    export(finished, "one", tmp_path / "out")
    told = json.loads((tmp_path / "out" / "task.json").read_text())["label_bias"]
    kept = json.loads((finished / "clients" / "one" / "label_bias.json").read_text())
    assert [[int(token) for token in place] for place in told] == kept["tokens"]
    assert [list(place.values()) for place in told] == kept["values"]
    assert "## Label bias" in (tmp_path / "out" / "README.md").read_text()
