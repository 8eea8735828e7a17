from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from report_runs import client, metrics, three

from h2tune.report import write_report

WriteRun = Callable[..., Path]
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Checks that tags close in order, and collects tags, attributes and text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(self.source)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def check(page: Page) -> None:
    """Nothing runs and nothing is fetched, whatever the run directory held."""
    assert not {"script", "img", "iframe", "object", "embed", "link", "form", "use", "image"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("src", "href", "xlink:href")]
    styles = page.source[page.source.index("<style>") : page.source.index("</style>")]
    assert "url(" not in styles and "@import" not in styles
    assert "nan" not in page.text.lower().split() and "None" not in page.text.split()


def written(write_run: WriteRun, data: dict[str, Any], **rest: Any) -> Page:
    page = Page(write_report(write_run(data, **rest)))
    check(page)
    return page


def test_a_normal_run(write_run: WriteRun) -> None:
    warning = {"time": "", "event": "warning", "round": 2, "client": "bank", "text": "12 texts are too long"}
    late = {"time": "", "event": "client_excluded", "round": 4, "client": "bank", "text": "late"}
    page = written(write_run, three(sent=["the core"], never=["the training text"]), events=(warning, warning, late))
    headings = [
        "Results per client",
        "Over the rounds",
        "What left each machine",
        "What was shared",
        "Warnings",
        "Settings",
    ]
    places = [page.text.index(heading) for heading in headings]
    assert places == sorted(places)
    for text in ("+14.0", "hospital", "12 texts are too long", "Never sent", "name: three-trades", "h2tune 0.1.0"):
        assert text in page.text
    assert page.text.count("12 texts are too long") == 1


def test_what_leaves_is_what_the_run_says_and_nothing_where_it_says_nothing(write_run: WriteRun) -> None:
    page = written(write_run, three(sent=["A and B, every round"], never=["the head"]))
    assert "A and B, every round" in page.text and "the head" in page.text
    silent = written(write_run, three())
    assert "Never sent" not in silent.text and "factors A and B" not in silent.text


def test_a_client_that_dropped_out_moves_no_mean(write_run: WriteRun) -> None:
    """Two clients, one lost after its baseline: every mean is that of the client that has everything."""
    data = metrics({"stayed": client(0, gain=0.1), "left": client(1)})
    data["clients"]["left"] |= {"final": None, "base": {"metric": 0.9, "nats": 1.0}, "status": "lost"}
    page = written(write_run, data)
    text, source = (whole.replace("\u202f", " ") for whole in (page.text, page.source))
    row = text[text.index("Mean of 1") : text.index("federated\n", text.index("Mean of 1"))].split("\n")
    assert [cell for cell in row[1:] if cell] == ["11.0 %", "50.0 %", "60.0 %", "+10.0"]
    assert "left has no result in at least one column" in text
    mean = source[source.index("All clients") : source.index("training loss")]
    assert "mean accuracy, 1 of 2 clients" in mean
    assert "<title>alone, test: 50.0 %</title>" in mean and "round 5: 59.1 %" in mean  # stayed's, of 60 % (1 - 1/2^6)


def test_the_old_page_is_replaced_and_nothing_else_is_left(write_run: WriteRun) -> None:
    run_dir = write_run(three())
    before = {path.name for path in run_dir.iterdir()}
    assert write_report(run_dir) == write_report(run_dir) == run_dir / "report.html"
    assert {path.name for path in run_dir.iterdir()} == before | {"report.html"}


def test_the_same_run_gives_the_same_page(write_run: WriteRun) -> None:
    run_dir = write_run(three())
    assert write_report(run_dir).read_bytes() == write_report(run_dir).read_bytes()


def test_unfinished_without_baseline_or_anything(write_run: WriteRun) -> None:
    data = three(finished=False, core=None)
    for entry in data["clients"].values():
        empty = ("base", "local", "final", "majority", "unigram_nats", "relation", "agreement", "anchor_coverage")
        entry |= dict.fromkeys((*empty, "kept"))
        entry["rounds"] = []
    page = written(write_run, data, events=('{"time": "20',), config=None)
    assert "not finished" in page.text and "No configuration" in page.text and "could not be read" in page.text


def test_no_clients(write_run: WriteRun) -> None:
    assert "No client took part" in written(write_run, metrics({}, core=None)).text


def test_sixty_clients_have_a_full_table_and_twelve_pictures(write_run: WriteRun) -> None:
    draw = random.Random(0)
    clients = {f"site-{i:02d}": client(i, rounds=3, depth=12, gain=draw.gauss(0, 0.04)) for i in range(60)}
    clients["site-33"] = client(33, rounds=3, gain=-0.4)
    page = written(write_run, metrics(clients, rounds=3))
    assert all(page.text.count(name) >= 2 for name in clients)
    assert page.text.count("training loss") == 12
    assert page.text.count("site-33") == 4  # results, curves, bytes, pictures: a large loss is shown as well
    assert len(page.source) < 1_000_000


def test_hostile_strings_stay_text(write_run: WriteRun) -> None:
    bad = ["<script>alert(1)</script>", '"><svg onload=alert(1)>', "</title></style></svg><img src=x onerror=1>"]
    clients = {name: client(index) for index, name in enumerate(bad)}
    for name, entry in clients.items():
        entry |= dict.fromkeys(("model", "family", "task", "kind", "metric", "status", "kept"), name)
        entry["agreement"]["slots"] = [name] * 6
        entry["anchor_coverage"]["missing"] = [name]
        entry["rounds"][0]["loss"][name] = 1.0
    event = {"time": bad[0], "event": "warning", "round": 1, "client": bad[1], "text": bad[2]}
    data = metrics(clients, name=bad[2], method=bad[0], version=bad[1])
    page = written(write_run, data, events=(event,), config="</pre><script>alert(1)</script>")
    assert all(name in page.text for name in bad)
    assert "</pre><script>" in page.text


def test_half_characters_do_not_stop_the_page(write_run: WriteRun) -> None:
    assert "x?" in written(write_run, metrics({"x\ud800": client(0)})).text


def test_nan_everywhere(write_run: WriteRun) -> None:
    def spoil(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: spoil(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [spoil(entry) for entry in value]
        return math.nan if isinstance(value, float) else value

    written(write_run, metrics(spoil(three()["clients"]), seconds=math.inf))


def test_one_client_one_round(write_run: WriteRun) -> None:
    page = written(write_run, metrics({"only": client(0, rounds=1, gain=0.2)}, rounds=1))
    assert (
        "clients" not in page.text[: page.text.index("Results per client")].split("report", 1)[1].split("Clients")[0]
    )


def test_a_task_scored_in_nats_alone(write_run: WriteRun) -> None:
    entry = client(0)
    for score in (entry["base"], entry["local"], entry["final"], *(e["validation"] for e in entry["rounds"])):
        score["metric"] = None
    entry["rounds"] = [one | {"test": None} for one in entry["rounds"]]
    assert "nats per answer token" in written(write_run, metrics({"maths": entry})).text


def test_the_legend_names_the_phases_that_are_drawn_and_no_other(write_run: WriteRun) -> None:
    data = three()
    assert "core and private part at once" not in written(write_run, data).text
    for entry in data["clients"].values():
        for number, row in enumerate(entry["rounds"]):
            row["loss"] = {"specific": 1.0} if number else {"joint": 2.0}
    text = written(write_run, data).text
    assert "loss, core and private part at once" in text and "loss, specific phase" in text
    assert "loss, shared phase" not in text


def test_of_many_rounds_the_table_shows_evenly_spaced_ones_and_says_so(write_run: WriteRun) -> None:
    clients = {"hospital": client(0, rounds=450), "bank": client(1, rounds=450)}
    clients["bank"]["rounds"] = clients["bank"]["rounds"][:-1]
    page = written(write_run, metrics(clients, rounds=450))
    table = page.source[page.source.index("<details><summary>Round by round") :].partition("</table>")[0]
    rounds = [int(row.partition("<")[0]) for row in table.split('<tr><th scope="row">')[1:]]
    gaps = {after - before for before, after in itertools.pairwise(rounds)}
    assert len(rounds) == 200 and (rounds[0], rounds[-1]) == (1, 450) and gaps == {2, 3}
    assert "200 of 450 rounds, evenly spaced; metrics.json holds all." in page.text
    assert table.count("kB / 24.6") == 399 and table.count("–") == 1  # the bank missed the last
    few = written(write_run, metrics({"hospital": client(0, rounds=200)}, rounds=200))
    assert "Every round" in few.text and "evenly spaced" not in few.text
