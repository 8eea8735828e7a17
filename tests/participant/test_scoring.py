"""Scoring: likelihood choice, generation and the unigram yardstick, on a model whose answers are known."""

from __future__ import annotations

import math

import pytest
import torch

from h2tune import tasks
from h2tune.participant.base_models import ModelPool
from h2tune.participant.scoring import choose, generate, score, unigram_nats
from h2tune.tasks.example import Example
from h2tune.tasks.prompts import Encoded, encode


@pytest.fixture(scope="module")
def base():
    return ModelPool("cpu").get("zoo:llama")


def test_unigram_by_hand() -> None:
    train = [Encoded([5, 6, 7], [-100, 6, 7]), Encoded([5, 6], [-100, 6])]
    test = [Encoded([5, 6, 8], [-100, 6, 8])]
    # counts: 6 twice, 7 once; add one over a vocabulary of 10
    assert unigram_nats(train, test, 10) == pytest.approx(-(math.log(3 / 13) + math.log(1 / 13)) / 2)
    assert unigram_nats(train, [Encoded([1], [], 0)], 10) is None


def test_nats_equal_the_models_own_loss(base) -> None:
    task = tasks.build_task("demo-fill")
    examples = tasks.load_examples("demo:fill?split=test&n=5", task)
    data = encode(examples, base.tokenizer, max_length=512)
    found = score(base.model, base.tokenizer, task, examples, data, batch_size=2).nats
    total, count = 0.0, 0
    for row in data:
        ids, labels = torch.tensor([row.input_ids]), torch.tensor([row.labels])
        asked = sum(label != -100 for label in row.labels)
        total += float(base.model(input_ids=ids, labels=labels).loss) * asked
        count += asked
    assert found == pytest.approx(total / count, rel=1e-4)


def test_generation_does_not_depend_on_the_batch(base) -> None:
    prompts = [base.tokenizer(t)["input_ids"] for t in ("Problem: Tom has 9 nuts.", "9 + 2 = ", "Once upon a time")]
    together = generate(base.model, base.tokenizer, prompts, 6, size=3)
    alone = [generate(base.model, base.tokenizer, [p], 6)[0] for p in prompts]
    assert together == alone


def test_what_is_written_is_read_from_tensors_in_one_piece(base) -> None:
    """By a part of a tensor PyTorch multiplies frozen weights with a copy of them for each row."""
    read = []
    head = base.model.get_output_embeddings()
    hook = head.register_forward_hook(
        lambda module, args, output: read.append((args[0].shape, args[0].is_contiguous()))
    )
    try:
        generate(base.model, base.tokenizer, [[1, 5, 6, 7], [1, 5], [1, 6, 8]], 2, size=3)
    finally:
        hook.remove()
    width = base.model.config.hidden_size
    assert read == [((3, 1, width), True)] * 2
    assert not head._forward_pre_hooks


def test_choice_takes_the_likeliest_whole_option(base) -> None:
    example = Example("7 + 4 =", " 11", "11", options=(" 1", " 11", " 30"))
    assert choose(base.model, base.tokenizer, [example]) == [" 11"]


def test_examples_of_any_lengths_get_the_option_that_they_get_alone(base) -> None:
    sums = [(7, 4), (2, 3), (6, 6), (9, 1)]
    prompts = ["So " * (5 * (i % 3)) + f"{a} + {b} =" for i, (a, b) in enumerate(sums)]
    examples = [Example(p, " 5", "5", options=(" 5", " 11", " 12", " 3 or so")) for p in prompts]
    alone = [choose(base.model, base.tokenizer, [e])[0] for e in examples]
    assert len(set(alone)) > 1
    assert choose(base.model, base.tokenizer, examples, size=3) == alone
