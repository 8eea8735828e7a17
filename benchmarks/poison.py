"""Poisoned clients: what each rule of aggregation survives, on the demo federation of three and on one of ten.

A poisoned client trains as it should and then sends something else than its S: its update turned round (`flip`), a
hundred times too large (`large`), noise of ten times its size (`noise`), values that are not finite (`nan`), or its core
in another unit, x 0.01 (`unit`). 1 of 3 and 3 of 10 clients are bad. Accuracies are means over the honest clients.
Frames are practised once per model and kept under --out. Finished runs are not repeated: the JSON goes on where it
stopped. The grid is reduced: `nan` and `unit` on ten clients not for `trimmed`, `krum` and `bounded`.

Run as: python benchmarks/poison.py --out runs/poison
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import write
from torch import Tensor

from h2tune.quiet import quiet_libraries

RULES = ("mean", "median", "trimmed", "krum", "multi-krum", "closest", "agreeing", "bounded")
RESULTS = Path(__file__).parent / "results" / "poison.json"


def _noise(core: Tensor, start: Tensor) -> Tensor:
    update = core - start
    return start + 10 * update.square().mean().sqrt() * torch.randn(core.shape)


ATTACKS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "flip": lambda core, start: start - (core - start),
    "large": lambda core, start: start + 100 * (core - start),
    "noise": _noise,
    "nan": lambda core, start: torch.full_like(core, torch.nan),
    "unit": lambda core, start: 0.01 * core,
}


def poison(client: Any, attack: str, seed: int) -> None:
    """Let a client send something else than the core that it trained."""
    method, honest = client.method, client.method.pack

    def pack() -> dict[str, Tensor]:
        core = method.core.S.detach().clone()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            method.core.S.data.copy_(ATTACKS[attack](core, method.start))
        try:
            return honest()
        finally:
            method.core.S.data.copy_(core)

    method.pack = pack


def federation(count: int, rule: str, rounds: int, tests: int) -> Any:
    """The demo with so many clients: those beyond the third have examples of their own in the same formats."""
    from h2tune.demo import demo_experiment

    demo = demo_experiment(0)
    rows = []
    for index in range(count):
        row = demo.clients[index % 3].model_dump()
        for part, size in (("train", 24), ("validation", 60), ("test", tests)):
            row[part] = f"demo:{row['name']}?split={part}&n={size}&seed={index // 3}"
        row["name"] += f"-{index // 3}" if index >= 3 else ""
        rows.append(row)
    method = {**demo.method, "aggregate": rule}
    return demo_experiment(0, clients=rows, rounds=rounds, method=method, baseline="none",
                           evaluation={"every": rounds, "n_validation": 60})  # fmt: skip


def practise_once() -> None:
    """Let clients on one model start from the same practised frames, as if one of them had published them."""
    from h2tune.methods import starts

    original, known = starts.practise, {}

    def practise(method: Any, rate: float) -> None:
        model, _, number = method.client.name.partition("-")
        if not number:
            original(method, rate)
            known[model] = [p.detach().clone() for p in method.factors]
        with torch.no_grad():
            for own, kept in zip(method.factors, known[model], strict=True):
                own.copy_(kept)

    starts.practise = practise


def run(experiment: Any, bad: list[str], attack: str | None, residents: Any) -> dict[str, Any]:
    """Final accuracies by client, and who was excluded."""
    from h2tune.client import Client, make_accelerator
    from h2tune.server import Server
    from h2tune.store import RunStore
    from h2tune.tasks.demo import demo_anchors
    from h2tune.transport.inprocess import InProcess

    residents.release()
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        store = RunStore(folder)
        identity = store.create(experiment)
        accelerator = make_accelerator(experiment, "cpu")
        clients = {
            c.name: Client(c, experiment, residents, demo_anchors(60), None, None, accelerator)
            for c in experiment.clients
        }
        for index, name in enumerate(bad if attack else ()):
            poison(clients[name], str(attack), index)
        server = Server(experiment, identity, list(clients), InProcess(clients), store)
        server.run()
    finals = {n: m.final["metric"] if m.final else None for n, m in server.members.items()}
    excluded = [n for n, m in server.members.items() if m.status != "ok"]
    return {"clients": finals, "excluded": excluded, "seconds": time.perf_counter() - begin}


def suits(count: int, rule: str, attack: str) -> bool:
    if count > 3 and attack in ("nan", "unit") and rule not in ("mean", "median", "multi-krum", "closest", "agreeing"):
        return False
    return "krum" not in rule or count > 3


def summary(runs: dict[str, Any], bad: dict[int, list[str]]) -> list[dict[str, Any]]:
    """Mean accuracy of the honest clients of every run, against two clean runs."""
    rows = []
    for key, found in runs.items():
        size, rule, attack = key.split("/")
        honest = [n for n in found["clients"] if n not in bad[found["size"]]]

        def mean(run: dict[str, Any] | None, names: list[str] = honest) -> float | None:
            return run and sum(run["clients"][n] or 0.0 for n in names) / len(names)

        clean, best = mean(runs.get(f"{size}/{rule}/clean")), mean(runs.get(f"{size}/mean/clean"))
        value = mean(found)
        rows.append({"federation": size, "rule": rule, "attack": attack, "accuracy": value,
                     "over_clean_rule": clean and value - clean, "over_clean_mean": best and value - best})  # fmt: skip
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    attacks = ("clean", *ATTACKS)
    for size in sorted({row["federation"] for row in rows}):
        print(
            f"\n{size.replace('x', ' clients, ')} rounds: accuracy of the honest ones (and points against the clean run of the same rule)"
        )
        print(f"{'':<12}" + "".join(f"{attack:>16}" for attack in attacks))
        for rule in RULES:
            cells = {r["attack"]: r for r in rows if (r["federation"], r["rule"]) == (size, rule)}
            texts = [
                f"{100 * c['accuracy']:.1f} ({100 * (c['over_clean_rule'] or 0):+.1f})" if (c := cells.get(a)) else "-"
                for a in attacks
            ]
            print(f"{rule:<12}" + "".join(f"{text:>16}" for text in texts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/poison"), help="where practised frames are kept")
    parser.add_argument("--sizes", type=int, nargs="+", default=[3, 10], help="federations: 3 (1 bad) and 10 (3 bad)")
    parser.add_argument("--rounds", type=int, nargs="+", default=[10, 6], help="rounds of each of them")
    parser.add_argument("--tests", type=int, nargs="+", default=[200, 100], help="test rows of a client in each")
    parser.add_argument("--attacks", nargs="+", default=["clean", *ATTACKS])
    parser.add_argument("--rules", nargs="+", default=list(RULES))
    args = parser.parse_args()
    quiet_libraries()
    from h2tune.models import Residents

    torch.set_num_threads(1)
    practise_once()
    residents = Residents("cpu", args.out / "frames")
    runs = json.loads(RESULTS.read_text())["runs"] if RESULTS.is_file() else {}
    # One bad client of three; three of ten, one of each format.
    bad = {3: ["program"], 10: ["program", "fill-1", "choice-2"]}
    for count, rounds, tests in zip(args.sizes, args.rounds, args.tests, strict=True):
        cells = [(rule, attack) for attack in args.attacks for rule in args.rules if suits(count, rule, attack)]
        for rule, attack in cells:
            key = f"{count}x{rounds}/{rule}/{attack}"
            if key in runs:
                continue
            experiment = federation(count, rule, rounds, tests)
            runs[key] = run(experiment, bad[count], None if attack == "clean" else attack, residents)
            runs[key] |= {"size": count, "rounds": rounds, "tests": tests}
            rows = summary(runs, bad)
            print(f"{key:<24} {rows[-1]['accuracy']:.3f}  {runs[key]['seconds']:.0f} s", flush=True)
            write("poison", {"bad": bad, "table": rows, "runs": runs})
    show(summary(runs, bad))


if __name__ == "__main__":
    main()
