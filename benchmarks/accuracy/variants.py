"""One federation in many variants: ablations, and ideas tried before a comparison. Restartable: finished runs are kept.

Run as: python benchmarks/accuracy/variants.py benchmarks/accuracy/ablations.yaml runs/ablations

The file names a federation (`base:`), the seeds, what is read (`read: test` or `validation`), and the variants: what each
changes in the federation, section by section (a `method` with a name replaces the base's). `clients: 6` builds so many from the base's own, each with its part of the data; any other
key of a client (`keep`, `joins`) holds for all clients, or under `last:` for the last one. With `read: validation` the seed is the
one on which rates are tuned and no test row is looked at; labelled rows that no client trains on are held out for it (`held_out: 300`).
The result is OUT/variants.json: for every variant the clients' figures by seed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from h2tune.comparison.cells import TUNING_SEED, UNREAD_TEST
from h2tune.config import Experiment, parse_config
from h2tune.federation import run
from h2tune.participant.base_models import ModelPool
from h2tune.store import RunStore
from h2tune.utils.logging import quiet_libraries

Plain = dict[str, Any]


def merged(base: Plain, changes: Plain) -> Plain:
    """The base with a variant's changes; sections are merged, everything else is replaced."""
    found = dict(base)
    for key, value in changes.items():
        if key not in ("clients", "every_client", "last"):
            section = base.get(key, {}) if isinstance(value, dict) and "name" not in value else {}
            found[key] = section | value if isinstance(value, dict) else value
    clients = [dict(client) for client in base["clients"]]
    if "clients" in changes:
        clients = cloned(clients, changes["clients"])
    clients = [client | changes.get("every_client", {}) for client in clients]
    clients[-1] |= changes.get("last", {})
    return found | {"clients": clients, "methods": {}}


def cloned(clients: list[Plain], count: int) -> list[Plain]:
    """``count`` clients: the base's in turn, each with the part of the data that is its own."""
    found = []
    for number in range(count):
        client = dict(clients[number % len(clients)])
        train = client["train"].replace("n=72", f"n={24 * count}")
        found.append(
            client | {"name": f"{client['name']}-{number + 1}", "train": train, "part": f"{number + 1}/{count}"}
        )
    return found


def held_out(client: Plain, folder: Path, rows: int, home: Path) -> Plain:
    """The client with its training file cut in two: the last ``rows`` rows are for validation."""
    source = (home / client["train"]).resolve()
    lines = source.read_text(encoding="utf-8").rstrip("\n").split("\n")  # texts may hold other line separators
    head = lines[:1] if source.suffix == ".tsv" else []
    parts = {"train": lines[len(head) : -rows], "validation": lines[-rows:]}
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        path = folder / f"{source.parent.name}-{source.stem}-{name}{source.suffix}"
        path.write_text("\n".join(head + part) + "\n", encoding="utf-8")
        client = client | {name: str(path.resolve())}
    return client | {"n_test": UNREAD_TEST}


def experiment_of(plan: Plain, home: Path, out: Path, variant: str, seed: int) -> Experiment:
    folder = (home / plan["base"]).parent
    base = yaml.safe_load((home / plan["base"]).read_text(encoding="utf-8"))
    data = merged(merged(base, plan.get("all", {})), plan["variants"][variant] or {})
    if plan.get("held_out"):
        data["clients"] = [held_out(c, out / "data", plan["held_out"], folder) for c in data["clients"]]
        data["evaluation"] = data["evaluation"] | {"n_validation": plan["held_out"]}
    return parse_config(data | {"seed": seed}, folder)


def figures(experiment: Experiment, folder: Path, models: ModelPool) -> Plain:
    """One run, or what it left when it was finished before."""
    if (folder / "metrics.json").is_file():
        metrics = json.loads((folder / "metrics.json").read_text())
    else:
        metrics = run(experiment, folder, resume=RunStore(folder).exists, models=models)
        models.release()
    return {name: client["final"] for name, client in metrics["clients"].items()} | {"seconds": metrics["seconds"]}


def line(name: str, seed: int, found: Plain, read: str) -> str:
    keys = ("validation", "validation_nats") if read == "validation" else ("metric", "nats")
    clients = {n: f for n, f in found.items() if n != "seconds" and f}
    shown = "  ".join(f"{n} {f[keys[0]]:.3f}/{f[keys[1]]:.3f}" for n, f in clients.items())
    mean = " ".join(f"{sum(f[key] for f in clients.values()) / len(clients):.4f}" for key in keys)
    return f"{name:<34} seed {seed}  mean {mean}   {shown}   {found['seconds']:.0f} s"


def main() -> None:
    quiet_libraries()
    file, out = Path(sys.argv[1]), Path(sys.argv[2])
    plan, models = yaml.safe_load(file.read_text(encoding="utf-8")), ModelPool("cpu", out / "frames")
    read = plan["read"]
    seeds = [TUNING_SEED] if read == "validation" else plan["seeds"]
    results: dict[str, Plain] = {}
    for variant in plan["variants"]:
        for seed in seeds:
            experiment = experiment_of(plan, file.parent, out, variant, seed)
            found = figures(experiment, out / variant.replace(" ", "-").replace("/", "-") / f"seed-{seed}", models)
            results.setdefault(variant, {})[str(seed)] = found
            print(line(variant, seed, found, read), flush=True)
        command = f"python benchmarks/accuracy/variants.py benchmarks/accuracy/{file.name} runs/{file.stem}"
        result = {"command": command, "base": plan["base"], "read": read, "plan": plan["variants"], "results": results}
        (out / "variants.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
