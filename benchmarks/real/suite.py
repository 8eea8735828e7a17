"""Every method on settings of real pretrained models: one JSON for each run, to be stopped and continued at will.

    python benchmarks/real/suite.py run --models MODELS --data DATA --out runs/suite --settings sst2-32 --seeds 5
    python benchmarks/real/suite.py table --out runs/suite --settings sst2-32 --write benchmarks/results/real/suite.json

A setting is a task (or `different`, `maths`: one task a family) and the number of training rows of a client; 20 more rows of its own
are for validation. Rows differ by seed and no two clients of a seed share one; the test rows are the same for all. `pooled`
is local training on everybody's rows of a task, with as many updates: an upper bound that breaks privacy. Every method has
the same rates and the same number of updates, and starts from the same label bias. Intervals are Student's t over seeds.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import time
from collections.abc import Iterable
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path
from queue import Queue
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import labels  # noqa: F401  (a kind of frames that is registered)
import turned  # noqa: F401  (a kind of frames that is registered)
from common import about, refuse_others, settings_of
from common import read as result_of
from prepare import FAMILIES
from rows import ANCHORS, TASKS, Row, anchors, read, written

from h2tune.comparison.statistics import interval
from h2tune.config import Experiment
from h2tune.utils.files import write_atomic

VALIDATION = 20
SEEDS = 5
DIFFERENT = {"different": ("sst2", "qqp", "mrpc"), "maths": ("gsm8k", "aqua", "program")}
"""Settings in which every family has a task of its own."""
METHODS: dict[str, dict[str, Any]] = {
    "local": {"name": "local"},
    "bias": {"name": "bias"},
    "pooled": {"name": "local"},
    "h2tune": {"name": "h2tune"},
    "h2tune-unshared": {"name": "h2tune-unshared"},
    "h2tune-no-core": {"name": "h2tune-unshared"},  # its order and losses, and a core that stays at 0
    "h2tune-labels": {"name": "h2tune", "frames": "labels"},  # an experiment
    "h2tune-labels-unshared": {"name": "h2tune-unshared", "frames": "labels"},
    "h2tune-turned": {"name": "h2tune", "frames": "turned"},  # an attempt to break it
    "h2tune-published": {"name": "h2tune-published"},
    "colora": {"name": "colora"},
    "crosslora": {"name": "crosslora"},
    "fedmkt": {"name": "fedmkt"},
}
TOGETHER = {"h2tune-published": 2, "fedmkt": 5}
"""Least updates in a round, where a round has several phases; the updates of the whole run stay the same."""


def split(args: argparse.Namespace, setting: str, seed: int) -> list[dict[str, Any]]:
    """For every client its task, and files of its training, validation, test and pooled rows."""
    name, count = setting.rsplit("-", 1)
    tasks = list(islice(cycle(DIFFERENT.get(name, (name,))), len(args.families)))
    drawn: dict[str, list[Row]] = {}
    clients: list[dict[str, Any]] = []
    for i, (family, task) in enumerate(zip(args.families, tasks, strict=True)):
        source, folder = TASKS[task], args.out / "rows" / setting
        if task not in drawn:
            drawn[task] = read(args.data / source.folder / source.train)[:-ANCHORS]
            random.Random(f"{task} {seed}").shuffle(drawn[task])
        train, valid = (drawn[task][:int(count)], drawn[task][int(count):int(count) + VALIDATION])  # fmt: skip
        drawn[task] = drawn[task][int(count) + VALIDATION :]
        test = drawn[task][-args.test_rows :] if args.tuning else read(args.data / source.folder / source.test)
        if args.tuning and len(test) < args.test_rows:
            sys.exit(f"{task}: too few training rows for {setting} and {args.test_rows} more to tune on")
        random.Random(task).shuffle(test)
        place, tested = f"{seed}-{i}-{family}", f"tuning-{seed}-{task}" if args.tuning else f"test-{task}"
        ending = Path(source.train).suffix
        clients.append({
            "family": family, "task": task, "rows": train,
            "train": written(folder / f"{place}-train{ending}", train),
            "validation": written(folder / f"{place}-validation{ending}", valid),
            "test": written(args.out / "rows" / f"{tested}{ending}", test[: args.test_rows]),
        })  # fmt: skip
    for client in clients:
        whole = [row for other in clients if other["task"] == client["task"] for row in other["rows"]]
        client["pooled"] = written(
            args.out / "rows" / setting / f"{seed}-pooled-{client['task']}{Path(client['train']).suffix}", whole
        )
    return clients


def experiment(args: argparse.Namespace, setting: str, method: str, seed: int) -> Experiment:
    """The federation of a run."""
    made = split(args, setting, seed)
    clients = [{
        "name": f"{c['family']}-{c['task']}", "model": str((args.models / FAMILIES[c["family"]]).resolve()),
        "task": {"preset": c["task"]} | TASKS[c["task"]].task, "max_length": 160, "truncate": True,
        "train": c["pooled" if method == "pooled" else "train"], "validation": c["validation"], "test": c["test"],
        "learning_rate": args.rates.get(c["family"], args.rate),
    } for c in made]  # fmt: skip
    steps = max(args.steps, TOGETHER.get(method, 1))
    rounds = args.rounds * args.steps // steps
    return Experiment.model_validate({
        "name": setting, "seed": seed, "rounds": rounds, "rank": 16, "depth": 3, "blocks": 0.34, "device": args.device,
        "anchors": str(anchors(args.data, made[0]["task"], args.out).resolve()), "clients": clients,
        "training": {"steps": steps, "batch_size": args.batch, "learning_rate": args.rate, "core_learning_rate": 1e-12 if method == "h2tune-no-core" else args.core_rate,
                     "precision": args.precision},
        "evaluation": {"every": rounds}, "method": METHODS[method] | args.set.get(method, {}),
    })  # fmt: skip


def cell(args: argparse.Namespace, setting: str, method: str, seed: int) -> Path:
    return Path(args.out / "cells" / setting / method / f"{seed}.json")


Key = tuple[str, str, int]
"""Setting, method, seed."""


def settings(args: argparse.Namespace, method: str) -> dict[str, Any]:
    """What a method's cells depend on beside the setting and the seed."""
    return settings_of(args, "set") | {"set": args.set.get(method, {})}


def check(args: argparse.Namespace) -> None:
    """End the process if there are cells of these methods that were made with other settings than they would be now."""
    for method in args.methods:
        for setting in args.settings:
            for seed, found in cells(args, setting, method).items():
                refuse_others(found, settings(args, method), f"{setting} {method} {seed}")


def run(args: argparse.Namespace) -> None:
    """Run what is not there yet, in several processes if asked; the first line says how much that is."""
    args.out.mkdir(parents=True, exist_ok=True)
    check(args)
    seeds = range(args.first, SEEDS if args.seeds is None else args.seeds)
    wanted = [(s, m, n) for m in args.methods for s in args.settings for n in seeds]
    todo = [key for key in wanted if not cell(args, *key).is_file()]
    known = [json.loads(p.read_text())["seconds"] for p in (args.out / "cells").rglob("*.json")]
    each = sum(known) / len(known) / args.jobs if known else 180.0
    print(f"{len(wanted)} runs, {len(todo)} to go: about {len(todo) * each / 60:.0f} minutes", flush=True)
    queue: Queue[Key | None] = get_context("spawn").Queue() if args.jobs > 1 else Queue()
    for key in [*todo, *[None] * args.jobs]:
        queue.put(key)
    if args.jobs == 1:
        work(args, queue)
        return
    workers = [get_context("spawn").Process(target=work, args=(args, queue)) for _ in range(args.jobs)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    queue.cancel_join_thread()  # type: ignore[attr-defined]  # what nobody took must not keep this process
    if failed := [worker.exitcode for worker in workers if worker.exitcode]:
        left = sum(not cell(args, *key).is_file() for key in todo)
        sys.exit(f"{len(failed)} of {args.jobs} processes ended with errors ({failed}); {left} runs are still to go")


def work(args: argparse.Namespace, queue: Queue[Key | None]) -> None:
    """Make one run after the other on the same bases, until there are no more."""
    from h2tune.participant.base_models import ModelPool
    from h2tune.utils.logging import quiet_libraries

    quiet_libraries()
    pool: ModelPool | None = None
    while (key := queue.get()) is not None:
        federation = experiment(args, *key)
        pool = pool or ModelPool.of(federation, args.out / "frames")
        pool.release()
        one(args, pool, federation, *key)


def one(args: argparse.Namespace, pool: Any, federation: Experiment, setting: str, method: str, seed: int) -> None:
    """A run, kept as a cell."""
    from h2tune.federation import run as federate

    begin = time.perf_counter()
    folder = args.out / "runs" / setting / method / str(seed)
    shutil.rmtree(folder, ignore_errors=True)
    metrics = federate(federation, folder, models=pool)
    kept = {name: c["final"] | {"accepted": c["accepted"], "agreement": c["agreement"]}
            for name, c in metrics["clients"].items()}  # fmt: skip
    found = {"clients": kept, "base": {n: c["base"] for n, c in metrics["clients"].items()},
             "seconds": round(time.perf_counter() - begin, 1), "method": federation.method, "settings": settings(args, method)} | about()  # fmt: skip
    write_atomic(cell(args, setting, method, seed), (json.dumps(found, indent=1) + "\n").encode(), several=True)
    shutil.rmtree(folder)
    told = ", ".join(f"{n} {100 * c['metric']:.1f}" for n, c in kept.items())
    print(f"{setting} {method} {seed}: {told}  {found['seconds']:.0f} s", flush=True)


def cells(args: argparse.Namespace, setting: str, method: str) -> dict[int, dict[str, Any]]:
    """The cells of a method that are there, by seed."""
    paths = (args.out / "cells" / setting / method).glob("*.json")
    return {int(path.stem): result_of(path) for path in sorted(paths, key=lambda path: int(path.stem))}


def within(args: argparse.Namespace, setting: str, method: str) -> dict[int, dict[str, Any]]:
    """The cells with seeds from `--first` up to `--seeds`, all of the same settings."""
    found = {n: c for n, c in cells(args, setting, method).items() if args.first <= n < (args.seeds or n + 1)}
    told = next((c["settings"] for c in found.values() if "settings" in c), None)
    for seed, one in found.items():
        refuse_others(one, told, f"{setting} {method} {seed}")
    return found


def values(args: argparse.Namespace, setting: str, method: str, key: str) -> dict[int, float]:
    """Mean over the clients, by seed."""
    found = within(args, setting, method)
    clients = {seed: cell["clients"].values() for seed, cell in found.items()}
    return {seed: sum(c[key] for c in each) / len(each) for seed, each in clients.items()}


def gap(a: dict[int, float], b: dict[int, float]) -> list[float] | None:
    """Mean of a - b over the seeds that both have, and its interval; None below two of them."""
    both = sorted(a.keys() & b.keys())
    return interval([a[s] - b[s] for s in both]) if len(both) > 1 else None


def share(pairs: Iterable[tuple[float, float, float]]) -> float | None:
    """Share of the pooled gain: sum(federated - alone) / sum(pooled - alone), where pooling gains."""
    held = [(f - a, p - a) for f, a, p in pairs if p > a]
    return sum(f for f, _ in held) / sum(p for _, p in held) if held else None


def origins(args: argparse.Namespace) -> list[dict[str, Any]]:
    """With what code and on what machines the cells of the table were made, and when the last one was."""
    every = [within(args, setting, method) for setting in args.settings for method in args.methods]
    found: dict[str, dict[str, Any]] = {}
    for cell in (cell for by_seed in every for cell in by_seed.values()):
        made = {"commit": cell["commit"], "machine": cell["machine"]}
        entry = found.setdefault(json.dumps(made), made | {"cells": 0, "last": ""})
        entry["cells"], entry["last"] = entry["cells"] + 1, max(entry["last"], cell["date"])
    return list(found.values())


def table(args: argparse.Namespace) -> None:
    """Means over the seeds that all rows have, and paired differences over the seeds that both rows have."""
    report: dict[str, Any] = {}
    for setting in args.settings:
        right = {m: found for m in args.methods if (found := values(args, setting, m, "metric"))}
        seeds = sorted(set.intersection(*map(set, right.values()))) if right else []
        print(f"\n{setting}; {over(seeds)}")
        print(f"{'method':18s} seeds  right   nats   over local            over bias             over unshared")
        report[setting] = {method: row_of(args, setting, method, right, seeds) for method in right}
        of_each = [right.get(m, {}) for m in ("h2tune", "local", "pooled")]
        both = sorted(set.intersection(*(set(x) for x in of_each)))
        part = share([(of_each[0][s], of_each[1][s], of_each[2][s]) for s in both])
        report[setting]["share of the pooled gain"] = part
        print(f"share of the pooled gain: {'none to share' if part is None else f'{part:.2f}'} ({len(both)} seeds)")
    if args.write:
        report["made"] = origins(args)
        write_atomic(args.write, (json.dumps(report, indent=1) + "\n").encode())


def over(seeds: list[int]) -> str:
    if not seeds:
        return "no seed that all rows have: each mean is over the row's own seeds, and rows are not to be compared"
    return f"means over the seeds that all rows have: {', '.join(map(str, seeds))}"


def row_of(
    args: argparse.Namespace, setting: str, method: str, right: dict[str, dict[int, float]], seeds: list[int]
) -> dict[str, Any]:
    """One row of a table, which is also printed; without any seed that all rows have, over its own."""
    own, nats = right[method], values(args, setting, method, "nats")
    among = seeds or sorted(own)
    row: dict[str, Any] = {"right": interval([own[s] for s in among]), "by_seed": own, "seeds": among,
                           "nats": interval([nats[s] for s in among]), "nats_by_seed": nats}  # fmt: skip
    if method != "local":
        row["nats over local"] = gap(nats, values(args, setting, "local", "nats"))
    text = f"{method:18s} {len(among):5d}  {100 * row['right'][0]:5.1f}  {row['nats'][0]:.3f}"
    for rival in ("local", "bias", "h2tune-unshared"):
        found = gap(own, right.get(rival, {})) if rival != method else None
        row[f"over {rival}"] = found
        told = "" if found is None else "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * x for x in found))
        text += f"  {told:20s}"
    print(text)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--models", type=Path, help="folder with the models' folders, as for prepare.py")
    parser.add_argument("--data", type=Path, help="folder with the tasks' folders")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--settings", nargs="+", default=["sst2-32"], help="TASK-ROWS, different-ROWS or maths-ROWS")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=["local", "h2tune", "h2tune-unshared", "bias", "pooled"]
    )
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument(
        "--seeds", type=int, help=f"seeds below this one; by default {SEEDS}, and for a table all that are there"
    )
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=1, help="updates in a round")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--rates", type=json.loads, default={}, help='rates by family, as {"smollm": 0.001}')
    parser.add_argument(
        "--tuning", action="store_true", help="score training rows that no client holds, to choose a rate by them"
    )
    parser.add_argument("--core-rate", type=float, default=2e-2)
    parser.add_argument("--test-rows", type=int, default=150)
    parser.add_argument("--jobs", type=int, default=1, help="processes; each holds the models of all families")
    parser.add_argument("--device", default="cpu", help="`auto`, `cpu`, `cuda`, ...")
    parser.add_argument(
        "--precision", default="bf16", help="`fp32` is faster where the processor does not compute in bf16"
    )
    parser.add_argument(
        "--set", type=json.loads, default={}, help='settings by method, as {"h2tune": {"shared_part": 0.5}}'
    )
    parser.add_argument("--write", type=Path, help="also keep the table as JSON")
    args = parser.parse_args()
    run(args) if args.what == "run" else table(args)


if __name__ == "__main__":
    main()
