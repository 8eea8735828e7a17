"""The documentation is true of the code: blocks run, commands and files exist, messages are those of the source."""

from __future__ import annotations

import ast
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from generate_docs import reference, sections
from pydantic import BaseModel
from typer.testing import CliRunner

from h2tune.cli.app import app
from h2tune.config import ClientConfig, Experiment, parse_config
from h2tune.config.reading import UniqueKeyLoader
from h2tune.methods.base import Method
from h2tune.methods.registry import resolve_method
from h2tune.tasks import build_task
from h2tune.vertical.config import parse_vertical

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*.md"))]
LOGS = {"experiments.md", "CHANGELOG.md"}  # say what was true on a day

CLIENT = {"name": "one", "model": "zoo:llama", "task": "demo-fill", "train": "demo:fill?split=train&n=8",
          "validation": "demo:fill?split=validation&n=4", "test": "demo:fill?split=test&n=4"}  # fmt: skip
FEDERATION = {
    "rank": 4,
    "rounds": 1,
    "anchors": "demo",
    "clients": [CLIENT],
    "training": {"steps": 2, "batch_size": 4},
    "device": "cpu",
}


def blocks(language: str, pages: list[Path] = PAGES) -> list[Any]:
    """The fenced blocks of a language, as test parameters named after page and place."""
    found = []
    for page in pages:
        texts = re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        found += [pytest.param(text, id=f"{page.stem}-{i}") for i, text in enumerate(texts)]
    return found


def code_spans() -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for span in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text):
            yield page, span
        for block in re.findall(r"^```(?:sh|text)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            yield from ((page, line.strip()) for line in block.splitlines())


def test_the_python_page_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("federation.yaml").write_text(yaml.safe_dump(FEDERATION))
    Path("questions.jsonl").write_text(json.dumps({"prompt": "Problem: Ann has 6 nuts.\nAnswer:"}) + "\n")
    pairs = [f"How old is {i}?\tWhat is the age of {i}?\t{i % 2}" for i in range(60)]
    Path("train.tsv").write_text("\n".join(["question1\tquestion2\tis_duplicate", *pairs]))
    names: dict[str, Any] = {"__name__": "docs"}
    for block in blocks("python", [ROOT / "docs" / "api.md", ROOT / "docs" / "tasks.md"]):
        exec(compile(block.values[0], block.id, "exec"), names)
    assert {file.name for file in Path("lora").iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert names["upload"]


@pytest.mark.parametrize("text", blocks("python"))
def test_python_blocks_are_python(text: str) -> None:
    ast.parse(text)


@pytest.fixture
def own_method(tmp_path: Path) -> Iterator[Path]:
    """A folder with the worked example of docs/methods.md in it."""
    (tmp_path / "my_methods.py").write_text(blocks("python", [ROOT / "docs" / "methods.md"])[0].values[0])
    yield tmp_path
    Method.registry.pop("agreeing", None)
    sys.modules.pop("my_methods", None)


def test_the_worked_example_runs_from_a_folder_of_ones_own(own_method: Path) -> None:
    clients = [CLIENT | {"name": name} for name in ("a", "b")]
    file = own_method / "federation.yaml"
    file.write_text(yaml.safe_dump(FEDERATION | {"clients": clients, "method": "my_methods:AGREEING"}))
    result = CliRunner().invoke(app, ["run", str(file), "--out", str(own_method / "run"), "--quiet"])
    assert result.exit_code == 0, result.output
    metrics = json.loads((own_method / "run" / "metrics.json").read_text())
    assert all(client["final"]["nats"] > 0 for client in metrics["clients"].values())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_fence_is_closed(page: Path) -> None:
    fences = re.findall(r"^```(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(fences) % 2 == 0 and not any(fences[1::2])


@pytest.mark.parametrize("text", blocks("yaml"))
def test_yaml_blocks_are_valid_settings(text: str, own_method: Path) -> None:
    if "parties" in (whole := yaml.safe_load(text)):
        parse_vertical(whole)
        return
    for data in documents(text):
        experiment = parse_config(data, own_method)
        resolve_method(experiment.method)
        for client in experiment.clients:
            build_task(client.task)


def documents(text: str) -> Iterator[dict[str, Any]]:
    """A block as whole federations: a part is put into a small one, and a key that stands twice makes two of them."""
    parts = re.split(r"\n(?=task:)", text) if text.count("\ntask:") and text.startswith("task:") else [text]
    for part in parts:
        data = yaml.load(part, UniqueKeyLoader)
        if isinstance(data, list):
            data = {"clients": data}
        if not data.keys() <= Experiment.model_fields.keys():
            assert data.keys() <= ClientConfig.model_fields.keys(), f"neither a federation nor a client: {list(data)}"
            data = {"clients": [data]}
        # Three dots stand for what the block leaves out.
        given = [{k: v for k, v in c.items() if "..." not in (k, v)} for c in data.get("clients", [{}, {}])]
        clients = [CLIENT | {"name": f"c{i}"} | client for i, client in enumerate(given)]
        yield FEDERATION | data | {"clients": clients}


def test_the_quick_start_shows_the_example_that_ships() -> None:
    shown = blocks("yaml", [ROOT / "docs" / "quickstart.md"])[0].values[0]
    assert (ROOT / "examples" / "tickets.yaml").read_text(encoding="utf-8").endswith(shown)


def test_every_key_has_a_table() -> None:
    page = reference()
    found = {key for model in [Experiment, *sections().values()] for key in model.model_fields}
    assert {"host", "threshold", "upload", "noise"} <= found
    for name, model in sections().items():
        assert issubclass(model, BaseModel)
        table = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        assert all(f"| `{key}` |" in table for key in model.model_fields)


COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def test_commands_and_their_options_exist() -> None:
    checked = 0
    for page, span in code_spans():
        if page.name in LOGS or not span.startswith("h2tune ") or span.startswith("h2tune 0"):
            continue
        words = shlex.split(span.split("#")[0].split(" -- ")[0], posix=True)
        name = words[1]
        assert name in COMMANDS or name.startswith("-"), f"{page.name}: {span}"
        options = {
            option
            for parameter in getattr(COMMANDS.get(name), "params", [])
            for option in (*parameter.opts, *parameter.secondary_opts)
        }
        for word in words[2:]:
            if word.startswith("--"):
                assert word.split("=")[0] in options, f"{page.name}: {span}: {name} has no {word}"
        checked += 1
    assert checked > 40


def test_named_files_exist() -> None:
    known = re.compile(r"^(?:src|docs|benchmarks|examples|tests|scripts|deploy|requirements|\.github)/[\w./-]+$")
    for page, span in code_spans():
        for word in span.split():
            if known.match(word) and not word.startswith("benchmarks/accuracy/data"):
                assert (ROOT / word).exists(), f"{page.name} names {word}"


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target and not target.startswith("mailto:"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_site_has_every_page() -> None:
    listed = set(re.findall(r"[\w-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    assert listed == {page.name for page in (ROOT / "docs").glob("*.md")}


def spoken() -> set[str]:
    """Every text of the source, with ``…`` where a value goes in."""
    found = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
            elif isinstance(node, ast.JoinedStr):
                found.add("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
    return found


def test_troubleshooting_has_the_words_of_the_messages() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    said = spoken()
    rows = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    assert len(rows) > 30
    for row in rows:
        if "bootstrapping phase" in row:  # Python's own
            continue
        pattern = re.compile(".*".join(re.escape(part.strip()) for part in row.split("…")), re.DOTALL)
        assert any(pattern.search(text) for text in said), f"no message says {row!r}"
