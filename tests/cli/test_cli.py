"""The command line as a person runs it: what it prints, what it makes, and what it says to mistakes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from federations import small
from safetensors.torch import load_file
from typer.testing import CliRunner

from h2tune.cli.app import app
from h2tune.config import Experiment
from h2tune.config.hints import OF_THE_METHOD
from h2tune.methods.h2tune_settings import H2TuneSettings

RUNNER = CliRunner()


def call(*words: str) -> tuple[int, str, str]:
    result = RUNNER.invoke(app, list(words))
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "federation.yaml"
    path.write_text(small(rounds=1).to_yaml())
    return path


@pytest.fixture(scope="module")
def finished(file: Path) -> Path:
    out = file.parent / "run"
    code, stdout, stderr = call("run", str(file), "--out", str(out), "--quiet")
    assert code == 0, stderr
    assert "federated" in stdout and "report" in stdout
    return out


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    script = (
        "import sys; sys.argv = ['h2tune', '--help']\n"
        "from h2tune.cli.app import app\n"
        "try:\n    app()\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'transformers', 'peft', 'pydantic', 'pandas'} & set(sys.modules), sorted(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "..." not in done.stdout.partition("Commands:")[2]  # every sentence is whole
    for command in (
        "run",
        "plan",
        "demo",
        "report",
        "export",
        "predict",
        "init",
        "models",
        "tasks",
        "compare",
        "methods",
    ):
        assert command in done.stdout


def test_run_directory_and_report(finished: Path) -> None:
    for name in ("config.yaml", "events.jsonl", "metrics.json", "report.html", "server/core.safetensors"):
        assert (finished / name).is_file()
    page = (finished / "report.html").read_text()
    assert "<svg" in page and "c0" in page and "http" not in page.split("</style>")[1].split("xmlns")[0]
    (finished / "report.html").unlink()
    assert call("report", str(finished))[0] == 0
    assert (finished / "report.html").is_file()


def test_json_for_machines(file: Path, tmp_path: Path) -> None:
    code, stdout, _ = call("run", str(file), "--out", str(tmp_path / "run"), "--json")
    lines = [json.loads(line) for line in stdout.splitlines()]
    assert code == 0 and lines[-1]["event"] == "result" and lines[-1]["mean"]["final"] is not None
    assert all(isinstance(row["name"], str) for row in json.loads(call("models", "--json")[1]))
    assert {"gsm8k", "aqua", "program", "sst2", "qqp", "qnli"} <= {
        r["name"] for r in json.loads(call("tasks", "--json")[1])
    }


def test_exports_equal_the_client_and_plain_peft_loads_them(finished: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from h2tune.inference import load_client
    from h2tune.zoo import zoo_folder

    assert call("export", str(finished), "--client", "c0", "--to", "peft", "--out", str(tmp_path / "lora"))[0] == 0
    options = ("--to", "merged", "--dtype", "float32", "--out", str(tmp_path / "merged"))
    code, stdout, _ = call("export", str(finished), "--client", "c0", *options)
    assert code == 0 and re.search(
        r"merged in float32: [\d.]+ nats on 4 test rows, .* \(difference \d.\de[-+]\d+\)", stdout
    )
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["r"] == config["lora_alpha"]
    assert not config["rank_pattern"] and not config["alpha_pattern"]
    assert {"q_proj", "down_proj"} <= set(config["target_modules"])
    ids = torch.randint(3, 500, (2, 9))
    folder = zoo_folder("llama")
    with torch.no_grad():
        client = load_client(finished, "c0")[0](input_ids=ids).logits
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        plain = base(input_ids=ids).logits
        lora = PeftModel.from_pretrained(base, tmp_path / "lora").eval()(input_ids=ids).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)(input_ids=ids).logits
    assert torch.allclose(lora, client, atol=1e-5) and torch.allclose(merged, client, atol=1e-4)
    assert (lora - plain).abs().max() > 1e-3
    code, _, stderr = call("export", str(finished), "--client", "nobody", "--out", str(tmp_path / "x"))
    assert code == 1 and "c0, c1" in stderr


def test_predict_writes_no_file_where_a_folder_stands(finished: Path, tmp_path: Path) -> None:
    code, _, stderr = call("predict", str(finished), "--client", "c0", "--file", "x.jsonl", "--out", str(tmp_path))
    assert (code, stderr) == (1, f"error: --out names a file, but {tmp_path} is a folder.\n")


def test_predict_makes_no_answers_that_it_could_not_write(finished: Path) -> None:
    code, _, stderr = call("predict", str(finished), "--client", "c0", "--file", "x.jsonl", "--out", "/proc/x/y.jsonl")
    assert code == 1 and stderr.startswith("error: --out: the folder /proc/x cannot be made")


def test_the_adapter_of_a_client_is_not_looked_for_at_the_server(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "kit.json").write_text("{}")
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("adapter"))
    code, _, stderr = call("predict", str(tmp_path / "run"), "--client", "c0", "--file", "x.jsonl")
    assert code == 1 and "the adapter of c0 is in its own kit, on its own machine" in stderr


def test_time_is_not_measured_of_what_is_elsewhere_and_is_a_key_in_json(file: Path, tmp_path: Path) -> None:
    data = yaml.safe_load(file.read_text()) | {"baseline": "none"}
    code, stdout, stderr = call("plan", str(file), "--time", "--json")
    assert code == 0 and json.loads(stdout)["seconds"] > 0, stderr
    data["clients"][0]["model"] = "-"
    (tmp_path / "f.yaml").write_text(yaml.safe_dump(data))
    code, _, stderr = call("plan", str(tmp_path / "f.yaml"), "--time")
    assert code == 1 and "are on its own machine; measure there" in stderr


def test_a_run_where_no_folder_can_be_made_ends_in_a_sentence(file: Path) -> None:
    code, _, stderr = call("run", str(file), "--out", "/proc/x", "--quiet")
    assert code == 1 and "/proc/x" in stderr and "could not be written" in stderr


def test_a_folder_that_cannot_be_made_is_told_in_a_sentence(file: Path, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "afile").write_text("")
    inside = str(tmp_path / "afile" / "x")
    for words in (
        ["export", str(finished), "--client", "c0", "--out", inside],
        ["init", inside],
        ["init", inside, "--lada"],
    ):
        code, _, stderr = call(*words)
        assert code == 1 and "could not be" in stderr and "Traceback" not in stderr, words
    code, _, stderr = call("compare", str(file), "--out", str(tmp_path / "afile"))
    assert code == 1 and "is a file" in stderr


def test_options_that_contradict_the_file_are_told_before_anything_is_trained(file: Path, tmp_path: Path) -> None:
    best = tmp_path / "best.yaml"
    best.write_text(small(rounds=1, select="best", baseline=["local", "h2tune-unshared"]).to_yaml())
    code, _, stderr = call("run", str(best), "--no-baseline", "--out", str(tmp_path / "run"))
    assert code == 1 and "select: best needs baseline: local" in stderr and not (tmp_path / "run").exists()


def test_baseline_keeps_the_others_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Experiment] = []
    monkeypatch.setattr("h2tune.cli.run._train", lambda experiment, *rest: kept.append(experiment))
    for beside, wanted in (("h2tune-unshared", ["local", "h2tune-unshared"]), ("none", ["local"])):
        path = tmp_path / "file.yaml"
        path.write_text(small(rounds=1, baseline=beside).to_yaml())
        assert call("run", str(path), "--baseline")[0] == 0
        assert kept[-1].baselines == wanted


def test_predict_writes_json_that_everyone_reads_and_loses_no_column(finished: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.parquet"
    pd.DataFrame([{"prompt": "Two and two are", "x": float("nan")}, {"prompt": "One is", "x": 1.0}]).to_parquet(rows)
    code, stdout, stderr = call("predict", str(finished), "--client", "c0", "--file", str(rows))
    found = [json.loads(line, parse_constant=pytest.fail) for line in stdout.splitlines()]
    assert code == 0 and [row["x"] for row in found] == [None, 1.0], stderr
    pd.DataFrame([{"prompt": "One is", "prediction": "mine"}]).to_parquet(rows)
    code, _, stderr = call("predict", str(finished), "--client", "c0", "--file", str(rows))
    assert code == 1 and "a column 'prediction' already" in stderr


def test_predict_answers_rows_without_answers(finished: Path, tmp_path: Path) -> None:
    rows = tmp_path / "in.jsonl"
    rows.write_text('{"prompt": "Problem: Ann has 9 nuts. Ann finds 2. How many nuts now?\\nAnswer:"}\n')
    code, stdout, stderr = call("predict", str(finished), "--client", "c0", "--file", str(rows))
    assert code == 0, stderr
    assert isinstance(json.loads(stdout)["prediction"], str)


def test_adapter_folder_is_a_peft_adapter(finished: Path) -> None:
    tensors = load_file(finished / "clients" / "c0" / "adapter" / "adapter_model.safetensors")
    assert any("trilora_T" in name for name in tensors)


def test_init_writes_a_file_that_plans_after_filling_in(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    assert call("init", str(path))[0] == 0
    assert call("init", str(path))[0] == 1
    code, _, stderr = call("plan", str(path))
    assert code == 1 and "data/first/train.tsv" in stderr and "data/second/train.jsonl" in stderr


def test_plan_shows_figures_and_every_mistake_at_once(file: Path, tmp_path: Path) -> None:
    code, stdout, stderr = call("plan", str(file), "--json")
    plan = json.loads(stdout)
    assert code == 0, stderr
    llama = plan["clients"][0]
    # depth 5 of its own, 7 slots, rank 4, fp32
    assert (llama["bytes_up"], llama["bytes_down"]) == (5 * 7 * 16 * 4, 5 * 7 * 16 * 4)
    data = yaml.safe_load(file.read_text())
    data["clients"][0]["task"] = "sst3"
    data["clients"][1]["train"] = "nowhere.jsonl"
    data["rank"] = 4000
    bad = tmp_path / "bad.yaml"
    bad.write_text(yaml.safe_dump(data))
    code, _, stderr = call("plan", str(bad))
    assert code == 1
    for expected in ("sst2", "nowhere.jsonl", "rank 4000"):
        assert expected in stderr


@pytest.mark.parametrize(
    ("baselines", "said"), [([], "A run takes about"), (["local"], "A run, with local beside it, takes about")]
)
def test_a_plan_measures_time_where_asked(baselines: list[str], said: str, file: Path, tmp_path: Path) -> None:
    data = yaml.safe_load(file.read_text()) | {"baseline": baselines or "none"}
    timed = tmp_path / "timed.yaml"
    timed.write_text(yaml.safe_dump(data))
    code, stdout, stderr = call("plan", str(timed), "--time")
    assert code == 0, stderr
    assert re.search(rf"^{said} [0-9.]+ s on this machine", stdout, re.MULTILINE)
    assert "on this machine" not in call("plan", str(timed))[1]


def test_a_key_that_is_wrong_hides_no_mistake_in_the_data(file: Path, tmp_path: Path) -> None:
    data = yaml.safe_load(file.read_text()) | {"rondes": 2, "rank": -1, "privacy": {"clp": 1}}
    data["clients"][0] |= {"keep": 3, "train": "nowhere.jsonl"}
    data["clients"][1] |= {"task": "sst3"}
    bad = tmp_path / "bad.yaml"
    bad.write_text(yaml.safe_dump(data))
    code, stdout, stderr = call("plan", str(bad))
    assert (code, stdout) == (1, "")  # nothing is shown of a federation that is not the file's
    for expected in ("rondes: unknown key", "rank: should be", "keep", "privacy.clp", "nowhere.jsonl", "sst2"):
        assert expected in stderr


@pytest.mark.parametrize("clients", [3, [3], {"a": 2}, [{"name": "a"}], None], ids=str)
def test_where_nothing_is_left_without_the_mistakes_they_are_told_all_the_same(
    clients: object, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(yaml.safe_dump({"name": "x", "rounds": 0, "clients": clients}))
    code, _, stderr = call("plan", str(bad))
    assert code == 1 and "rounds: should be 1 or more, not 0" in stderr and stderr.count("error: ") > 1


def test_a_plan_promises_nothing_of_a_method_that_it_could_not_read(file: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"method": "h2tun"}))
    code, stdout, _ = call("plan", str(bad))
    assert code == 1 and "Nothing else leaves" not in stdout and "not known: the method has a mistake" in stdout


def test_settings_told_to_stand_under_the_method_are_some_of_it() -> None:
    assert set(OF_THE_METHOD) <= set(H2TuneSettings.model_fields)
    assert not set(OF_THE_METHOD) & set(Experiment.model_fields)


def test_planned_set_up_bytes_are_those_that_travel(file: Path, finished: Path) -> None:
    plan = json.loads(call("plan", str(file), "--json")[1])
    metrics = json.loads((finished / "metrics.json").read_text())
    for row in plan["clients"]:
        sent = metrics["clients"][row["name"]]["setup_bytes"]
        assert 0 <= sent["up"] - row["setup_bytes_up"] < 16_000
        assert 0 <= sent["down"] - row["setup_bytes_down"] < 16_000


MISTAKES = {
    "unknown key": (lambda d: d.update(learnig=1), "learnig: unknown key"),
    "key of the method": (lambda d: d.update(frames="anchor"), "write it there: method: {name: h2tune, frames: ...}"),
    "near key": (lambda d: d.update(round=3), "Did you mean `rounds`?"),
    "near client key": (lambda d: d["clients"][0].update(kep=0.5), "Did you mean `keep`?"),
    "near training key": (lambda d: d["training"].update(step=3), "Did you mean `steps`?"),
    "keep too large": (lambda d: d["clients"][0].update(keep=1.5), "keep must lie in (0, 1]"),
    "keep zero": (lambda d: d["clients"][0].update(keep=0.0), "keep must lie in (0, 1]"),
    "auto without budget": (lambda d: d["clients"][0].update(keep="auto"), "keep: auto needs a budget"),
    "duplicate names": (lambda d: d["clients"][1].update(name="c0"), "two clients have the name 'c0'"),
    "quorum": (lambda d: d.update(quorum=9), "can never be met"),
    "method": (lambda d: d.update(method="h2tun"), "Did you mean `h2tune`?"),
    "method setting": (lambda d: d.update(method={"name": "h2tune", "frame": "anchor"}), "Did you mean `frames`?"),
    "zoo name": (lambda d: d["clients"][0].update(model="zoo:lama"), "Did you mean zoo:llama?"),
    "no folder": (lambda d: d["clients"][0].update(model="./nothing"), "no model folder"),
    "task": (lambda d: d["clients"][0].update(task="gsm8"), "gsm8k"),
    "file": (lambda d: d["clients"][0].update(train="gone.jsonl"), "gone.jsonl"),
    "rank": (lambda d: d.update(rank=64), "rank 64 is larger"),
    "anchors": (lambda d: d.update(anchors="gone.txt"), "gone.txt"),
    "too long": (lambda d: d["clients"][0].update(max_length=10), "longer than 10 tokens"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_get_a_line_an_exit_code_and_leave_nothing(mistake: str, file: Path, tmp_path: Path) -> None:
    change, expected = MISTAKES[mistake]
    data = yaml.safe_load(file.read_text())
    change(data)
    bad = tmp_path / "bad.yaml"
    bad.write_text(yaml.safe_dump(data))
    code, stdout, stderr = call("run", str(bad), "--out", str(tmp_path / "run"), "--quiet")
    assert code == 1, stdout
    assert expected in stderr and "Traceback" not in stderr
    assert len(stderr.strip().splitlines()) <= 4
    assert not (tmp_path / "run").exists()


def test_model_folder_without_weights_or_tokenizer(file: Path, tmp_path: Path) -> None:
    from h2tune.zoo import zoo_folder

    for missing, word in (("model.safetensors", "weights"), ("tokenizer.json", "tokenizer")):
        folder = tmp_path / word
        folder.mkdir()
        for source in zoo_folder("llama").iterdir():
            if source.name != missing and not (word == "tokenizer" and "token" in source.name):
                (folder / source.name).write_bytes(source.read_bytes())
        data = yaml.safe_load(file.read_text())
        data["clients"][0]["model"] = str(folder)
        bad = tmp_path / f"{word}.yaml"
        bad.write_text(yaml.safe_dump(data))
        code, _, stderr = call("run", str(bad), "--out", str(tmp_path / "run"), "--quiet")
        assert code == 1 and word in stderr, stderr


def test_resume_without_flag_and_interrupt(file: Path, finished: Path, tmp_path: Path) -> None:
    code, _, stderr = call("run", str(file), "--out", str(finished), "--quiet")
    assert code == 1 and "--resume" in stderr
    endless = tmp_path / "endless.yaml"  # so that the signal finds it at work, however busy the machine is
    endless.write_text(small(rounds=10_000).to_yaml())
    # A shell that starts the tests in the background makes them, and so the child, ignore interrupts.
    script = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"from h2tune.cli.app import app; app(['run', {str(endless)!r}, '--out', {str(tmp_path / 'r')!r}, '--json'])"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert child.stdout.readline()
    child.send_signal(2)
    try:
        _, stderr = child.communicate(timeout=120)
    finally:
        child.kill()
    assert child.returncode == 1 and "--resume" in stderr
