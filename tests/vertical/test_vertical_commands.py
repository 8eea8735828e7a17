"""The commands on a vertical file, as a user runs them; and predictions for any subset of parties."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml
from vertical.tables import config as planted_config
from vertical.tables import planted

from h2tune.cli import vertical as commands
from h2tune.config import ConfigError
from h2tune.utils.files import StoreError
from h2tune.vertical.align import AlignmentError
from h2tune.vertical.attention import near_ids
from h2tune.vertical.config import is_vertical, is_vertical_run, load_vertical
from h2tune.vertical.demo import write_demo
from h2tune.vertical.exposure import SAID
from h2tune.vertical.federation import load_parties
from h2tune.vertical.plan import make_plan
from h2tune.vertical.predictor import Predictor
from h2tune.vertical.run_store import VerticalStore
from h2tune.vertical.table import TableError


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of the generated federation."""
    folder = tmp_path_factory.mktemp("vertical")
    file = write_demo(folder / "data")
    file.write_text(
        file.read_text().replace(
            "rounds: 40", "rounds: 8\nmethod: {warmup: 3}\ntraining: {dim: 8, hidden: 16, local_steps: 10}"
        )
    )
    commands.train(file, folder / "run", quiet=True)
    return folder


def test_a_run_leaves_metrics_and_a_report(demo: Path):
    metrics = json.loads((demo / "run" / "metrics.json").read_text())
    assert metrics["parties"] == ["bank", "clinic", "shop"] and metrics["unseen"] == [4]
    assert metrics["final"]["unseen"] > 0.5 and 0 < metrics["history"][-1]["kept"]["shop"] <= 1
    page = (demo / "run" / "report.html").read_text()
    assert metrics["alone"]["unseen"] == 0 and metrics["alone"]["balanced"] < metrics["final"]["balanced"]
    assert "bank alone has" in page and "rare (unseen)" in page and page.count("<svg") >= 7 and "<script" not in page
    assert is_vertical_run(demo / "run") and is_vertical(demo / "data" / "vertical.yaml")
    sent = metrics["bytes"]["shop"]["step"]["up"]
    assert sent > metrics["rounds"] * 10 * 64 * 8 * 4


def test_plan_states_the_bytes_that_a_run_sends(demo: Path, capsys: pytest.CaptureFixture[str]):
    found = commands.plan(demo / "data" / "vertical.yaml")
    shown = capsys.readouterr()
    assert "150 aligned people, 5 classes" in shown.out and "label_dp" in shown.err
    page = (demo / "run" / "report.html").read_text()
    assert all(line in shown.out and line in page for line in SAID.values())
    metrics = json.loads((demo / "run" / "metrics.json").read_text())
    for party in found.parties[1:]:
        sent = metrics["bytes"][party.name]
        for way, planned in (("up", party.bytes_up), ("down", party.bytes_down)):
            real = sum(sent[kind][way] for kind in ("step", "local")) / metrics["rounds"]
            assert planned == pytest.approx(real, rel=0.05)


def test_plan_finds_the_mistakes_that_a_run_would():
    frames = planted()
    strangers = frames | {"shop": (frames["shop"][0].assign(id=[f"s{i}" for i in range(200)]), frames["shop"][1])}
    with pytest.raises(AlignmentError, match="shop and bank have no id in common"):
        make_plan(planted_config(), strangers)
    with pytest.raises(AlignmentError, match="Nobody can know the class 'class-4'"):
        make_plan(planted_config(classes=5), frames)
    coded = frames["shop"][0].assign(code=["class-1" if i % 3 else None for i in range(200)])
    found = make_plan(planted_config(), frames | {"shop": (coded, frames["shop"][1].assign(code=None))})
    assert any("shop: the values of column 'code' are names of classes" in text for text in found.warnings)
    with pytest.raises(TableError, match=r"shop \(test table\): there is no column 'code'"):
        make_plan(planted_config(), frames | {"shop": (coded, frames["shop"][1])})


def test_plan_reports_ids_that_nearly_match():
    assert near_ids(["A-1", "b2", "x9"], ["a1", "B2", "y8"]) == ("without punctuation", 1)
    assert near_ids(["007"], ["7"]) == ("by their digits without leading zeros", 1)
    assert near_ids(["ID 12"], ["12"]) == ("by their digits alone", 1)
    # One party's program took the ids for numbers; punctuation left out, 12.0 would be 120, which may be another's.
    assert near_ids(["12.0", "13.00", "14.5"], ["12", "13", "120"]) == ("without the .0 of numbers", 2)
    assert near_ids(["B-00001"], ["S-00001"]) is None  # other people, numbered alike


def test_a_plan_as_json_says_its_mistakes_as_json(demo: Path, capsys: pytest.CaptureFixture[str]):
    text = (demo / "data" / "vertical.yaml").read_text()
    for old, new, kind, said in (
        ("rounds:", "sed: 1\nrounds:", ConfigError, "sed: unknown key. Did you mean `seed`?"),
        ("by: id", "by: nobody", TableError, "bank: there is no id column 'nobody'"),
    ):
        (demo / "data" / "wrong.yaml").write_text(text.replace(old, new))
        with pytest.raises(kind):
            commands.plan(demo / "data" / "wrong.yaml", as_json=True)
        problems = json.loads(capsys.readouterr().out)["problems"]
        assert said in problems[0] and all(isinstance(problem, str) for problem in problems)


def test_predictions_use_whoever_knows_a_person(demo: Path, tmp_path: Path):
    data = demo / "data"
    shop = pd.read_csv(data / "new_shop.csv")
    shop.iloc[5:].to_csv(tmp_path / "shop.csv", index=False)
    answers = commands.predict(
        demo / "run", [f"bank={data / 'new_bank.csv'}", f"shop={tmp_path / 'shop.csv'}"], tmp_path / "out.jsonl"
    )
    assert len(answers) == 20 == len((tmp_path / "out.jsonl").read_text().splitlines())
    assert [a["parties"] for a in answers[:6]] == [["bank"]] * 5 + [["bank", "shop"]]
    assert all(sum(a["probabilities"].values()) == pytest.approx(1, abs=1e-4) for a in answers)
    assert all(a["probabilities"]["rare"] == 0 for a in answers)  # the clinic alone has seen that class


def test_an_export_answers_as_the_run_does_and_holds_nothing_of_others(demo: Path, tmp_path: Path):
    out = commands.export(demo / "run", "bank,shop", tmp_path / "part")
    files = {"bank": demo / "data" / "new_bank.csv", "shop": demo / "data" / "new_shop.csv"}
    part = Predictor(out)
    assert part.here == ["bank", "shop"] and not (out / "clients" / "clinic").exists()
    whole = Predictor(demo / "run").predict(files)
    for mine, theirs in zip(part.predict(files), whole, strict=True):
        # `rare` is known to the clinic alone: without it the class cannot be named.
        assert "rare" not in (mine["class"],) and mine["probabilities"]["rare"] == 0
        assert mine["id"] == theirs["id"]
    assert part.top.nu[1].abs().sum() == 0
    with pytest.raises(TableError, match="clinic is not among the parties here"):
        part.predict({"clinic": files["bank"]})
    with pytest.raises(StoreError, match="not empty"):
        commands.export(demo / "run", None, out)


def test_an_export_is_whole_or_nothing_and_tells_nothing_of_others(demo: Path, tmp_path: Path):
    with pytest.raises(TableError, match="nobody is not among the parties here: bank, clinic, shop"):
        commands.export(demo / "run", "bank,nobody", tmp_path / "half")
    assert not (tmp_path / "half").exists()
    with pytest.raises(StoreError, match="No party is named"):
        commands.export(demo / "run", ",", tmp_path / "none")
    part = commands.export(demo / "run", " bank , shop ", tmp_path / "part")
    told = yaml.safe_load((part / "config.yaml").read_text())
    assert [party["name"] for party in told["parties"]] == ["bank", "shop"]
    assert "clinic" not in (part / "config.yaml").read_text()
    without = commands.export(demo / "run", "clinic,shop", tmp_path / "without")
    told = yaml.safe_load((without / "config.yaml").read_text())
    assert told["parties"][2] == {"name": "bank", "train": "-"} and told["label"]["column"] == "-"
    assert "bank.csv" not in (without / "config.yaml").read_text()
    answers = Predictor(without).predict({"shop": demo / "data" / "new_shop.csv"})
    assert answers == Predictor(demo / "run").predict({"shop": demo / "data" / "new_shop.csv"})


def test_a_number_beyond_all_measure_is_a_missing_cell(demo: Path):
    table = pd.read_csv(demo / "data" / "new_bank.csv", dtype=str)
    column = next(c for c in table if c != "id" and pd.to_numeric(table[c], errors="coerce").notna().all())
    model = Predictor(demo / "run")
    missing = model.predict({"bank": table.assign(**{column: "inf"})})
    for value in ("1e300", "-1e30", "1e16"):
        assert model.predict({"bank": table.assign(**{column: value})}) == missing
    assert all(0 <= p <= 1 for answer in missing for p in answer["probabilities"].values())


def test_files_are_given_by_party_and_a_path_may_have_commas(demo: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="write party=file"):
        commands.predict(demo / "run", ["bank.csv"])
    data, odd, out = demo / "data", tmp_path / "new, of may.csv", tmp_path / "out.jsonl"
    odd.write_bytes((data / "new_bank.csv").read_bytes())
    plain = commands.predict(demo / "run", [f"bank={data / 'new_bank.csv'}", f"shop={data / 'new_shop.csv'}"], out)
    for files in ([f"bank={odd},shop={data / 'new_shop.csv'}"], [f" shop = {data / 'new_shop.csv'} , bank = {odd}"]):
        assert commands.predict(demo / "run", files, out) == plain


def test_a_run_is_not_overwritten_and_a_changed_config_is_noticed(demo: Path, tmp_path: Path):
    file = demo / "data" / "vertical.yaml"
    with pytest.raises(StoreError, match="holds a run already"):
        commands.train(file, demo / "run", quiet=True)
    with pytest.raises(StoreError, match="config differs"):
        commands.train(file, demo / "run", resume=True, seed=9, quiet=True)
    with pytest.raises(StoreError, match="no finished vertical run"):
        commands.report(tmp_path)


def test_compare_pairs_methods_by_seed(demo: Path, tmp_path: Path):
    file = demo / "data" / "vertical.yaml"
    result = commands.compare(file, "local,splitnn,fedcvt,fedhssl", 2, tmp_path / "compare", as_json=True)
    rows = {row["method"]: row for row in result["methods"]}
    assert rows["local"]["interval"][0] < rows["splitnn"]["interval"][0]
    assert rows["local"]["best_other"] != "local" and rows["local"]["over"][0] < 0
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "compare").glob("*-seed*.json")}
    assert len(before) == 8
    commands.compare(file, "local,splitnn", 2, tmp_path / "compare", as_json=True)
    assert all(p.stat().st_mtime_ns == when for p, when in before.items())
    cells = [json.loads(p.read_text())["scores"]["balanced"] for p in before]
    assert all(0 <= end <= 1 for row in rows.values() for end in row["interval"]) and min(cells) > 0
    with pytest.raises(ConfigError, match="there is no vertical method 'splitn'"):
        commands.compare(file, "splitn", 1, tmp_path / "other")


def test_a_method_that_has_no_messages_is_not_run(demo: Path, tmp_path: Path):
    config = load_vertical(demo / "data" / "vertical.yaml")
    named = config.model_copy(update={"method": config.method.model_copy(update={"name": "fedcvt"})})
    with pytest.raises(ConfigError, match="takes part in `h2tune compare`"):
        commands.train(named, tmp_path / "run", quiet=True)
    one = config.model_copy(update={"rounds": 2, "method": config.method.model_copy(update={"name": "splitnn"})})
    commands.train(one, tmp_path / "splitnn", quiet=True)
    assert load_vertical(tmp_path / "splitnn" / "config.yaml").method.select == "none"


def test_the_template_is_a_valid_config_once_its_files_are_there(tmp_path: Path):
    file = commands.init(tmp_path / "vertical.yaml")
    config = load_vertical(file)
    assert config.active.name == "bank" and len(config.passive) == 2
    with pytest.raises(TableError) as error:
        load_parties(config)
    names = ("bank.csv", "bank_test.csv", "notes.jsonl", "notes_test.jsonl", "insurer.csv", "insurer_test.csv")
    assert str(error.value).splitlines() == [f"There is no file {tmp_path / name}." for name in names]
    with pytest.raises(ConfigError, match="exists already"):
        commands.init(file)


@pytest.mark.parametrize(
    "name",
    ["run.json", "config.yaml", "server/predictor.json", "server/top.safetensors", "clients/shop/party.json",
     "clients/shop/encoder.safetensors"],
)  # fmt: skip
def test_a_damaged_file_of_a_model_is_named(name: str, demo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(demo / "run", folder)
    (folder / name).write_bytes(b"\xff{" + (folder / name).read_bytes())
    with pytest.raises(StoreError, match=f"{re.escape(str(folder / name))} is damaged: put it back"):
        if name == "run.json":
            VerticalStore(folder).open_vertical()
        Predictor(folder).predict({"shop": demo / "data" / "new_shop.csv"})
