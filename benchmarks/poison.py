"""Poisoned clients: what each rule of aggregation survives, on the demo federation of three and on one of ten.

A poisoned client trains as it should and then sends something else than its S: its update turned round (`flip`), a
hundred times too large (`large`), noise of ten times its size (`noise`), values that are not finite (`nan`), or its core
in another unit, x 0.01 (`unit`). 1 of 3 and 3 of 10 clients are bad. Accuracies are means over the honest clients.
`+check` after a rule: clients have `accept: validation`, they take a received core only as far as it fits their own data.
Frames are practised once per model and kept under --out; a seed draws the clients' examples anew.
Finished runs are not repeated: the JSON goes on where it stopped. The grid is reduced: `nan` and `unit` on ten clients
not for `trimmed`, `krum` and `bounded`, and seeds beyond 0 for the rules that are asked for.

Run as: python benchmarks/poison.py --out runs/poison
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import about, amend, read, refuse_others
from torch import Tensor

from h2tune.utils.logging import quiet_libraries

CHECK = "+check"
RULES = ("mean", "median", "trimmed", "krum", "multi-krum", "closest", "agreeing", "bounded",
         "mean+check", "agreeing+check")  # fmt: skip
# One bad client of three; three of ten, one of each format.
BAD = {3: ["program"], 10: ["program", "fill-1", "choice-2"]}
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


def federation(count: int, rule: str, rounds: int, tests: int, seed: int) -> Any:
    """The demo with so many clients: those beyond the third have examples of their own in the same formats."""
    from h2tune.demo import demo_experiment

    demo = demo_experiment(0)
    rows = []
    for index in range(count):
        row = demo.clients[index % 3].model_dump()
        for part, size in (("train", 24), ("validation", 60), ("test", tests)):
            row[part] = f"demo:{row['name']}?split={part}&n={size}&seed={index // 3 + 10 * seed}"
        row["name"] += f"-{index // 3}" if index >= 3 else ""
        rows.append(row)
    accept = "validation" if rule.endswith(CHECK) else "always"
    method = {**demo.method, "aggregate": rule.removesuffix(CHECK), "accept": accept}
    return demo_experiment(0, clients=rows, rounds=rounds, method=method, baseline="none",
                           evaluation={"every": rounds, "n_validation": 60})  # fmt: skip


def practise_once() -> None:
    """Let clients on one model start from the same practised frames, as if one of them had published them."""
    from h2tune.frames import glossary

    original, known = glossary.practise, {}

    def practise(method: Any, rate: float) -> None:
        model, _, number = method.context.name.partition("-")
        if not number:
            original(method, rate)
            known[model] = [p.detach().clone() for p in method.factors]
        with torch.no_grad():
            for own, kept in zip(method.factors, known[model], strict=True):
                own.copy_(kept)

    glossary.practise = practise


def run(experiment: Any, bad: list[str], attack: str | None, models: Any) -> dict[str, Any]:
    """Final accuracies by client, and who was excluded."""
    from h2tune.client import Client
    from h2tune.participant.context import make_accelerator
    from h2tune.server import Server
    from h2tune.store import RunStore
    from h2tune.tasks.demo_problems import demo_anchors
    from h2tune.transport.inprocess import InProcess

    models.release()
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        store = RunStore(folder)
        identity = store.create(experiment)
        accelerator = make_accelerator(experiment, "cpu")
        clients = {
            c.name: Client(c, experiment, models, demo_anchors(60), None, None, accelerator)
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
    if count > 3 and attack in ("nan", "unit") and rule in ("trimmed", "krum", "bounded"):
        return False
    return "krum" not in rule or count > 3


def named(key: str) -> dict[str, Any]:
    """What a run's key says: clients x rounds / rule / attack / seed / bad clients."""
    size, rule, attack, seed, bad = key.split("/")
    return {"federation": size, "rule": rule, "attack": attack, "seed": int(seed.removeprefix("seed-")), "bad": bad}


def summary(runs: dict[str, Any]) -> list[dict[str, Any]]:
    """Mean accuracy of the honest clients of every run, against two clean runs with the same seed."""
    rows = []
    for key, found in runs.items():
        row = named(key)
        bad = row["bad"].split("+")

        def mean(run: dict[str, Any] | None, bad: list[str] = bad) -> float | None:
            honest = run and [value or 0.0 for name, value in run["clients"].items() if name not in bad]
            return honest and sum(honest) / len(honest)

        def clean(rule: str, row: dict[str, Any] = row) -> dict[str, Any] | None:
            usual = "+".join(BAD[int(row["federation"].split("x")[0])])
            return runs.get(f"{row['federation']}/{rule}/clean/seed-{row['seed']}/{usual}")

        value, own, best = mean(found), mean(clean(row["rule"])), mean(clean("mean"))
        rows.append(
            row | {"accuracy": value, "over_clean_rule": own and value - own, "over_clean_mean": best and value - best}
        )
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Tables as docs/robust.md has them."""
    for size in sorted({row["federation"] for row in rows}):
        print(f"\n{size.replace('x', ' clients, ')} rounds\n")
        print(f"| `aggregate` | runs | {' | '.join(('clean', *ATTACKS))} |\n" + "|---" * (len(ATTACKS) + 3) + "|")
        for rule in RULES:
            cells = [cell(rows, size, rule, attack) for attack in ("clean", *ATTACKS)]
            count = max(len({(r["seed"], r["bad"]) for r in rows if (r["federation"], r["rule"]) == (size, rule)}), 0)
            if count:
                print(f"| `{rule}` | {count} | {' | '.join(cells)} |")


def cell(rows: list[dict[str, Any]], size: str, rule: str, attack: str) -> str:
    """Mean accuracy in per cent, and the mean difference to the clean runs of the same rule and of the plain mean."""
    found = [r for r in rows if (r["federation"], r["rule"], r["attack"]) == (size, rule, attack)]
    if not found:
        return "-"

    def points(key: str) -> str:
        known = [r[key] for r in found if r[key] is not None]
        return f"{100 * sum(known) / len(known):+.1f}" if known else "?"

    accuracy = 100 * sum(r["accuracy"] for r in found) / len(found)
    if attack == "clean":
        return f"{accuracy:.1f} ({points('over_clean_mean')})"
    return f"{accuracy:.1f} ({points('over_clean_rule')}, {points('over_clean_mean')})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/poison"), help="where practised frames are kept")
    parser.add_argument("--sizes", type=int, nargs="+", default=[3, 10], help="federations: 3 (1 bad) and 10 (3 bad)")
    parser.add_argument("--rounds", type=int, nargs="+", default=[10, 6], help="rounds of each of them")
    parser.add_argument("--tests", type=int, nargs="+", default=[200, 100], help="test rows of a client in each")
    parser.add_argument("--attacks", nargs="+", default=["clean", *ATTACKS])
    parser.add_argument("--rules", nargs="+", default=list(RULES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--bad", nargs="+", help="the bad clients, in place of the usual ones")
    args = parser.parse_args()
    quiet_libraries()
    from h2tune.participant.base_models import ModelPool

    torch.set_num_threads(1)
    practise_once()
    models = ModelPool("cpu", args.out / "frames")
    grid = [
        (seed, count, rounds, tests, attack, rule)
        for seed in args.seeds
        for count, rounds, tests in zip(args.sizes, args.rounds, args.tests, strict=True)
        for attack in args.attacks
        for rule in args.rules
        if suits(count, rule, attack)
    ]
    for seed, count, rounds, tests, attack, rule in grid:
        bad = args.bad or BAD[count]
        key = f"{count}x{rounds}/{rule}/{attack}/seed-{seed}/{'+'.join(bad)}"
        if key in (there := kept()):  # its key says all but the number of test rows
            refuse_others({"settings": {"tests": there[key].get("tests", tests)}}, {"tests": tests}, key)
            continue
        experiment = federation(count, rule, rounds, tests, seed)
        found = run(experiment, bad, None if attack == "clean" else attack, models)
        rows = add(key, found | {"tests": tests} | about())
        print(f"{key:<50} {rows[-1]['accuracy']:.3f}  {found['seconds']:.0f} s", flush=True)
    show(summary(kept()))


def kept() -> dict[str, Any]:
    return dict(read(RESULTS).get("runs", {}))


def add(key: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    """Put a run into the table, which other programs may be filling, too."""

    def added(known: dict[str, Any]) -> dict[str, Any]:
        runs = known.get("runs", {}) | {key: found}
        return about() | {"table": summary(runs), "runs": runs}

    return list(amend(RESULTS, added)["table"])


if __name__ == "__main__":
    main()
