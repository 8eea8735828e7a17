"""The theory: how fast the gradient of the shared objective falls with the number of rounds.

Run as: python benchmarks/slope.py [--seeds 3]

F(S) = sum_i w_i L_i(S; A_i, B_i, P_i), over all training rows; its gradient is taken at the core that the server has
averaged. The stated rate is that of a whole run: with a step size proportional to 1 / sqrt(T), the mean of ||grad F||^2
over T rounds is O(1 / sqrt(T)). So there is one run for each T, with that step size, and a straight line through
log mean ||grad F||^2 against log T: its slope is to be -1/2 or less. Anchor frames, two phases by step, AdamW as always.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from common import write

from h2tune.client import Client
from h2tune.comparison.statistics import interval
from h2tune.config import Experiment
from h2tune.demo import demo_experiment
from h2tune.frames.sources import load_anchors
from h2tune.participant.base_models import ModelPool
from h2tune.participant.batches import collate
from h2tune.participant.context import make_accelerator
from h2tune.server import Server
from h2tune.store import RunStore
from h2tune.transport.inprocess import InProcess
from h2tune.utils.logging import quiet_libraries

ROUNDS, RATE = (2, 4, 8, 16, 32), 0.02
PICTURE = Path(__file__).parents[1] / "docs" / "slope.svg"


def experiment_of(seed: int, rounds: int) -> Experiment:
    """The demo's clients, as scarce as they are, with the default frames; a constant rate proportional to 1 / sqrt(T)."""
    base = demo_experiment(seed)
    rates = {"learning_rate": 0.002 / math.sqrt(rounds), "core_learning_rate": RATE / math.sqrt(rounds)}
    training = base.training.model_copy(update=rates | {"steps": 6, "schedule": "constant", "warmup": 0.0})
    clients = [client.model_copy(update={"practice": None}) for client in base.clients]
    evaluation = base.evaluation.model_copy(update={"every": rounds, "n_validation": 8})
    changes = {
        "rounds": rounds,
        "rank": 16,
        "training": training,
        "method": {"name": "h2tune", "frames": "anchor"},
        "clients": clients,
    }
    return base.model_copy(update=changes | {"evaluation": evaluation, "baseline": "none"})


def shared_gradient(clients: dict[str, Client], server: Server) -> float:
    """||grad F||^2 at the server's core, with every client's own A, B and P as they stand."""
    total, weight = torch.zeros_like(server.method.S), sum(len(c.context.data.train) for c in clients.values())
    for name, client in clients.items():
        method, context = client.method, client.context
        method.receive(server.method.download(name))
        model = method.activate().eval()
        for leaf in method.core_leaves:
            leaf.requires_grad_(True)
        method.groups["specific"].trainable(False)
        rows = context.data.train.encoded
        batch = collate(rows, context.tokenizer.pad_token_id)
        whole = iter([(batch, list(range(len(rows))))])
        context.trainer.gradients(model, whole, passes=context.passes)
        method.core.pull(method.core_leaves)
        total += method.core.S.grad * (len(rows) / weight)
        method.core.zero_grad()
    return float(total.square().sum())


def gradients(seed: int, rounds: int, folder: Path, models: ModelPool) -> list[float]:
    """The squared norm before every round of one run."""
    experiment, store = experiment_of(seed, rounds), RunStore(folder)
    accelerator, anchors = make_accelerator(experiment, "cpu"), load_anchors(experiment.anchors)
    clients = {
        c.name: Client(c, experiment, models, anchors, store.client(c.name), None, accelerator)
        for c in experiment.clients
    }
    server = Server(experiment, store.create(experiment), list(clients), InProcess(clients), store)
    server.open()
    found = []
    for _ in range(rounds):
        found.append(shared_gradient(clients, server))
        server.one_round()
    models.release()
    return found


def slope(points: list[tuple[int, float]]) -> float:
    x, y = (torch.tensor([math.log(p[k]) for p in points], dtype=torch.float64) for k in (0, 1))
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def draw(means: dict[int, list[float]], fitted: list[float]) -> None:
    """Mean squared gradient against rounds on logarithmic axes, with the stated slope through the first point."""
    width, height, left, bottom = 420, 280, 56, 40
    values = [v for seeds in means.values() for v in seeds]
    first = sum(means[min(means)]) / len(means[min(means)])
    stated = {t: first * math.sqrt(min(means) / t) for t in means}
    low, high = math.log10(min(*values, *stated.values())) - 0.1, math.log10(max(values)) + 0.1

    def x(rounds: int) -> float:
        share = math.log(rounds / min(means)) / math.log(max(means) / min(means))
        return round(left + 14 + share * (width - left - 30), 1)

    def y(value: float) -> float:
        return round(12 + (high - math.log10(value)) / (high - low) * (height - bottom - 20), 1)

    dots = "".join(f'<circle cx="{x(t)}" cy="{y(v)}" r="3"/>' for t, seeds in means.items() for v in seeds)
    mean = " ".join(f"{x(t)},{y(sum(s) / len(s))}" for t, s in means.items())
    line = " ".join(f"{x(t)},{y(v)}" for t, v in stated.items())
    ticks = "".join(f'<text x="{x(t)}" y="{height - 22}" text-anchor="middle">{t}</text>' for t in means)
    marks = "".join(
        f'<text x="{left - 6}" y="{y(10.0**p) + 4}" text-anchor="end">1e{p}</text>'
        for p in range(math.ceil(low), math.floor(high) + 1)
    )
    PICTURE.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">'
        f'<rect width="{width}" height="{height}" fill="#fff"/><g fill="#1f6f8b">{dots}</g>'
        f'<polyline points="{mean}" fill="none" stroke="#1f6f8b"/>'
        f'<polyline points="{line}" fill="none" stroke="#888" stroke-dasharray="5 4"/>{ticks}{marks}'
        f'<text x="{width / 2}" y="{height - 6}" text-anchor="middle">rounds T (one run each, step size ~ 1/sqrt T)</text>'
        f'<text x="{width - 12}" y="24" text-anchor="end">mean squared gradient of the core; fitted slope {fitted[0]:.2f}</text>'
        f'<text x="{width - 12}" y="40" text-anchor="end" fill="#888">dashed: the stated O(1/sqrt T), slope -0.5</text></svg>\n',
        encoding="utf-8",
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    seeds = parser.parse_args().seeds
    quiet_libraries()
    models, means, slopes = ModelPool("cpu"), {t: [] for t in ROUNDS}, []
    with TemporaryDirectory() as folder:
        for seed in range(seeds):
            points = []
            for rounds in ROUNDS:
                found = gradients(seed, rounds, Path(folder) / f"{seed}-{rounds}", models)
                points.append((rounds, sum(found) / rounds))
                means[rounds].append(points[-1][1])
                print(f"seed {seed}  T {rounds:>3}  mean ||grad F||^2 {points[-1][1]:.4g}", flush=True)
            slopes.append(slope(points))
            print(f"seed {seed}  slope {slopes[-1]:.3f}", flush=True)
    fitted = interval(slopes)
    draw(means, fitted)
    result: dict[str, Any] = {"rounds": list(ROUNDS), "mean_squared_gradient": means, "slopes": slopes}
    write("slope", result | {"slope": fitted, "stated": -0.5})
    print(f"slope {fitted[0]:.3f} ({fitted[1]:.3f} to {fitted[2]:.3f}); stated: -0.5 or less")


if __name__ == "__main__":
    main()
