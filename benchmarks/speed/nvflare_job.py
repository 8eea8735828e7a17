"""The same work as a job of NVFlare, in its simulator: the FedAvg recipe over the LoRA's factors.

    pip install "nvflare[PT]==2.9.0" peft
    python benchmarks/speed/nvflare_job.py FOLDER src/h2tune/zoo/weights/llama --threads 32        # FOLDER from work.py

Written as NVFlare's documentation recommends: `FedAvgRecipe` in a `SimEnv`, a training script with the Client API, a thread for
each client. The script runs in its client's own process for the whole job, so it loads the model once and keeps AdamW's
moments in a variable.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

import numpy as np
from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe import SimEnv
from nvflare_model import Factors


def figures(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Losses of the rounds, and when the first begins and each ends, from what the clients noted: a round ends when its last client has."""
    notes = [json.loads(line) for path in folder.glob("*.jsonl") for line in path.read_text().splitlines()]
    of_round = [[note for note in notes if note["round"] == number] for number in range(rounds)]
    ends = [
        min(note["begin"] for note in of_round[0]),
        *(max(note["end"] for note in some) for some in of_round),
    ]
    return {
        "losses": [sum(note["loss"] for note in some) / len(some) for some in of_round],
        "ends": ends,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("source", type=Path, help="folder of the base model")
    parser.add_argument("--threads", type=int, help="clients at a time; by default all, as NVFlare has it")
    args = parser.parse_args()
    folder, source = args.folder.resolve(), args.source.resolve()
    clients, rounds = np.load(folder / "batches.npz")["ids"].shape[:2]
    os.chdir(Path(__file__).parent)  # the recipe takes the script from the working directory
    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory() as notes, tempfile.TemporaryDirectory() as workspace:
        recipe = FedAvgRecipe(
            name="speed",
            model=Factors(str(folder), str(source)),
            min_clients=clients,
            num_rounds=rounds,
            train_script="nvflare_app.py",
            train_args=f"{folder} {source} {notes}",
        )
        recipe.execute(SimEnv(num_clients=clients, num_threads=args.threads, workspace_root=workspace))
        print(json.dumps(figures(Path(notes), rounds)))


if __name__ == "__main__":
    main()
