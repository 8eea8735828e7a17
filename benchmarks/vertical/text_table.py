"""Text beside a table: the active party has counts of operators and the label, the other party the text of the problem.

python benchmarks/vertical/text_table.py embed --model FOLDER --out CELLS     # once: a frozen sentence encoder
python benchmarks/vertical/text_table.py run --out CELLS
python benchmarks/vertical/text_table.py ideas --out CELLS    # what else was tried, on the tuning problems only
python benchmarks/vertical/text_table.py collect --out CELLS

MathQA's categories (6 classes, 45 to 1.6 %). 200 aligned rows, in the natural class shares; the rest is dealt out to the
two parties. Every method is tuned on eight problems that share no row with a test; the tests are ten splits. The encoder runs at the text's party and is not trained. In a second setting one category, `geometry`, has no
aligned row and none at the active party: the other party labels its own rows of it (`named`), or nobody does and every
class is described by the same encoder's embedding of its name (`described`).
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from grid import CORE, cell, changed, tune_with, write
from problems import DATA

from h2tune.vertical.compare import interval
from h2tune.vertical.config import parse_vertical
from h2tune.vertical.federation import load_parties
from h2tune.vertical.methods import METHODS
from h2tune.vertical.methods.base import configure
from h2tune.vertical.text import embed_texts
from h2tune.vertical.trial import evaluate

SEEDS = range(20, 30)
TUNING = range(100, 108)
ALIGNED = 200
UNSEEN = "geometry"
IDEAS: dict[str, dict[str, Any]] = {  # each is a change of what was tuned
    "tuned": {},
    "20 local steps": {"training.local_steps": 20},
    "40 local steps": {"training.local_steps": 40},
    "views' own loss 1": {"method.view_weight": 1.0},
    "views' own loss 3": {"method.view_weight": 3.0},
    "global prior": {"method.prior": "global"},
    "local prior": {"method.prior": "local"},
    "transport sharper": {"method.eps": 0.3},
    "class masses held harder": {"method.rho": 10.0},
    "soft selection": {"method.select": "soft"},
    "all rows": {"method.select": "all"},
    "no unaligned rows": {"method.select": "none"},
    "both prototypes must agree": {"method.agree": True},
    "unaligned rows from round 5": {"method.warmup": 5},
    "more corruption": {"training.corrupt": 0.4},
    "most corruption": {"training.corrupt": 0.6},
    "more augmentation": {"training.augment": 0.3},
    "parties left out more often": {"training.dropout": 0.3},
    "weight decay .1": {"training.weight_decay": 0.1},
    "learned gate": {"method.gate": "learned"},
    "more corruption, 20 local steps": {"training.corrupt": 0.4, "training.local_steps": 20},
    "more corruption, from round 5": {"training.corrupt": 0.4, "method.warmup": 5},
    "more corruption, weight decay .1": {"training.corrupt": 0.4, "training.weight_decay": 0.1},
}
VARIANTS = ("proto-evfl", "described", "prototypes", "ensemble")  # with an unseen class


def rows() -> pd.DataFrame:
    """All problems: id, text, category, operators."""
    lines = [
        json.loads(line)
        for part in ("train", "test")
        for line in (DATA / "mathqa" / f"{part}.jsonl").read_text().splitlines()
    ]
    return pd.DataFrame(
        {
            "text": [r["Problem"] for r in lines],
            "category": [r["category"] for r in lines],
            "formula": [r["linear_formula"] for r in lines],
        }
    )


def counts(formulas: pd.Series) -> pd.DataFrame:
    """How often each operator occurs in a formula."""
    found = [re.findall(r"([a-z_]+)\(", formula) for formula in formulas]
    names = sorted({name for operators in found for name in operators})
    return pd.DataFrame(
        [[operators.count(name) for name in names] for operators in found], columns=[f"op_{n}" for n in names]
    )


def problem(
    folder: Path, seed: int, tuning: bool, unseen: str | None = None
) -> tuple[dict[str, tuple[pd.DataFrame, pd.DataFrame]], list[str]]:
    """Tables of both parties; as in `problems.build`, tuning problems share no row with any test.

    Args:
        unseen: a category without an aligned row or one at the active party; the other party labels its rows of it.
    """
    frame = rows()
    table, text = counts(frame["formula"]), pd.DataFrame(np.load(folder / "texts.npy")).add_prefix("e")
    fixed = np.random.default_rng(20261126).permutation(len(frame))
    held, rest = np.split(fixed, [2 * len(frame) // 5])
    rng = np.random.default_rng([seed, 7 if tuning else 3])
    source = rest if tuning else held
    test = rng.permutation(source)[: len(frame) // 5]
    left = rng.permutation(np.setdiff1d(rest if tuning else fixed, test))
    category = frame["category"].to_numpy()
    aligned = left[category[left] != unseen][:ALIGNED]
    free = np.array_split(np.setdiff1d(left, aligned, assume_unique=True), 2)
    free[0] = free[0][category[free[0]] != unseen]
    frames = {}
    for name, columns, own in (("counts", table, free[0]), ("notes", text, free[1])):
        chosen = np.concatenate([aligned, own])
        parts = [columns.iloc[r].assign(id=[f"p{i}" for i in r]).reset_index(drop=True) for r in (chosen, test)]
        if name == "counts":
            parts = [p.assign(category=category[r]) for p, r in zip(parts, (chosen, test), strict=True)]
        elif unseen:
            parts[0]["code"] = [unseen if category[r] == unseen else None for r in chosen]
        frames[name] = (parts[0], parts[1])
    return frames, sorted(frame["category"].unique())


def scored(folder: Path, name: str, seed: int, tuned: dict[str, Any], tuning: bool) -> dict[str, Any]:
    """Scores of one method."""
    frames, classes = problem(folder, seed, tuning)
    config = parse_vertical({
        "seed": seed, "label": {"party": "counts", "column": "category", "classes": classes}, "evaluation": {"every": 1000},
        "parties": [{"name": n, "train": "-", "test": "-"} for n in frames],
    })  # fmt: skip
    method = METHODS[name]
    config = changed(configure(config, method), tuned)
    return evaluate(
        config, replace(method, options={} if method.train is None else None), load_parties(config, frames)
    )


def scored_unseen(folder: Path, name: str, seed: int, tuned: dict[str, Any]) -> dict[str, Any]:
    """Scores of one method where a category is unseen."""
    frames, classes = problem(folder, seed, False, UNSEEN)
    described = name == "described"
    label = {"party": "counts", "column": "category", "classes": classes}
    parties = [{"name": n, "train": "-", "test": "-"} for n in frames]
    if described:
        frames["notes"] = (frames["notes"][0].drop(columns="code"), frames["notes"][1])
        label["vectors"] = str(folder / "names.csv")
    else:
        parties[1]["labels"] = "code"
    config = parse_vertical({
        "seed": seed, "label": label, "evaluation": {"every": 1000}, "parties": parties,
        "method": {"unseen": "described"} if described else {},
    })  # fmt: skip
    method = METHODS["proto-evfl" if described else name]
    config = changed(configure(config, method), tuned)
    return evaluate(config, replace(method, options={}), load_parties(config, frames))


def complete(folder: Path, name: str) -> bool:
    """Whether all cells of a method with an unseen category are there."""
    return all((folder / f"text-unseen/{name}-{s}.json").is_file() for s in SEEDS)


def embed(folder: Path, model: str) -> None:
    """The embeddings of all texts and of the categories' names."""
    frame = rows()
    np.save(folder / "texts.npy", embed_texts(list(frame["text"]), model, 128).numpy())
    names = sorted(frame["category"].unique())
    pd.DataFrame(embed_texts(names, model, 128).numpy(), index=names).to_csv(folder / "names.csv")


def tuned(folder: Path, name: str) -> dict[str, Any]:
    """The method's best candidate."""
    return tune_with(folder, "text", name, lambda seed, c: scored(folder, name, seed, c, True), TUNING)


def ideas(folder: Path) -> None:
    """Every idea on the tuning problems, over splitnn as tuned."""

    def balanced(kind: str, name: str, values: dict[str, Any]) -> list[float]:
        return [
            100
            * cell(folder, f"ideas/{kind}-{s}", lambda s=s: scored(folder, name, s, values, True))["result"][
                "balanced"
            ]
            for s in TUNING
        ]

    rival = balanced("splitnn", "splitnn", tuned(folder, "splitnn"))
    own = tuned(folder, "proto-evfl")
    rows = {}
    for idea, change in IDEAS.items():
        found = balanced(idea.replace("'", ""), "proto-evfl", own | change)
        gain = interval([a - b for a, b in zip(found, rival, strict=True)])
        rows[idea] = {"change": change, "balanced": statistics.fmean(found), "over_splitnn": gain}
        print(f"{idea:34} {rows[idea]['balanced']:.1f}, over splitnn", [round(x, 1) for x in gain], flush=True)
    write("vertical-text-ideas", {"tuned": own, "problems": len(TUNING), "ideas": rows})


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("embed", "run", "ideas", "collect"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder: Path = options.out
    folder.mkdir(parents=True, exist_ok=True)
    if options.what == "embed":
        embed(folder, options.model)
        return
    if options.what == "ideas":
        ideas(folder)
        return
    values: dict[str, list[dict[str, Any]]] = {}
    for name in CORE:
        best = tuned(folder, name)
        values[name] = [
            cell(
                folder, f"text/{name}-{s}", lambda s=s, n=name, b=best: scored(folder, n, s, b, False) | {"tuned": b}
            )["result"]
            for s in SEEDS
        ]
    unseen: dict[str, list[dict[str, Any]]] = {}
    for name in (n for n in VARIANTS if options.what == "run" or complete(folder, n)):
        best = values["prototypes" if name == "prototypes" else "proto-evfl"][0]["tuned"] if name != "ensemble" else {}
        unseen[name] = [
            cell(folder, f"text-unseen/{name}-{s}", lambda s=s, n=name, t=best: scored_unseen(folder, n, s, t))[
                "result"
            ]
            for s in SEEDS
        ]
    if options.what == "collect":
        own = values["proto-evfl"]
        rows_unseen = {
            n: {q: interval([100 * r[q] for r in v]) for q in ("accuracy", "balanced", "unseen", "harmonic")}
            for n, v in unseen.items()
        }
        result = {
            n: {
                "balanced": interval([100 * r["balanced"] for r in v]),
                "accuracy": interval([100 * r["accuracy"] for r in v]),
                "tuned": v[0]["tuned"],
                "this_over_it": interval([100 * (a["balanced"] - b["balanced"]) for a, b in zip(own, v, strict=True)]),
            }
            for n, v in values.items()
        }
        write(
            "vertical-text",
            {"aligned": ALIGNED, "methods": result, "unseen": {"class": UNSEEN, "methods": rows_unseen}},
        )
        for name, row in result.items():
            print(name, {k: [round(x, 1) for x in v] for k, v in row.items() if k != "tuned"}, row["tuned"])
        for name, row in rows_unseen.items():
            print(UNSEEN, name, {k: [round(x, 1) for x in v] for k, v in row.items()})


if __name__ == "__main__":
    main()
