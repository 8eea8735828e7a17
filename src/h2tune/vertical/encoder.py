"""A party's network, its optimisers, and their state as named tensors (no pickle anywhere)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from h2tune.utils.seeds import derive


def make_encoder(width: int, hidden: int, dim: int, seed: int) -> nn.Sequential:
    """An MLP width-hidden-hidden-dim; the seed alone decides its first weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, dim)
        )


def make_prototypes(parties: int, classes: int, dim: int, seed: int) -> nn.Parameter:
    """The top layer: one slice a party (K x C x d), first weights as of a linear layer."""
    generator = torch.Generator().manual_seed(seed)
    return nn.Parameter((2 * torch.rand(parties, classes, dim, generator=generator) - 1) / dim**0.5)


def adamw(parameters: Iterable[Tensor], rate: float, decay: float) -> torch.optim.AdamW:
    """The optimiser that all parts use."""
    return torch.optim.AdamW(list(parameters), lr=rate, weight_decay=decay, fused=True)


def pack(parts: dict[str, nn.Module | Tensor | torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Copies of all weights and optimiser moments, by name."""
    found: dict[str, Tensor] = {}
    for name, part in parts.items():
        if isinstance(part, torch.optim.Optimizer):
            for index, state in part.state_dict()["state"].items():
                found |= {f"{name}.{index}.{key}": torch.as_tensor(value).clone() for key, value in state.items()}
        elif isinstance(part, nn.Module):
            found |= {f"{name}.{key}": value.detach().clone() for key, value in part.state_dict().items()}
        else:
            found[name] = part.detach().clone()
    return found


def unpack(parts: dict[str, nn.Module | Tensor | torch.optim.Optimizer], tensors: dict[str, Tensor]) -> None:
    """Set all parts to what `pack` returned."""
    for name, part in parts.items():
        own = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
        if isinstance(part, torch.optim.Optimizer):
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in own.items():
                index, entry = key.split(".", 1)
                state.setdefault(int(index), {})[entry] = value.clone()
            part.load_state_dict({"state": state, "param_groups": part.state_dict()["param_groups"]})
        elif isinstance(part, nn.Module):
            part.load_state_dict(own)
        else:
            with torch.no_grad():
                part.copy_(tensors[name])


@lru_cache(maxsize=8)  # in one process all parties ask for the same batch, one after the other
def batch_rows(rows: int, size: int, seed: int, *purpose: object) -> Tensor:
    """Rows of one batch, none twice; the same on every machine that knows the seed."""
    chosen = np.random.default_rng(derive(seed, *purpose)).choice(rows, min(size, rows), replace=False)
    return torch.from_numpy(np.sort(chosen))


def corrupt(x: Tensor, pool: Tensor, chance: float, generator: torch.Generator) -> Tensor:
    """Rows with each cell swapped, by this chance, for the same column of a random row of the pool."""
    if chance == 0:
        return x
    swap = torch.rand(x.shape, generator=generator) < chance
    rows = torch.randint(len(pool), x.shape, generator=generator)
    return torch.where(swap, pool.gather(0, rows), x)
