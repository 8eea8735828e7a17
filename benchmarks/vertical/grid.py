"""The grid: methods on real tables with few aligned rows, every rival tuned with the same effort. Goes on where it stopped.

python benchmarks/vertical/grid.py run --out CELLS            # every cell a JSON file; one core, about an hour
python benchmarks/vertical/grid.py collect --out CELLS        # benchmarks/results/vertical.json and a table

Tuning: each method has four candidate settings; it takes the best by balanced accuracy on a tuning problem, which shares no
row with any test, and then the average of its weights over rounds or its last weights, whichever is better there. Tests:
seeds 10 to 14, each with a split of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).parents[1]))

from common import about, refuse_others, write
from problems import Problem, Setting, build

from h2tune.utils.files import write_atomic
from h2tune.vertical.active import Active
from h2tune.vertical.compare import interval
from h2tune.vertical.config import MethodConfig, VerticalConfig, parse_vertical
from h2tune.vertical.evaluation import evaluate as scores_of
from h2tune.vertical.exchange import Direct
from h2tune.vertical.federation import Federation, load_parties, salt_of
from h2tune.vertical.methods import METHODS
from h2tune.vertical.methods.base import configure
from h2tune.vertical.methods.central import evaluate_central
from h2tune.vertical.parties import PartyData
from h2tune.vertical.passive import Passive
from h2tune.vertical.trial import evaluate

SEEDS = range(10, 15)
TUNING_SEEDS = (100,)
AVERAGE = {"training.average": 0.9}
TABLES = ("optdigits", "pendigits", "segment", "letter")
RIVALS = ("splitnn", "fedhssl", "fedcvt")
CORE = ("proto-evfl", "prototypes", *RIVALS)
MAIN = {t: Setting(t) for t in TABLES}
SKEWED = {t: Setting(t, tail=100, aligned_tail=10) for t in TABLES[:3]}
UNSEEN = {t: Setting(t, aligned=200, unseen=True) for t in TABLES}
FEW = {t: replace(s, labelled=20) for t, s in UNSEEN.items()}
GROUPS: dict[str, tuple[dict[str, Setting], tuple[str, ...]]] = {
    "main": (MAIN, CORE),
    "unseen": (UNSEEN, ("proto-evfl", "coverage off", "neutral", "relation", *CORE[1:], "ensemble")),
    "skewed": (SKEWED, CORE),
    "others": (MAIN, ("local", "ensemble", "laser", "central")),
    "few labels": (FEW, ("proto-evfl", "ensemble", "prototypes")),
    "ablations": (
        MAIN,
        ("nu only", "posterior", "all rows", "posterior, all rows", "global prior", "local prior", "last weights"),
    ),
    "nameless": (UNSEEN, ("nameless",)),
}
# These differ in how rows are scored, not in how anything is trained.
SAME_TRAINING = ("coverage off", "neutral", "relation")
VARIANTS: dict[str, dict[str, Any]] = {
    "nu only": {"method.select": "none"},
    "posterior": {"method.assign": "posterior"},
    "all rows": {"method.select": "all"},
    "posterior, all rows": {"method.assign": "posterior", "method.select": "all"},
    "global prior": {"method.prior": "global"},
    "local prior": {"method.prior": "local"},
    "coverage off": {"method.gate": "mean", "method.missing": "coverage"},
    "last weights": {"training.average": 0.0},
    "relation": {"method.missing": "relation"},
    "neutral": {"method.borrow": 0.0},
    "nameless": {"method.unseen": "nameless", "method.labels": False},
}


def changed(config: VerticalConfig, values: dict[str, Any]) -> VerticalConfig:
    """The config with values set by `section.key`."""
    plain = config.model_dump(mode="json")
    for place, value in values.items():
        section, key = place.split(".")
        plain[section][key] = value
    return parse_vertical(plain)


built = lru_cache(maxsize=4)(build)


@lru_cache(maxsize=2)
def loaded(problem: Problem, seed: int) -> dict[str, PartyData]:
    """All parties' rows as numbers; no method changes them."""
    return load_parties(parse_vertical(problem.config(seed)), problem.frames)


def rows_of(config: VerticalConfig, problem: Problem) -> dict[str, PartyData]:
    """The rows of the parties that take part."""
    return {p.name: loaded(problem, config.seed)[p.name] for p in (config.active, *config.passive)}


@lru_cache(maxsize=16)
def trained(config: str, problem: Problem) -> tuple[Active, list[Passive]]:
    """A federation after its last round, with the average of its weights beside the last ones."""
    settings = changed(parse_vertical(json.loads(config)), AVERAGE)
    data = rows_of(settings, problem)
    parties = {p.name: Passive(settings, data[p.name], salt_of(settings, p.name)) for p in settings.passive}
    active = Federation(settings, data[settings.label.party], Direct(dict(parties))).open()
    for _ in range(settings.rounds):
        active.one_round()
    return active, list(parties.values())


def shown(config: VerticalConfig, problem: Problem, scoring: MethodConfig) -> dict[str, Any]:
    """Scores by the average weights or the last ones; nothing in the training depends on which of them is asked for."""
    last = changed(config, {"training.average": 0.0})
    active, passive = trained(json.dumps(last.model_dump(mode="json"), sort_keys=True), problem)
    active.top.method = scoring
    kept = [party.average for party in (active, *passive)]
    if not config.training.average:
        for party in (active, *passive):
            party.average = {}
    found = dict(scores_of(active)["test"])
    for party, average in zip((active, *passive), kept, strict=True):
        party.average = average
    return found


def scored(name: str, problem: Problem, seed: int, tuned: dict[str, Any]) -> dict[str, Any]:
    """Scores of one method or variant on one problem."""
    config = parse_vertical(problem.config(seed))
    if name == "central":
        return evaluate_central(changed(config, tuned), *problem.pooled, problem.classes)
    method = METHODS[name if name in METHODS else "proto-evfl"]
    own = changed(configure(config, method), tuned)
    config = changed(own, VARIANTS.get(name, {}))
    if method.train is None:
        return shown(own if name in SAME_TRAINING else config, problem, config.method)
    # What the method itself sets is in the config by now; evaluation must not set it again over what was tuned.
    return evaluate(config, replace(method, options=None), rows_of(config, problem))


def cell(folder: Path, name: str, work: Any, settings: dict[str, Any] | None = None) -> dict[str, Any]:
    """A result that is kept as a file, with what it was made by and, if they are given, its settings.

    A cell of other settings is refused.
    """
    path = folder / f"{name.replace(' ', '_').replace(',', '')}.json"
    settings = None if settings is None else json.loads(json.dumps(settings))
    if not path.is_file():
        begin = time.perf_counter()
        found = {"result": work(), "seconds": time.perf_counter() - begin, "settings": settings} | about()
        write_atomic(path, json.dumps(found).encode(), several=True)
        print(name, round(100 * found["result"].get("balanced", 0), 1), f"{found['seconds']:.1f} s", flush=True)
    known = dict(json.loads(path.read_text()))
    refuse_others(known, settings, str(path.name))
    return known


def tune(folder: Path, name: str, setting: Setting) -> dict[str, Any]:
    """The candidate that is best on the tuning problem; variants share the method's own."""
    base = name if name in METHODS else "proto-evfl"
    if name == "central":  # the bound is given the average, which it cannot be tuned for without a table of all rows
        return dict(AVERAGE)
    place = setting.table + ("-unseen" if setting.unseen else "")
    return tune_with(folder, place, base, lambda s, c: scored(base, built(setting, s, tuning=True), s, c))


def tune_with(
    folder: Path, table: str, name: str, work: Callable[[int, dict[str, Any]], dict[str, Any]],
    seeds: Iterable[int] = TUNING_SEEDS,
) -> dict[str, Any]:  # fmt: skip
    """The best of a method's candidates, then the better of its last weights and their average, by balanced accuracy.

    Args:
        work: scores of a seed's tuning problem and a candidate.
    """

    def mean(index: int, candidate: dict[str, Any], kind: str = "") -> float:
        found = [
            cell(folder, f"tuning/{table}/{name}-{index}{kind}-{s}", lambda s=s: work(s, candidate)) for s in seeds
        ]
        return statistics.fmean(f["result"]["balanced"] for f in found)

    candidates = METHODS[name].tuned
    means = [mean(index, candidate) for index, candidate in enumerate(candidates)]
    best = max(range(len(means)), key=means.__getitem__)
    average = candidates[best] | AVERAGE
    return average if mean(best, average, "-average") > means[best] else candidates[best]


def run(folder: Path, groups: list[str], only: set[str]) -> None:
    """All cells that are not there yet."""
    for group in groups:
        settings, names = GROUPS[group]
        for table, setting in settings.items():
            chosen = [n for n in names if not only or n in only]
            # Methods that use the passive parties' labels are tuned with an unseen class, the others without.
            own = {n: UNSEEN[table] if setting.unseen and n not in RIVALS else MAIN[table] for n in chosen}
            best = {name: tune(folder, name, own[name]) for name in chosen}
            for seed in SEEDS:
                _run_seed(folder, f"{group}/{table}", setting, seed, best)


def _run_seed(folder: Path, place: str, setting: Setting, seed: int, best: dict[str, dict[str, Any]]) -> None:
    """The cells of one problem; those that share a training follow one another."""
    for name, tuned in best.items():
        cell(
            folder,
            f"{place}/{name}-{seed}",
            lambda n=name, t=tuned: scored(n, built(setting, seed), seed, t) | {"tuned": t},
            asdict(setting) | {"tuned": tuned},
        )


def collect(folder: Path) -> dict[str, Any]:
    """Means, intervals and paired differences of all cells that are there, and the values by seed that they are of."""
    found: dict[str, Any] = {}
    for group, (settings, names) in GROUPS.items():
        for table in settings:
            values = {n: _values(folder, group, table, n) for n in names}
            values = {n: v for n, v in values.items() if len(v) == len(SEEDS)}
            if not values or ("proto-evfl" not in values and group not in ("ablations", "others", "nameless")):
                continue
            own = values.get("proto-evfl") or _values(
                folder, {"ablations": "main", "others": "main"}.get(group, "unseen"), table, "proto-evfl"
            )
            quantity = "accuracy" if group in ("unseen", "few labels", "nameless") else "balanced"
            found.setdefault(group, {})[table] = _table(values, own, quantity)
    return found


def _table(values: dict[str, list[dict[str, Any]]], own: list[dict[str, Any]], quantity: str) -> dict[str, Any]:
    """One table of a group; ``own`` are the cells of this method, with which the others are compared seed by seed."""
    rows = {}
    for n, v in values.items():
        by_seed = {q: [100 * r[q] for r in v] for q in ("balanced", "accuracy", "unseen", "harmonic") if q in v[0]}
        rows[n] = {q: interval(each) for q, each in by_seed.items()} | {"tuned": v[0]["tuned"], "by_seed": by_seed}
    gaps = {
        n: [100 * (a[quantity] - b[quantity]) for a, b in zip(own, v, strict=True)]
        for n, v in values.items()
        if n != "proto-evfl" and len(own) == len(v)
    }
    over = {n: interval(each) for n, each in gaps.items()}
    rivals = [n for n in RIVALS if n in rows]
    best = max(rivals, key=lambda n: rows[n][quantity][0]) if rivals else None
    return {"quantity": quantity, "seeds": list(SEEDS), "methods": rows, "over": over, "over_by_seed": gaps,
            "best_rival": best, "over_best": over.get(best)}  # fmt: skip


def means(tables: dict[str, Any]) -> dict[str, list[float]]:
    """Mean over a group's tables of what this method is ahead, with its interval over seeds.

    Over the best rival of every table, and over each method that all of them have.
    """
    each = list(tables.values())
    gaps = {
        "best rival": [t["over_by_seed"].get(t["best_rival"]) for t in each],
        **{n: [t["over_by_seed"].get(n) for t in each] for n in each[0]["over_by_seed"]},
    }
    whole = {n: by_table for n, by_table in gaps.items() if all(by_table)}
    return {n: interval([statistics.fmean(of) for of in zip(*by_table, strict=True)]) for n, by_table in whole.items()}


def _values(folder: Path, group: str, table: str, name: str) -> list[dict[str, Any]]:
    paths = [
        folder / group.replace(" ", "_") / table / f"{name.replace(' ', '_').replace(',', '')}-{seed}.json"
        for seed in SEEDS
    ]
    return [json.loads(p.read_text())["result"] for p in paths if p.is_file()]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("run", "collect"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--groups", default=",".join(GROUPS))
    parser.add_argument("--only", default="", help="methods, with commas between; by default all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "run":
        run(options.out, options.groups.split(","), set(options.only.split(",")) - {""})
        return
    groups = collect(options.out)
    result = {
        "settings": {g: {t: asdict(s) for t, s in v[0].items()} for g, v in GROUPS.items()},
        "groups": groups,
        "means_of_tables": {group: means(tables) for group, tables in groups.items()},
    }
    write("vertical", result)
    for group, tables in result["groups"].items():
        for table, t in tables.items():
            print(
                f"\n{group} / {table} ({t['quantity']}); best rival {t['best_rival']}, over it {t['over_best'] and [round(v, 1) for v in t['over_best']]}"
            )
            for name, row in t["methods"].items():
                over = t["over"].get(name)
                extra = "".join(f"  {q} {row[q][0]:.1f}" for q in ("accuracy", "unseen", "harmonic") if q in row)
                print(
                    f"  {name:<20} {row['balanced'][0]:.1f} [{row['balanced'][1]:.1f}, {row['balanced'][2]:.1f}]{extra}  this over it: {over and [round(v, 1) for v in over]}"
                )
        for name, over in result["means_of_tables"][group].items():
            print(
                f"{group}, mean of {len(tables)} tables over {name}: {over[0]:+.1f} [{over[1]:+.1f}, {over[2]:+.1f}]"
            )


if __name__ == "__main__":
    main()
