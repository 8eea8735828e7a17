"""Runs and comparisons that are gone on with: other tables or another config are noticed, and named."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml
from vertical.tables import PARTIES, config, planted

from h2tune.cli import vertical as commands
from h2tune.config import ConfigError
from h2tune.report.vertical_page import write_vertical_report
from h2tune.utils.files import Claim, StoreError
from h2tune.vertical.compare import compare_methods
from h2tune.vertical.config import load_vertical
from h2tune.vertical.federation import run
from h2tune.vertical.predictor import Predictor
from h2tune.vertical.run_store import VerticalStore
from h2tune.vertical.table import TableError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A small federation in files."""
    for name, (train, test) in planted(tests=20, alone=20, aligned=40).items():
        train.to_csv(tmp_path / f"{name}.csv", index=False)
        assert test is not None
        test.to_csv(tmp_path / f"{name}_test.csv", index=False)
    plain = config(rounds=2).model_dump(mode="json", exclude_defaults=True)
    plain["parties"] = [{"name": n, "train": f"{n}.csv", "test": f"{n}_test.csv"} for n in PARTIES]
    path = tmp_path / "vertical.yaml"
    path.write_text(yaml.safe_dump(plain))
    return path


def edited(file: Path, **changes: object) -> None:
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | changes))


class Stopped(Exception):
    pass


class StopsAfterOneRound:
    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []

    def round_done(self, record: object, rounds: int) -> None:
        raise Stopped

    def message(self, text: str, level: str = "info") -> None:
        self.said.append((level, text))


def begun(file: Path, out: Path) -> StopsAfterOneRound:
    watcher = StopsAfterOneRound()
    with pytest.raises(Stopped):
        run(file, out, watcher=watcher)
    return watcher


@pytest.mark.parametrize("edit", [lambda t: t.iloc[:30], lambda t: t.drop(columns="x1"), lambda t: t.assign(x1=7.0)])
def test_a_run_is_not_resumed_on_other_data(file: Path, tmp_path: Path, edit):
    begun(file, tmp_path / "run")
    table = tmp_path / "shop.csv"
    old = table.read_bytes()
    edit(pd.read_csv(table)).to_csv(table, index=False)
    with pytest.raises(StoreError) as error:
        run(file, tmp_path / "run", resume=True)
    assert str(error.value) == (
        f"The data of this run have changed since it began: shop.train ({table}). Put the old files back, or begin anew"
        " with another --out"
    )
    table.write_bytes(old)
    assert run(file, tmp_path / "run", resume=True)["rounds"] == 2


def test_class_vectors_may_lie_elsewhere_as_long_as_they_are_the_same(tmp_path: Path):
    """As those of a kit that was moved."""
    frames, paths = planted(), [tmp_path / "a.csv", tmp_path / "b.csv"]
    for path in paths:
        path.write_text("class,a\n" + "".join(f"class-{c},{c}\n" for c in range(4)))
    label = {"party": "bank", "column": "kind", "classes": [f"class-{c}" for c in range(4)]}
    first, second, none = (config(rounds=1, label=label | {"vectors": v and str(v)}) for v in (*paths, None))
    run(first, tmp_path / "run", frames=frames)
    run(second, tmp_path / "run", frames=frames, resume=True)
    with pytest.raises(StoreError, match=r"differs from that of the run in .* in label\.vectors"):
        run(none, tmp_path / "run", frames=frames, resume=True)
    paths[1].write_text(paths[1].read_text().replace("class-1,1", "class-1,7"))
    with pytest.raises(StoreError, match=r"changed since it began: label\.vectors"):
        run(second, tmp_path / "run", frames=frames, resume=True)


def test_tables_in_memory_are_held_against_those_of_the_beginning(tmp_path: Path):
    frames, settings = planted(), config(rounds=1)
    run(settings, tmp_path, frames=frames)
    run(settings, tmp_path, frames=frames, resume=True)
    other = frames | {"shop": (frames["shop"][0].iloc[1:], frames["shop"][1])}
    with pytest.raises(StoreError, match=r"changed since it began: shop\.train\. Put"):
        run(settings, tmp_path, frames=other, resume=True)


def test_a_changed_config_is_told_by_its_keys_and_the_order_of_parties_is_no_change(file: Path, tmp_path: Path):
    begun(file, tmp_path / "run")
    parties = yaml.safe_load(file.read_text())["parties"]
    edited(file, parties=[parties[0], parties[2], parties[1] | {"columns": ["x1"]}], rounds=3)
    with pytest.raises(StoreError, match=r"config differs .* in parties\.clinic\.columns, rounds\. Put it back"):
        run(file, tmp_path / "run", resume=True)
    edited(file, parties=parties[::-1], rounds=2)
    assert run(file, tmp_path / "run", resume=True)["rounds"] == 2


def test_a_run_that_has_not_ended_says_how_it_is_ended(file: Path, tmp_path: Path):
    out = tmp_path / "run"
    begun(file, out)
    for use in (Predictor, write_vertical_report):
        with pytest.raises(StoreError, match=rf"let it end first \(h2tune run FILE --out {out} --resume\)"):
            use(out)


def test_a_run_says_what_plan_says_of_the_tables(file: Path, tmp_path: Path):
    table = pd.read_csv(tmp_path / "shop.csv")
    table.assign(x1=[f"{i},5 €" for i in range(len(table))]).to_csv(tmp_path / "shop.csv", index=False)
    test = pd.read_csv(tmp_path / "shop_test.csv")
    test.assign(x1="0,5 €").to_csv(tmp_path / "shop_test.csv", index=False)
    (said,) = begun(file, tmp_path / "run").said
    assert said[0] == "warning" and "shop: column 'x1' holds many different values such as '0,5 €'" in said[1]
    assert said[1] in commands.plan(file, as_json=True).warnings


def compared(file: Path, out: Path) -> dict:
    return compare_methods(load_vertical(file), ["local"], 2, out)


def test_finished_cells_are_of_one_config_and_the_same_data(file: Path, tmp_path: Path):
    out = tmp_path / "compare"
    first = compared(file, out)
    edited(file, name="renamed")
    assert compared(file, out)["methods"] == first["methods"]
    edited(file, rounds=3, training={"steps": 5})
    with pytest.raises(StoreError, match=r"local-seed0.json holds .* in rounds, training.batch, .*Use another --out"):
        compared(file, out)
    edited(file, rounds=2, training=config().training.model_dump())
    compared(file, out)
    table = pd.read_csv(tmp_path / "bank_test.csv")
    table.iloc[:10].to_csv(tmp_path / "bank_test.csv", index=False)
    with pytest.raises(StoreError, match=r"changed since it began: bank\.test\. Use another --out"):
        compared(file, out)
    (out / "local-seed0.json").write_text('{"balanced": 0.5}')
    with pytest.raises(StoreError, match="does not say which config and data"):
        compared(file, out)


def test_a_comparison_without_labelled_test_people_says_so(file: Path, tmp_path: Path):
    table = pd.read_csv(tmp_path / "bank_test.csv").assign(kind=None)
    table.to_csv(tmp_path / "bank_test.csv", index=False)
    with pytest.raises(TableError, match=r"bank \(test table\): no row of it has a label in 'kind'"):
        compared(file, tmp_path / "compare")
    assert any("no test person has a label" in text for text in commands.plan(file, as_json=True).warnings)
    parties = yaml.safe_load(file.read_text())["parties"]
    edited(file, parties=[parties[0] | {"test": None}, *parties[1:]])
    with pytest.raises(TableError, match="it has no test table"):
        compared(file, tmp_path / "compare")
    with pytest.raises(ConfigError, match="--methods names none"):
        commands.compare(file, " ,", 1, tmp_path / "compare")


def test_a_run_that_another_process_carries_on_is_refused_and_let_go_after_a_stop(file: Path, tmp_path: Path) -> None:
    begun(file, tmp_path / "run")
    other = Claim(tmp_path / "run")
    other.take()
    with pytest.raises(StoreError, match="is in use: another process trains there"):
        run(file, tmp_path / "run", resume=True)
    other.give_up()
    assert run(file, tmp_path / "run", resume=True)["rounds"] == 2


def test_nothing_of_a_run_that_another_process_has_just_begun_is_overwritten(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    store = VerticalStore(out)
    store.create_for(load_vertical(file), "0" * 32)  # as far as a run is before its first commit
    before = {path: path.read_bytes() for path in (out / "config.yaml", out / "run.json")}
    other = Claim(out)
    other.take()
    edited(file, rounds=1)
    with pytest.raises(StoreError, match="is in use: another process trains there"):
        run(file, out, resume=True)
    assert {path: path.read_bytes() for path in before} == before
    other.give_up()
    assert run(file, out, resume=True)["rounds"] == 1
    with pytest.raises(StoreError, match="holds a run already"):  # committed meanwhile, by a process that has ended
        store.create_for(load_vertical(file), "1" * 32, resume=True)


def test_a_folder_is_claimed_before_a_new_run_writes_to_it(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    other = Claim(out)
    other.take()
    with pytest.raises(StoreError, match="is in use: another process trains there"):
        run(file, out)
    assert [path.name for path in out.iterdir()] == [".lock"]
    other.give_up()
    assert run(file, out)["rounds"] == 2
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="is not empty and holds no run"):
        run(file, tmp_path / "else")
    assert [path.name for path in (tmp_path / "else").iterdir()] == ["notes.txt"]


def test_a_run_that_diverges_ends_with_figures_and_a_report_that_says_so(file: Path, tmp_path: Path) -> None:
    training = yaml.safe_load(file.read_text())["training"] | {"learning_rate": 1e18}
    edited(file, training=training)
    out = tmp_path / "run"
    commands.train(file, out, quiet=True)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    written = [out / "metrics.json", out / "events.jsonl", out / "predictions.jsonl"]
    for path in written:
        for text in path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
            json.loads(text, parse_constant=refuse)
    history = json.loads(written[0].read_text())["history"]
    assert [record["loss"] for record in history] == [None, None]
    assert "The loss is not a number in 2 of 2 rounds, first in round 1" in (out / "report.html").read_text()


def test_a_run_taken_up_says_in_which_form_it_is_kept_from_then_on(file: Path, tmp_path: Path) -> None:
    config, store = load_vertical(file), VerticalStore(tmp_path / "run")
    store.create_for(config, "0" * 32)
    about = tmp_path / "run" / "run.json"
    now = json.loads(about.read_text())
    about.write_text(json.dumps(now | {"schema": now["schema"] - 1}))
    store.open_vertical()  # who only reads changes nothing
    assert json.loads(about.read_text())["schema"] == now["schema"] - 1
    store.open_vertical(config)
    assert json.loads(about.read_text()) == now
    about.write_text(json.dumps(now | {"schema": now["schema"] + 1, "version": "99"}))
    with pytest.raises(StoreError, match="made by h2tune 99, which is newer"):
        store.open_vertical()
