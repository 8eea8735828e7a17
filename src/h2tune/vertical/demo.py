"""A generated vertical federation: a bank, a clinic and a shop know other things about partly the same people."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

CLASSES = ("none", "low", "middle", "high", "rare")
ALIGNED, ALONE, TESTS, NEW = 150, 900, 500, 20
SHARES = np.array([0.5, 0.25, 0.15, 0.1, 0.0])  # of the classes at the bank; `rare` is coded by the clinic alone

CONFIG = """\
# A generated federation; made by `h2tune demo --vertical`.
name: demo
rounds: 40
align: {by: id}
label: {party: bank, column: risk, classes: [none, low, middle, high, rare]}
parties:
  - {name: bank, train: bank.csv, test: bank_test.csv}
  - {name: clinic, train: clinic.tsv, test: clinic_test.tsv, labels: code}
  - {name: shop, train: shop.jsonl, test: shop_test.jsonl}
"""


def write_demo(folder: Path, seed: int = 0) -> Path:
    """Write the tables and the config; returns the path of the config."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, 20])
    centres = {name: rng.normal(size=(len(CLASSES), 5)) * 1.1 for name in ("bank", "clinic", "shop")}
    shared = _people(rng, ALIGNED, SHARES), [f"P-{i:05d}" for i in range(ALIGNED)]
    tests = _people(rng, TESTS, np.full(5, 0.2)), [f"T-{i:05d}" for i in range(TESTS)]
    new = _people(rng, NEW, np.full(5, 0.2)), [f"N-{i:05d}" for i in range(NEW)]
    for name, ending in (("bank", "csv"), ("clinic", "tsv"), ("shop", "jsonl")):
        shares = SHARES if name == "bank" else np.array([0.1, 0.15, 0.25, 0.3, 0.2])
        own = _people(rng, ALONE, shares)
        labels, ids = (
            np.concatenate([shared[0], own]),
            [*shared[1], *(f"{name[0].upper()}-{i:05d}" for i in range(ALONE))],
        )
        train, test = _table(rng, name, centres[name], labels, ids), _table(rng, name, centres[name], *tests)
        if name == "bank":
            train["risk"], test["risk"] = [CLASSES[c] for c in labels], [CLASSES[c] for c in tests[0]]
        if name == "clinic":
            train["code"] = ["rare" if c == 4 else "" for c in labels]
        _write(train.sample(frac=1, random_state=seed), folder / f"{name}.{ending}")
        _write(test, folder / f"{name}_test.{ending}")
        if name != "clinic":
            _write(_table(rng, name, centres[name], *new), folder / f"new_{name}.csv")
    path = folder / "vertical.yaml"
    path.write_text(CONFIG + f"seed: {seed}\n", encoding="utf-8")
    return path


def _people(rng: np.random.Generator, count: int, shares: np.ndarray) -> np.ndarray:
    return rng.choice(len(CLASSES), count, p=shares / shares.sum())


def _table(
    rng: np.random.Generator, name: str, centres: np.ndarray, labels: np.ndarray, ids: list[str]
) -> pd.DataFrame:
    """Four numbers, some of them missing, and a category, all of which depend on the class."""
    x = centres[labels] + rng.normal(size=(len(labels), 5))
    frame = pd.DataFrame({f"{name}_{j}": np.round(x[:, j], 4) for j in range(4)})
    frame.loc[rng.random(len(frame)) < 0.05, f"{name}_0"] = np.nan
    frame[f"{name}_kind"] = np.where(x[:, 4] < -0.7, "A", np.where(x[:, 4] < 0.7, "B", "C"))
    frame.insert(0, "id", ids)
    return frame


def _write(frame: pd.DataFrame, path: Path) -> None:
    if path.suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, sep="\t" if path.suffix == ".tsv" else ",", index=False)
