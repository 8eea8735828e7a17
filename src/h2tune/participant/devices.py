"""Which devices this machine has, before anything is put on one."""

from __future__ import annotations

import torch
from accelerate.utils import is_hpu_available, is_npu_available

from h2tune.participant.errors import ModelError


def devices_here() -> list[str]:
    """Names of this machine's devices, as `device:` takes them."""
    found = ["cpu"]
    # NPUs and HPUs come to PyTorch with other packages, which these two import.
    there = {"cuda": True, "xpu": True, "hpu": is_hpu_available(), "npu": is_npu_available()}
    for kind in (kind for kind, installed in there.items() if installed):
        module = getattr(torch, kind, None)
        if module is not None and module.is_available():
            found += [f"{kind}:{i}" for i in range(module.device_count())]
    return [*found, "mps"] if torch.backends.mps.is_available() else found


def missing_device(device: str) -> str | None:
    """Why a device cannot be had here, in words; None if it can."""
    if device in ("auto", "cpu", "meta"):
        return None
    there = devices_here()
    # `cuda` is the first of its kind.
    if device in there or f"{device}:0" in there:
        return None
    return f"device: there is no {device} on this machine; there is {', '.join(there)}"


def check_device(device: str) -> None:
    """Raise ModelError, naming the devices that there are, if this machine lacks one."""
    if missing := missing_device(device):
        raise ModelError(missing)
