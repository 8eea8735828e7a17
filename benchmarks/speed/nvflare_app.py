"""The clients' half of `nvflare_job.py`: a training script with the Client API."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import nvflare.client as flare
import torch
from bare import Moments, peft_model, trained
from nvflare.client import FLModel
from nvflare_model import key


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("source")
    parser.add_argument("notes", type=Path, help="where losses and times are written down")
    args = parser.parse_args()
    torch.set_num_threads(1)
    flare.init()
    client = int(flare.get_site_name().removeprefix("site-")) - 1
    batches = np.load(args.folder / "batches.npz")
    all_ids, all_labels = batches["ids"][client], batches["labels"][client]
    model = peft_model(args.folder, args.source)
    own = trained(model)
    moments = Moments(list(own.values()))
    while flare.is_running():
        received = flare.receive()
        begin, number = time.time(), received.current_round
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(torch.as_tensor(received.params[key(name)]))
        pairs = zip(all_ids[number], all_labels[number], strict=True)
        losses = [moments.update(model, torch.from_numpy(ids), torch.from_numpy(labels)) for ids, labels in pairs]
        loss = sum(losses) / len(losses)
        flare.send(
            FLModel(
                params={key(name): parameter.detach().clone() for name, parameter in own.items()},
                metrics={"loss": loss},
                meta={"NUM_STEPS_CURRENT_ROUND": len(losses)},
            )
        )
        with open(args.notes / f"{client}.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"round": number, "loss": loss, "begin": begin, "end": time.time()}) + "\n")


if __name__ == "__main__":
    main()
