"""A server folds cores of 6 MB into the exact mean, against copying the same bytes in memory.

    OMP_NUM_THREADS=1 python benchmarks/speed/fold.py

Interleaved, processor seconds of one thread. The sum's memory and a fold's time do not depend on how many came before, so some
tens of folds stand for ten thousand.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch

from h2tune.core.exact_sum import CoreSum

sys.path.append(str(Path(__file__).parents[1]))
from common import median_interval, write

SHAPE, PAIRS = (24, 7, 96, 96), 40


def main() -> None:
    torch.set_num_threads(1)
    cores = [torch.randn(SHAPE, generator=torch.Generator().manual_seed(i)) * 0.02 for i in range(8)]
    coverage, target = torch.ones(SHAPE, dtype=torch.bool), torch.empty(SHAPE)
    total = CoreSum(SHAPE)
    fold: list[float] = []
    copy: list[float] = []
    for number in range(PAIRS):
        core = cores[number % len(cores)]
        begin = time.process_time()
        total.add(core, coverage, 100)
        middle = time.process_time()
        for _ in range(8):
            target.copy_(cores[(number + 1) % len(cores)])
        fold.append(middle - begin)
        copy.append((time.process_time() - middle) / 8)
    size = cores[0].numel() * 4
    held = sum(t.numel() * t.element_size() for t in (*total.limbs, total.weight))
    result = {
        "core_bytes": size, "sum_bytes": held, "pairs": PAIRS, "clock": "processor seconds", "load": os.getloadavg()[0],
        "fold_seconds": median_interval(fold), "copy_seconds": median_interval(copy),
        "ratio": median_interval([a / b for a, b in zip(fold, copy, strict=True)]),
        "ten_thousand_seconds": 10_000 * median_interval(fold)[0],
    }  # fmt: skip
    print("a fold takes {:.1f} ({:.1f} to {:.1f}) times a copy".format(*result["ratio"]))  # type: ignore[misc]
    write("speed/fold", result)


if __name__ == "__main__":
    main()
