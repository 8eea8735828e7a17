"""The published filter as reconstructed: two small networks learn which paths pay (after Guo et al., arXiv 2602.18749).

    u = f1(z) + f2(hidden of f1)        allocated where u > 1/2; in a pair's first round by clusters, equal shares
    r = alpha sigma(R_round) + (1 - alpha) sigma(R_batch),   R = (m' - m) / max(m', m, 1e-6)

f1 (ExploitNet) fits r, f2 (ExploreNet) what is left, r - f1. z are seven standardised figures of student, teacher and
question; the paper's are not known. m of a batch is the mean of sigma(beta (Delta+ - Delta-)) before its update: a phase
starts at exactly 1/2 and no question repeats early, so batches can be compared, and what the next batch shows rewards the
batch before it. R_round compares 1/n on fixed public questions after two rounds. Without change, r is 1/2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from h2tune.distill.learnability import Scores, Values

FEATURES, WIDTH, EPOCHS, RATE, CLUSTERS = 7, 64, 10, 1e-3, 8
ENOUGH = 0.5  # of u


class ExploitNet(nn.Module):
    """MLP 7-64-64-1; gives its last hidden state, too."""

    def __init__(self, inputs: int = FEATURES) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(inputs, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU())
        self.last = nn.Linear(WIDTH, 1)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.body(z)
        return self.last(hidden)[:, 0], hidden


def features(teacher: Scores, student: Scores, questions: Values) -> NDArray[np.float32]:
    """z of every question of a slice, each column standardised over the slice; what is not known is at its mean.

    Args:
        questions: bytes of the questions.
    """
    with np.errstate(all="ignore"):
        c = np.clip(1 - teacher.n / student.n, -1, 1)
    columns = [student.n, teacher.n, c, student.rho, np.log1p(teacher.sizes), teacher.path_right, questions]
    found = np.stack([np.asarray(column, dtype=np.float64) for column in columns], 1)
    found[~np.isfinite(found)] = np.nan
    filled = np.where(np.isnan(found), _means(found), found)
    spread = filled.std(0)
    standard: NDArray[np.float32] = ((filled - filled.mean(0)) / np.where(spread > 0, spread, 1)).astype(np.float32)
    return standard


def _means(columns: Values) -> Values:
    """Mean of each column over what is known of it, 0 where nothing is."""
    known = ~np.isnan(columns)
    means: Values = np.where(known, columns, 0).sum(0) / np.maximum(known.sum(0), 1)
    return means


def change(after: float, before: float) -> float:
    """R, the relative rise: above 0 is better."""
    return (after - before) / max(after, before, 1e-6)


def rewards(moves: Sequence[tuple[list[int], float]], level: float, before: float, alpha: float) -> dict[int, float]:
    """r of every question of a phase.

    Args:
        moves: of each batch its questions and its m, in order. level, before: mean 1/n after this round and the last.
    """
    whole = _sigmoid(change(level, before))
    found: dict[int, float] = {}
    for place, (items, m) in enumerate(moves):
        r = whole
        if place + 1 < len(moves):  # what a batch did shows in the next
            r = alpha * whole + (1 - alpha) * _sigmoid(change(moves[place + 1][1], m))
        for item in items:
            found.setdefault(item, r)  # the first time that it was learnt from
    return found


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


class Bandit:
    """The two networks of a pair, and all that it has seen.

    Args:
        seed: of the networks' first weights and of the training's order.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.exploit, self.explore = ExploitNet(), ExploitNet(WIDTH)
        self.z, self.r = torch.zeros(0, FEATURES), torch.zeros(0)

    @property
    def trained(self) -> bool:
        return len(self.r) > 0

    @torch.no_grad()
    def scores(self, z: NDArray[np.float32]) -> Values:
        """u of every question."""
        common, hidden = self.exploit(torch.from_numpy(z))
        found: Values = (common + self.explore(hidden)[0]).double().numpy()
        return found

    def learn(self, z: NDArray[np.float32], r: Sequence[float]) -> None:
        """Ten passes over all that was seen: f1 on r, f2 on what f1 leaves."""
        self.z = torch.cat([self.z, torch.from_numpy(z)])
        self.r = torch.cat([self.r, torch.tensor(list(r), dtype=torch.float32)])
        exploit = torch.optim.AdamW(self.exploit.parameters(), lr=RATE)
        explore = torch.optim.AdamW(self.explore.parameters(), lr=RATE)
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(EPOCHS):
            for part in torch.randperm(len(self.r), generator=generator).split(32):
                common, hidden = self.exploit(self.z[part])
                _step(exploit, (common - self.r[part]).square().mean())
                rest = (self.r[part] - common).detach()
                _step(explore, (self.explore(hidden.detach())[0] - rest).square().mean())

    def tensors(self) -> dict[str, Tensor]:
        found = {"z": self.z, "r": self.r}
        for name, net in (("exploit", self.exploit), ("explore", self.explore)):
            found |= {f"{name}.{k}": v.detach().clone() for k, v in net.state_dict().items()}
        return found

    def load(self, tensors: dict[str, Tensor]) -> None:
        self.z, self.r = tensors["z"].clone(), tensors["r"].clone()
        for name, net in (("exploit", self.exploit), ("explore", self.explore)):
            net.load_state_dict(
                {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
            )


def _step(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def by_clusters(z: NDArray[np.float32], seed: int) -> list[int]:
    """Questions in turns from every cluster (k-means), the nearest to its centre first."""
    count = min(CLUSTERS, len(z))
    rng = np.random.default_rng(seed)
    centres = z[rng.choice(len(z), count, replace=False)].astype(np.float64)
    for _ in range(50):
        distance = ((z[:, None] - centres[None]) ** 2).sum(-1)
        held = distance.argmin(1)
        moved = np.stack([z[held == k].mean(0) if (held == k).any() else centres[k] for k in range(count)])
        if np.allclose(moved, centres):
            break
        centres = moved
    distance = ((z[:, None] - centres[None]) ** 2).sum(-1)
    held = distance.argmin(1)
    queues: list[list[int]] = []
    for k in range(count):
        near = distance[:, k]
        queues.append(sorted(np.flatnonzero(held == k).tolist(), key=lambda i, near=near: (near[i], i)))  # type: ignore[misc]
    order: list[int] = []
    while any(queues):
        order += [queue.pop(0) for queue in queues if queue]
    return order
