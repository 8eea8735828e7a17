"""Simulated federations of many clients, of which a round selects a hundred: seconds and memory of every round.

    OMP_NUM_THREADS=1 python benchmarks/speed/many.py --clients 100 1000 10000

Every size runs in a process of its own: FedIT of rank 4 on a tiny Llama, two updates of 4 rows a client and round. The clock is
processor time. Memory is what the process holds at the end of a round (resident set).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).parents[1]))
from common import RESULTS, about, amend, interval_name, median_interval, read, refuse_others

SELECTED, ROUNDS = 100, 20


def tiny_model(folder: Path) -> str:
    """A Llama of two blocks with random weights and the zoo's tokenizer."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from h2tune.zoo import zoo_folder

    tokenizer = AutoTokenizer.from_pretrained(zoo_folder("llama"))
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=256, pad_token_id=tokenizer.pad_token_id, **size
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def federation(model: str, clients: int) -> dict[str, Any]:
    def rows(part: str, count: int, seed: int) -> str:
        return f"demo:choice?split={part}&n={count}&seed={seed}"

    members = [
        {"name": f"c{i:05d}", "model": model, "task": "demo-choice", "train": rows("train", 16, i),
         "validation": rows("validation", 2, i), "test": rows("test", 2, i)}
        for i in range(clients)
    ]  # fmt: skip
    training = {"steps": 2, "batch_size": 4, "label_bias": False}
    return {
        "name": "many", "rounds": 999, "rank": 4, "method": "fedit", "device": "cpu", "clients": members,
        "participation": SELECTED / clients, "training": training, "evaluation": {"every": 999},
    }  # fmt: skip


def resident() -> int:
    """Bytes of memory that this process holds."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure(clients: int, rounds: int) -> dict[str, Any]:
    """Set a federation up and hold some rounds."""
    from h2tune.config import parse_config
    from h2tune.participant.base_models import ModelPool
    from h2tune.server import Server
    from h2tune.simulation.clients import in_process
    from h2tune.store import RunStore

    with tempfile.TemporaryDirectory() as folder:
        experiment = parse_config(federation(tiny_model(Path(folder) / "model"), clients))
        store = RunStore(Path(folder) / "run")
        begin = time.process_time()
        party = in_process(experiment, store, ModelPool("cpu"))
        server = Server(experiment, store.create(experiment), list(party.clients), party, store)
        server.open()
        setup, seconds, memory = time.process_time() - begin, [], []
        for _ in range(rounds):
            begin = time.process_time()
            assert not server.one_round()
            seconds.append(time.process_time() - begin)
            memory.append(resident())
        disk = sum(path.stat().st_size for path in (store.folder / "clients").rglob("*") if path.is_file())
    return {"setup_seconds": setup, "round_seconds": seconds, "memory": memory, "disk_of_clients": disk}


def summary(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """For each size: seconds of a round from the third on, and how memory went on from there."""
    return {
        size: {
            "round_seconds": median_interval(values["round_seconds"][3:]),
            "setup_milliseconds_of_a_client": 1000 * values["setup_seconds"] / int(size),
            "memory_after_round_3": values["memory"][2],
            "memory_at_the_end": values["memory"][-1],
        }
        for size, values in found.items()
    }


def add(path: Path, size: int, found: dict[str, Any]) -> dict[str, Any]:
    """Put what was measured into the result, which other programs may be filling, too."""
    said = {"selected": SELECTED, "rounds": len(found["round_seconds"]), "clock": "processor seconds",
            "load": os.getloadavg()[0]}  # fmt: skip

    def added(known: dict[str, Any]) -> dict[str, Any]:
        every = known.get("all", {}) | {str(size): found}
        return about() | said | {"summary": summary(every), "all": every}

    return amend(path, added)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[100, 1000, 10000])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--alone", action="store_true", help="measure one size in this process and print it")
    parser.add_argument("--name", default="many", help="name of the result; sizes that are in it are not run again")
    args = parser.parse_args()
    if args.rounds < 4:
        parser.error("--rounds: the first three are not counted")
    if args.alone:
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        from h2tune.utils.logging import quiet_libraries

        quiet_libraries()
        print(json.dumps(measure(args.clients[0], args.rounds)))
        return
    path = RESULTS / "speed" / f"{args.name}.json"
    for size in args.clients:
        if str(size) in (there := read(path).get("all", {})):
            held = {"rounds": len(there[str(size)]["round_seconds"])}
            refuse_others({"settings": held}, {"rounds": args.rounds}, f"{size} clients in {path.name}")
            continue
        command = [sys.executable, __file__, "--alone", "--clients", str(size), "--rounds", str(args.rounds)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        found = add(path, size, json.loads(done.stdout.splitlines()[-1]))
        print(size, found["summary"][str(size)], f"(the {interval_name(args.rounds - 3)})", flush=True)


if __name__ == "__main__":
    main()
