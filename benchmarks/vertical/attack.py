"""What a passive party reads from the gradients it is sent: the labels of aligned people, without and with `label_dp`.

python benchmarks/vertical/attack.py

The party knows its own slice of the top layer, nu, and the gradient G of its embeddings. On aligned rows G is a product of
the derivative of the loss with respect to the class scores and nu; the pseudo-inverse of nu undoes the product, and the
true class is the only one whose derivative is negative. A second attack does not use nu: it groups rows by the direction
of their gradient alone and names each group by an oracle, so its figure is what an attacker with side knowledge gets.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from grid import built, loaded, write
from problems import Setting
from torch import Tensor
from torch.nn import functional as F

from h2tune.protocol.codec import decode
from h2tune.transport.inprocess import InProcess
from h2tune.vertical.compare import interval
from h2tune.vertical.config import parse_vertical
from h2tune.vertical.exchange import Exchange, NoLog
from h2tune.vertical.federation import Federation, salt_of
from h2tune.vertical.labels import numbers
from h2tune.vertical.passive import Passive

SEEDS = range(3)
EPSILONS = (None, 4.0, 2.0, 1.0)


class Curious(Passive):
    """A party that follows the protocol and keeps what it is sent."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.gradients: list[Tensor] = []
        self.slices: list[Tensor] = []

    def handle(self, data: bytes) -> bytes:
        """As a party, and keep."""
        message = decode(data)
        tensors = message.payload.tensors
        if message.kind == "step" and "gradient" in tensors and self.round == 2:
            self.gradients.append(tensors["gradient"].clone())
        if message.kind == "local":
            self.slices.append(tensors["nu"].clone())
        return super().handle(data)


def by_prototypes(gradient: Tensor, nu: Tensor) -> Tensor:
    """The class whose score would rise: the true one."""
    return (gradient @ torch.linalg.pinv(nu)).argmin(1)


def by_direction(gradient: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Each row gets the class of the nearest mean gradient direction; the means are given by an oracle."""
    unit = F.normalize(gradient, dim=1)
    means = F.normalize(F.one_hot(truth, classes).float().T @ unit, dim=1)
    return (unit @ means.T).argmax(1)


def attacked(table: str, epsilon: float | None, seed: int) -> dict[str, float]:
    """Shares of labels that each attack gets right, and the bound."""
    problem = built(Setting(table, aligned=400), seed)
    config = parse_vertical(problem.config(seed, exposure={"label_dp": epsilon}, rounds=3,
                                           training={"batch": 400, "dropout": 0.0, "steps": 3}))  # fmt: skip
    data = loaded(problem, seed)
    parties = {p.name: Curious(config, data[p.name], salt_of(config, p.name)) for p in config.passive}
    exchange = Exchange("0" * 32, "proto-evfl", list(parties), InProcess(dict(parties)), NoLog(), 1 << 30)
    active = Federation(config, data[config.label.party], exchange).run()
    names = [data[config.label.party].train.labels[i] for i in active.meeting.rows.tolist()]
    truth, classes = numbers(names, active.classes), len(active.classes)
    spy = next(iter(parties.values()))
    shares = torch.bincount(truth, minlength=classes) / len(truth)
    keep = 1.0 if epsilon is None else math.exp(epsilon) / (math.exp(epsilon) + classes - 1)
    other = (1 - keep) / (classes - 1)
    # The best that anyone can do who sees the label after randomised response and knows the class shares.
    bound = float(
        torch.stack(
            [
                torch.maximum(shares[c] * keep, (shares * other).masked_fill(torch.arange(classes) == c, 0).max())
                for c in range(classes)
            ]
        ).sum()
    )
    first, nu = spy.gradients[0], spy.slices[0]
    return {
        "prototypes": float((by_prototypes(first, nu) == truth).float().mean()),
        "direction": float((by_direction(first, truth, classes) == truth).float().mean()),
        "bound": bound,
    }


def main() -> None:
    """Run, print, keep."""
    torch.set_num_threads(1)
    rows = []
    for table in ("adult", "segment", "optdigits"):
        found = {(epsilon, seed): attacked(table, epsilon, seed) for seed in SEEDS for epsilon in EPSILONS}
        for epsilon in EPSILONS:
            runs = [found[epsilon, seed] for seed in SEEDS]
            row: dict[str, Any] = {"table": table, "label_dp": epsilon} | {
                k: interval([r[k] for r in runs]) for k in runs[0]
            }
            rows.append(row)
            print(
                f"{table:<10} label_dp {epsilon}: " + ", ".join(f"{k} {100 * row[k][0]:.1f} %" for k in runs[0]),
                flush=True,
            )
    write("vertical-attack", {"rows": rows})


if __name__ == "__main__":
    main()
