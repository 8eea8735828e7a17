"""Rounds of one process against a bare PEFT loop: the same updates on the same rows, one thread, interleaved.

    python benchmarks/speed/work.py WORK --clients 8 --rounds 6
    OMP_NUM_THREADS=1 python benchmarks/speed/loop.py WORK

Whole rounds are measured on both sides: for h2tune messages, training, the clients' saved states and the commit. The clock
is processor time, so that other programs on the machine matter little; with `--device cuda` it is the clock on the wall.
The first round of each is not counted.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from bare import Bare

from h2tune.config import parse_config
from h2tune.participant.base_models import ModelPool
from h2tune.server import Server
from h2tune.simulation.clients import in_process
from h2tune.store import RunStore
from h2tune.utils.logging import quiet_libraries
from h2tune.zoo import zoo_folder

sys.path.append(str(Path(__file__).parents[1]))
from common import interval_name, median_interval, write


def ours(folder: Path, work: Path, parallel: int | str, device: str = "cpu") -> tuple[Callable[[], float], Server]:
    """A federation that is set up, and a function that runs its next round and returns the mean loss."""
    plain = yaml.safe_load((work / "federation.yaml").read_text()) | {"parallel": parallel}
    plain["rounds"] = 999  # no round is the last, which would be scored
    plain["evaluation"], plain["device"] = {"every": 999}, device
    experiment, store = parse_config(plain), RunStore(folder / str(parallel))
    party = in_process(experiment, store, ModelPool(device))
    server = Server(experiment, store.create(experiment), list(party.clients), party, store)
    server.open()

    def one_round() -> float:
        assert not server.one_round()
        last = [member.rounds[-1]["loss"]["local"] for member in server.members.values()]
        return float(sum(last) / len(last))

    return one_round, server


def summary(
    seconds: dict[str, list[float]], losses: dict[str, list[float]], updates: int, clock: str
) -> dict[str, Any]:
    """Medians with intervals over the rounds after the first."""
    bare = seconds["bare"][1:]
    return {
        "updates_per_round": updates,
        "clock": clock,
        "load": os.getloadavg()[0],  # processes that wanted a core
        "losses": losses,
        "all_seconds": seconds,
        "updates_per_second": {n: median_interval([updates / s for s in v[1:]]) for n, v in seconds.items()},
        "ratio_to_bare": {
            n: median_interval([b / s for b, s in zip(bare, v[1:], strict=True)])
            for n, v in seconds.items()
            if n != "bare"
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--parallel", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--device", default="cpu", help="`cpu` or `cuda`")
    parser.add_argument("--name", default="loop", help="name of the result")
    args = parser.parse_args()
    on_gpu = args.device != "cpu"
    now, clock = (time.perf_counter, "wall seconds") if on_gpu else (time.process_time, "processor seconds")
    source = yaml.safe_load((args.work / "federation.yaml").read_text())["clients"][0]["model"]
    quiet_libraries()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        folder_of_model = str(zoo_folder(source[4:])) if source.startswith("zoo:") else source
        bare = Bare(args.work, folder_of_model, device=args.device)
        if (rounds := bare.ids.shape[1]) < 3:
            sys.exit(
                f"{args.work} has {rounds} rounds: the first is not counted, and one says nothing; make 3 or more"
            )
        runs: dict[str, Callable[[], float]] = {}
        for p in args.parallel:
            begin = now()
            runs[f"parallel {p}"] = ours(Path(folder), args.work, p, args.device)[0]
            print(f"parallel {p}: {now() - begin:.1f} s to load, join and score the untouched model", flush=True)
        seconds: dict[str, list[float]] = {name: [] for name in ("bare", *runs)}
        losses: dict[str, list[float]] = {name: [] for name in seconds}
        for number in range(rounds):
            for name in seconds:
                begin = now()
                losses[name].append(bare.round(number) if name == "bare" else runs[name]())
                seconds[name].append(now() - begin)
            print({name: round(values[-1], 2) for name, values in seconds.items()}, flush=True)
            if number > 1:
                result = summary(seconds, losses, bare.ids.shape[0] * bare.ids.shape[2], clock)
                write(
                    f"speed/{args.name}",
                    {"model": Path(source).name, "clients": bare.ids.shape[0], "rounds": number + 1} | result,
                )
    print(f"medians, with the {interval_name(rounds - 1)}")
    for name, (median, low, high) in result["ratio_to_bare"].items():
        print(f"{name}: {median:.2f} ({low:.2f} to {high:.2f}) times the bare loop's updates per second")


if __name__ == "__main__":
    main()
