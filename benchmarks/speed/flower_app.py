"""The clients' half of `flower.py`: a module of its own, since Ray's actors import it by name."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bare import Moments, peft_model, trained
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

FOLDER, SOURCE = Path(os.environ.get("SPEED_WORK", ".")), os.environ.get("SPEED_BASE", "")


@functools.cache
def in_this_actor() -> tuple[Any, Any, Any]:
    """Model and batches, once in a process."""
    torch.set_num_threads(1)
    batches = np.load(FOLDER / "batches.npz")
    return peft_model(FOLDER, SOURCE), batches["ids"], batches["labels"]


client_app = ClientApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """A round of one client: take the shared factors, make the updates, send the factors."""
    model, all_ids, all_labels = in_this_actor()
    own = trained(model)
    with torch.no_grad():
        for name, array in message.content["arrays"].items():
            own[name].copy_(torch.from_numpy(array.numpy()))
    moments = Moments(list(own.values()))
    if "moments" in context.state:
        flat: dict[int, dict[str, torch.Tensor]] = {}
        for key, array in context.state["moments"].items():
            index, kind = key.split(".")
            flat.setdefault(int(index), {})[kind] = torch.from_numpy(array.numpy().copy())
        whole = moments.optimiser.state_dict()
        moments.optimiser.load_state_dict({"state": flat, "param_groups": whole["param_groups"]})
    client, number = context.node_config["partition-id"], message.content["config"]["server-round"] - 1
    pairs = zip(all_ids[client, number], all_labels[client, number], strict=True)
    losses = [moments.update(model, torch.from_numpy(ids), torch.from_numpy(labels)) for ids, labels in pairs]
    kept = moments.optimiser.state_dict()["state"]
    context.state["moments"] = ArrayRecord(
        {f"{i}.{kind}": Array(value.numpy()) for i, values in kept.items() for kind, value in values.items()}
    )
    content = {
        "arrays": ArrayRecord({name: Array(p.detach().numpy()) for name, p in own.items()}),
        "metrics": MetricRecord({"loss": sum(losses) / len(losses), "num-examples": 1}),
    }
    return Message(content=RecordDict(content), reply_to=message)
