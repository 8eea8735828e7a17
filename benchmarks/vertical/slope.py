"""How fast the two levels converge on planted Gaussians: the slope of the mean squared gradient over the number of steps.

python benchmarks/vertical/slope.py
"""

from __future__ import annotations

import math

import numpy as np
import torch
from grid import write

from h2tune.vertical.bilevel import mean_squared_gradient, planted
from h2tune.vertical.compare import interval

STEPS = (400, 800, 1600, 3200, 6400)
SEEDS = range(3)


def main() -> None:
    """Run, print, keep."""
    torch.set_num_threads(1)
    rows = []
    for exact in (True, False):
        values = [[mean_squared_gradient(planted(seed), steps, exact, seed=seed) for steps in STEPS] for seed in SEEDS]
        slopes = [float(np.polyfit(np.log(STEPS), np.log(run), 1)[0]) for run in values]
        rows.append(
            {
                "hypergradient": "exact" if exact else "first order",
                "steps": STEPS,
                "values": values,
                "slope": interval(slopes),
            }
        )
        print(
            f"{rows[-1]['hypergradient']}: slope {interval(slopes)}, finite {all(math.isfinite(v) for run in values for v in run)}",
            flush=True,
        )
    write("vertical-slope", {"rows": rows})


if __name__ == "__main__":
    main()
