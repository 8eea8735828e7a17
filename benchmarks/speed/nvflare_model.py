"""What the server of `nvflare_job.py` holds: the LoRA's factors as a model of their own, since only they travel."""

from __future__ import annotations

from pathlib import Path

from bare import peft_model, trained
from torch import nn


def key(name: str) -> str:
    """The name of a factor here; PyTorch allows no dots in it."""
    return name.replace(".", "/")


class Factors(nn.Module):
    """The factors with which all begin.

    Args:
        folder: from work.py. source: folder of the base model.
    """

    def __init__(self, folder: str, source: str) -> None:
        super().__init__()
        self.folder, self.source = folder, source
        for name, parameter in trained(peft_model(Path(folder), source)).items():
            self.register_parameter(key(name), nn.Parameter(parameter.detach().clone()))
