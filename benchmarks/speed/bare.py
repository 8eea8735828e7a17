"""The same work as a loop that anybody would write: one PEFT model, its LoRA taken from client to client, the mean at the end.

    python benchmarks/speed/bare.py FOLDER        # FOLDER from work.py

No federated code at all: what a round costs beyond this is what a framework costs.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from work import RANK, RATE

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def peft_model(folder: Path, source: str, device: str = "cpu") -> Any:
    """The base with a LoRA on all its maps, A as all contestants begin and B at 0; on a GPU the base is in bfloat16."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(source, dtype=dtype).to(device),
        LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS, task_type="CAUSAL_LM"),
    )
    start = np.load(folder / "start.npz")
    with torch.no_grad():
        for name, parameter in trained(model).items():
            if ".lora_A." in name:
                parameter.copy_(torch.from_numpy(start[name.removeprefix("base_model.model.").split(".lora_A")[0]]))
    return model.train()


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


class Moments:
    """A client's AdamW over the rounds: the parameters are the model's, the moments the client's."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self.optimiser = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0, fused=True)

    def update(self, model: Any, ids: Tensor, labels: Tensor) -> float:
        loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        return float(loss.detach())


class Bare:
    """Federated averaging without a framework.

    Args:
        clients: take part; by default all of the work's.
    """

    def __init__(self, folder: Path, source: str, clients: int | None = None, device: str = "cpu") -> None:
        batches = np.load(folder / "batches.npz")
        self.ids, self.labels = (torch.from_numpy(batches[name][:clients]).to(device) for name in ("ids", "labels"))
        self.model = peft_model(folder, source, device)
        self.parameters = list(trained(self.model).values())
        self.shared = [p.detach().clone() for p in self.parameters]
        self.moments = [Moments(self.parameters) for _ in range(len(self.ids))]

    def round(self, number: int) -> float:
        """One round; returns the mean loss of its updates."""
        sums, losses = [torch.zeros_like(p, dtype=torch.double) for p in self.shared], []
        for client, moments in enumerate(self.moments):
            with torch.no_grad():
                for own, value in zip(self.parameters, self.shared, strict=True):
                    own.copy_(value)
            for ids, labels in zip(self.ids[client, number], self.labels[client, number], strict=True):
                losses.append(moments.update(self.model, ids, labels))
            for total, own in zip(sums, self.parameters, strict=True):
                total += own.detach().double() / len(self.moments)
        self.shared = [total.float() for total in sums]
        return sum(losses) / len(losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("source", help="folder of the base")
    args = parser.parse_args()
    torch.set_num_threads(1)
    bare = Bare(args.folder, args.source)
    ends, losses = [time.time()], []
    for number in range(bare.ids.shape[1]):
        losses.append(bare.round(number))
        ends.append(time.time())
    print(json.dumps({"losses": losses, "ends": ends}))


if __name__ == "__main__":
    main()
