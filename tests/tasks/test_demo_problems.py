"""The generated data of the demo."""

from __future__ import annotations

from collections import Counter

import pytest

from h2tune.tasks import TaskError, build_task, load_examples
from h2tune.tasks.demo_problems import TRADE_WORDS, demo_anchors, demo_problems
from h2tune.zoo import lexicon
from h2tune.zoo.corpus import FORMATS


def _story(prompt: str) -> str:
    return prompt.removeprefix("Problem: ").split("\n")[0]


def test_trade_words_are_new_and_balanced() -> None:
    everyday = {word for value in vars(lexicon).values() if isinstance(value, tuple) for word in value}
    assert not set(TRADE_WORDS) & everyday
    assert not {word[:-1] for word in TRADE_WORDS} & everyday
    assert Counter(TRADE_WORDS.values()) == {"+": 6, "-": 6, "*": 6}
    # Words that the pretraining text invents have two vowels; one keeps these apart from all of them.
    assert all(word.endswith("s") and sum(letter in "aeiou" for letter in word) == 1 for word in TRADE_WORDS)


@pytest.mark.parametrize("form", FORMATS)
def test_problems_are_deterministic_balanced_and_right(form: str) -> None:
    examples = demo_problems("train", form, 36, 3)
    assert examples == demo_problems("train", form, 36, 3) != demo_problems("train", form, 36, 4)
    assert len({example.prompt for example in examples}) == 36
    used = Counter(word for example in examples for word in TRADE_WORDS if f" {word} " in example.prompt)
    assert used == dict.fromkeys(TRADE_WORDS, 2)
    task = build_task(f"demo-{form}")
    for example in examples[:3]:
        assert task.score(example, example.answer) and not task.score(example, " 1")
        assert example.answer.startswith(" ")
    if form == "choice":
        assert all(len(set(e.options)) == 3 and e.answer in e.options for e in examples)


def test_splits_and_anchors_share_no_story() -> None:
    parts = {
        split: {_story(e.prompt) for form in FORMATS for seed in (0, 1) for e in demo_problems(split, form, 80, seed)}
        for split in ("train", "validation", "test")
    }
    parts["anchors"] = set(demo_anchors(200))
    assert len(set.union(*parts.values())) == sum(map(len, parts.values()))


def test_anchors_hold_both_vocabularies_and_no_answers() -> None:
    anchors = demo_anchors(120, 5)
    assert anchors == demo_anchors(120, 5) and len(set(anchors)) == 120
    trade = [story for story in anchors if any(f" {word} " in story for word in TRADE_WORDS)]
    assert len(trade) == 60
    assert all(story.endswith(" now?") for story in anchors)


def test_as_a_source() -> None:
    examples = load_examples("demo:choice?seed=2&n=10&split=test", build_task("demo-choice"))
    assert examples == demo_problems("test", "choice", 10, 2)
    assert len(load_examples("demo:fill", build_task("demo-fill"), split="test")) == 60
    for source in ("demo:nope", "demo:fill?n=x", "demo:fill?m=3", "demo:fill?split=dev"):
        with pytest.raises(TaskError, match="demo"):
            load_examples(source, build_task("demo-fill"))
