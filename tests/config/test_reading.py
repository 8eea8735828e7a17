"""A mistake in a YAML file is told in plain words: which key of which client, what was expected, what stands there."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from federations import small

from h2tune.config import ConfigError, load_config, parse_config, read_yaml
from h2tune.frames.sources import load_anchors
from h2tune.methods.registry import MethodError, check_other_methods, resolve_method
from h2tune.plan import make_plan
from h2tune.tasks.custom import build_task
from h2tune.tasks.example import TaskError
from h2tune.vertical.config import parse_vertical

CLIENT = {"name": "shop", "model": "zoo:gpt2", "task": "sst2", "train": "a.tsv", "test": "b.tsv"}


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        ({"clients": [CLIENT], "rank": "eight"}, ["rank: should be a whole number, not 'eight'"]),
        ({"clients": [CLIENT], "rank": 0}, ["rank: should be 1 or more, not 0"]),
        ({"clients": [CLIENT], "parallel": "many"}, ["parallel: should be a whole number or 'auto', not 'many'"]),
        ({"clients": [CLIENT], "select": "bst"},
         ["select: should be 'federated' or 'best', not 'bst'. Did you mean `best`?"]),
        ({"clients": [CLIENT], "evaluation": 7}, ["evaluation: should be a mapping, `key: value`, not 7"]),
        ({"clients": [CLIENT], "learning_rate": 1},
         ["learning_rate: unknown key here; it belongs to `training`: training: {learning_rate: ...}"]),
        ({"clients": []}, ["clients: needs 1 or more entries"]),
        ({"clients": [CLIENT | {"name": "Größe Klinik"}]},
         ["Größe Klinik: name: should have only letters from a to z, digits, dots, hyphens and underscores, and begin with a"
          " letter or a digit, not 'Größe Klinik'"]),
        ({"clients": [CLIENT], "name": "a/b"},
         ["name: should have only letters from a to z, digits, spaces, dots, hyphens and underscores, and begin with a letter"
          " or a digit, not 'a/b'"]),
        ({"clients": [CLIENT, CLIENT]}, ["two clients have the name 'shop'; names must be unique"]),
        ({"clients": [CLIENT | {"keep": "half"}]}, ["shop: keep: should be a number or 'auto', not 'half'"]),
        ({"clients": [CLIENT | {"ranks": 3}]},
         ["shop: ranks: unknown key here: `rank` is a key of the whole federation and cannot be set for one client"]),
        ({"clients": [CLIENT | {"tran": "x"}]}, ["shop: tran: unknown key. Did you mean `train`?"]),
        ({"clients": [CLIENT, {k: CLIENT[k] for k in ("model", "task", "train")}]},
         ["client 2: name: is missing", "client 2: test: is missing"]),
    ],
)  # fmt: skip
def test_every_mistake_is_a_line_in_plain_words(data: dict[str, Any], lines: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config(data)
    assert error.value.problems == lines


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ("clients: [{row_privacy: {clipp: 1, epsilon: 8}}]", "shop: row_privacy.clipp: unknown key. Did you mean `clip`?"),
        ("clients: [{row_privacy: {clip: 1, epsilom: 8}}]",
         "shop: row_privacy.epsilom: unknown key. Did you mean `epsilon`?"),
        ("clients: [{epsilon: 8}]",
         "shop: epsilon: unknown key here; it belongs to `row_privacy`: row_privacy: {epsilon: ...}"),
        ("clients: [{upload: 1MB}]", "shop: upload: unknown key here; it belongs to `budget`: budget: {upload: ...}"),
        ("clients: [{steps: 8}]",
         "shop: steps: unknown key here: it belongs to `training` of the whole federation and cannot be set for one client"),
        ("clients: [{batch_size: 8}]",
         "shop: batch_size: unknown key here: it belongs to `training` or `evaluation` of the whole federation and cannot be"
         " set for one client"),
        ("clients: [{budget: {epsilon: 8}}]",
         "shop: budget.epsilon: unknown key here; it belongs to `row_privacy`: row_privacy: {epsilon: ...}"),
        ("clients: [{budget: {keep: auto}}]", "shop: budget.keep: unknown key here; it belongs beside `budget`, not in it"),
        ("limit: 8", "limit: unknown key here; it belongs to `public` or `network`, for example public: {limit: ...}"),
        ("epsilon: 8", "epsilon: unknown key here; it belongs to `privacy`: privacy: {epsilon: ...}"),
        ("upload: 8", "upload: unknown key here; it belongs to `budget` of a client"),
        ("keep: .5", "keep: unknown key here; it belongs to each client"),
        ("training: {curves: true}",
         "training.curves: unknown key here; it belongs to `evaluation`: evaluation: {curves: ...}"),
        ("training: {rank: 8}", "training.rank: unknown key here; it belongs beside `training`, not in it"),
        ("training: {stepps: 8}", "training.stepps: unknown key. Did you mean `steps`?"),
        ("frames: words", "frames: is a setting of the method; write it there: method: {name: h2tune, frames: ...}"),
    ],
)  # fmt: skip
def test_a_key_in_the_wrong_place_is_sent_to_its_own(data: str, line: str) -> None:
    changes = yaml.safe_load(data)
    changes["clients"] = [CLIENT | changes.get("clients", [{}])[0]]
    with pytest.raises(ConfigError) as told:
        parse_config(changes)
    assert [text for text in told.value.problems if "is missing" not in text] == [line]


@pytest.mark.parametrize("number", [".inf", "-.inf", ".nan", "1e999"])
@pytest.mark.parametrize(
    "where", ["training: {learning_rate: X}", "privacy: {clip: X, noise: 1}", "network: {gather: X}",
              "methods: {local: {learning_rate: X}}", "blocks: X", "clients: [{keep: X}]", "clients: [{row_privacy: {clip: X}}]"]
)  # fmt: skip
def test_numbers_without_end_are_mistakes(where: str, number: str) -> None:
    """What a run keeps of its config is JSON, which has no such numbers."""
    with pytest.raises(ConfigError, match=r"finite number, not (-?inf|nan|'1e999')|keep: should be|keep must lie in"):
        parse_config({"clients": [CLIENT]} | yaml.safe_load(where.replace("X", number)))


def test_no_clipping_is_a_large_number() -> None:
    with pytest.raises(
        ConfigError, match=r"training\.clip: should be a finite number; to limit nothing, write a large one"
    ):
        parse_config({"clients": [CLIENT], "training": {"clip": math.inf}})


def test_methods_tasks_and_parties_have_finite_numbers_only() -> None:
    with pytest.raises(MethodError, match=r"method\.private: should be a finite number, not inf"):
        resolve_method({"name": "h2tune", "private": math.inf})
    with pytest.raises(MethodError, match=r"method\.weight: should be a finite number, not inf"):
        resolve_method({"name": "lada", "weight": math.inf})
    with pytest.raises(ConfigError, match=r"training\.learning_rate: should be a finite number, not inf"):
        parse_vertical(
            {"label": {"party": "bank", "column": "y"}, "parties": [], "training": {"learning_rate": math.inf}}
        )
    texts: dict[str, Any] = {"kind": "choice", "prompt": "{a}", "answer": "{b}", "options": ["fine", math.nan]}
    with pytest.raises(TaskError, match=r"options: YAML reads \.inf and \.nan as numbers"):
        build_task(texts)
    with pytest.raises(TaskError, match=r"labels: YAML reads \.inf and \.nan as numbers"):
        build_task(texts | {"options": ["fine", "bad"], "labels": {math.nan: "fine", 1: "bad"}})


def test_parties_are_named_too() -> None:
    with pytest.raises(ConfigError, match="bank: train: is missing"):
        parse_vertical({"label": {"party": "bank", "column": "y"}, "parties": [{"name": "bank"}, {"name": "b"}]})


def test_nothing_is_written_as_the_key_wants_it() -> None:
    with pytest.raises(MethodError, match="not 'none'; write 0 for none; null is the core's rank"):
        resolve_method({"name": "h2tune", "private": "none"})
    with pytest.raises(ConfigError, match="not 'none'; YAML's word for nothing is `null`"):
        parse_config({"clients": [CLIENT], "depth": "none"})


def test_a_baseline_that_is_no_method_is_found_by_plan_and_before_a_run() -> None:
    experiment = small(baseline="locl")
    with pytest.raises(MethodError, match=r"baseline: there is no method 'locl'. Did you mean `local`"):
        check_other_methods(experiment)
    assert any(problem.startswith("baseline: there is no") for problem in make_plan(experiment).problems)


@pytest.mark.parametrize(
    ("methods", "words"),
    [
        ({"locl": {}}, "methods: there is no method 'locl'. Did you mean `local`"),
        ({"local": {"rnk": 3}}, "methods.local.rnk: local has no such setting"),
        ({"h2tune": {"frames": 3}}, "methods.h2tune.frames: "),
    ],
)
def test_what_compare_changes_for_a_method_is_checked_by_plan(methods: Any, words: str) -> None:
    assert any(problem.startswith(words) for problem in make_plan(small(methods=methods)).problems)


def test_all_mistakes_in_other_methods_are_told_at_once() -> None:
    with pytest.raises(MethodError) as told:
        check_other_methods(small(baseline="locl", methods={"nope": {}, "local": {"rnk": 3}}))
    assert [line.split(":")[0] for line in str(told.value).splitlines()] == [
        "baseline",
        "methods",
        "methods.local.rnk",
    ]


def test_rates_and_ranks_of_compares_methods_are_numbers() -> None:
    with pytest.raises(ConfigError, match=r"methods\.local\.learning_rate: should be a number, not 'high'"):
        parse_config({"clients": [CLIENT], "methods": {"local": {"learning_rate": "high"}}})


@pytest.mark.parametrize(("key", "place"), [("anchors", "first"), ("anchor_words", "second")])
def test_texts_that_cannot_be_read_name_their_key(key: str, place: str, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("größe\n".encode("latin-1") * 30)
    for source, words in (("latin.txt", "is not UTF-8 text"), ("none.txt", "there is no file"), ("", "is a folder")):
        path = str(tmp_path / source)
        with pytest.raises(ValueError, match=f"{key}: .*{words}"):
            load_anchors(*((path, None) if place == "first" else ("builtin", path)))


def test_a_config_that_is_no_text_or_a_folder_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("clients: []", encoding="utf-16")
    with pytest.raises(ConfigError, match=r"not UTF-8 text .* save it as UTF-8"):
        load_config(tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match="is a folder; name the YAML file in it"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    "text", ["seed: 1\nrounds: 2\nseed: 2\n", "training: {steps: 3, steps: 4}\n", "clients:\n  - {name: a, name: b}\n"]
)
def test_a_key_that_stands_twice_is_named_with_its_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"(?s)the key '(seed|steps|name)' stands twice.*line \d"):
        read_yaml(path)
    path.write_text("a: &x {b: 1, c: 2}\nd: {<<: *x, b: 3}\n")
    assert read_yaml(path) == {"a": {"b": 1, "c": 2}, "d": {"b": 3, "c": 2}}


def test_a_limit_that_the_engine_cannot_hold_is_the_largest_that_it_can() -> None:
    """Runs and kits of earlier versions may hold more, and go on."""
    config = parse_config({"clients": [CLIENT], "network": {"limit": "4GB"}})
    assert config.network.largest == 2_000_000_000


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"device": "cudaa"}, "device"),
        ({"device": "meta"}, "device: should be auto, cpu, "),  # holds no weights
        (
            {"rounds": 2, "clients": [CLIENT | {"joins": 3}]},
            "shop would never take part: it joins in a round after the last, 2",
        ),
        ({"network": {"limit": "0B"}}, "must be at least 64KB"),
        ({"clients": [CLIENT | {"budget": {"upload": "1KB"}}]}, "budget has no effect without keep: auto"),
    ],
)
def test_keys_that_would_have_no_effect(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_config({"clients": [CLIENT]} | changes)


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1", "mps"])
def test_devices(device: str) -> None:
    assert parse_config({"clients": [CLIENT], "device": device}).device == device


def test_a_date_that_no_calendar_has_and_patterns_are_told_in_words(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text("name: 2026-02-30\n")
    with pytest.raises(ConfigError, match="not valid YAML: day is out of range"):
        load_config(path)
    path.write_text(small().to_yaml().replace("device: cpu", "device: gpu"))
    with pytest.raises(ConfigError, match=r"device: should be auto, cpu, cuda.*not 'gpu'"):
        load_config(path)


def test_the_seed_stands_in_every_source(tmp_path: Path) -> None:
    client = {key: f"{key}-{{seed}}.tsv" for key in ("train", "test", "validation", "practice")}
    data = {
        "clients": [CLIENT | client],
        "anchors": "anchors-{seed}.txt",
        "anchor_words": "words-{seed}.txt",
        "public": {"source": "demo:fill?seed={seed}&n=40", "task": "demo-fill"},
        "method": {"name": "h2tune", "frames": "words", "codes": "codes-{seed}.txt"},
        "methods": {"celora": {"codes": "codes-{seed}.txt"}},
    }
    found = parse_config(data, tmp_path, seed=3)
    read = found.clients[0]
    assert [Path(str(getattr(read, key))).name for key in client] == [f"{key}-3.tsv" for key in client]
    assert found.anchors == str(tmp_path / "anchors-3.txt") and found.anchor_words == str(tmp_path / "words-3.txt")
    assert found.public is not None and found.public.source == "demo:fill?seed=3&n=40"
    assert isinstance(found.method, dict) and found.method["codes"] == str(tmp_path / "codes-3.txt")
    assert found.methods["celora"].model_extra == {"codes": str(tmp_path / "codes-3.txt")}
    assert data["anchors"] == "anchors-{seed}.txt"
