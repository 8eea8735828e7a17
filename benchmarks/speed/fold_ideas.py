"""Ideas for a faster exact mean, each timed beside `CoreSum` and a copy: none of them is in the package unless it says so.

    OMP_NUM_THREADS=1 python benchmarks/speed/fold_ideas.py

Interleaved, processor seconds of one thread, on cores of 6 MB that all entries of are covered.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from h2tune.core.exact_sum import CoreSum, _largest

sys.path.append(str(Path(__file__).parents[1]))
from common import median_interval, write

SHAPE, PAIRS, WEIGHT = (24, 7, 96, 96), 30, 100
ENTRIES = math.prod(SHAPE)
Add = Callable[[Tensor], None]


def limbs(size: int = ENTRIES // SHAPE[0], reuse: bool = False, cover: bool = False, together: int = 1) -> Add:
    """The sum in limbs of 32 bits, as `CoreSum` has it.

    Args:
        size: entries of a block. reuse: digits are made in buffers that stay. cover: the weight of every entry is added to,
            as it was before. together: so many cores are kept, and their digits summed before the limbs are touched.
    """
    sums = [torch.zeros(ENTRIES, dtype=torch.int64) for _ in range(6)]
    weight, held = torch.zeros(ENTRIES, dtype=torch.int64), []
    wide, whole = torch.empty(size, dtype=torch.float64), torch.empty(size, dtype=torch.int64)

    def digits_of(rest: Tensor, k: int) -> Tensor:
        n = rest.numel()
        if reuse:
            scaled = torch.mul(rest, 2.0 ** (32 * k), out=wide[:n])
            digits = whole[:n].copy_(scaled)
            rest.sub_(wide[:n].copy_(digits), alpha=2.0 ** (-32 * k))
            return digits
        digits = (rest * 2.0 ** (32 * k)).long()
        rest.sub_(digits.double(), alpha=2.0 ** (-32 * k))
        return digits

    def add(core: Tensor) -> None:
        held.append(core.view(-1))
        if len(held) < together:
            return
        for at in range(0, ENTRIES, size):
            rests = [c[at : at + size].double() for c in held]
            for k, limb in enumerate(sums):
                reached = [rest for rest in rests if _largest(rest) * 2.0 ** (32 * k) >= 1]
                for number, rest in enumerate(reached):
                    digits = digits_of(rest, k)
                    mixed = digits if number == 0 else mixed.add_(digits)  # noqa: F821
                if reached:
                    limb[at : at + size].add_(mixed, alpha=WEIGHT)
            if cover:
                weight[at : at + size].add_(WEIGHT * len(held))
        held.clear()

    return add


def bins(size: int) -> Add:
    """Nine float64 sums of 22 bits each: digits are cut off by adding a large number and taking it away again."""
    sums = [torch.zeros(ENTRIES, dtype=torch.float64) for _ in range(9)]
    high = torch.empty(size, dtype=torch.float64)

    def add(core: Tensor) -> None:
        flat = core.view(-1)
        for at in range(0, ENTRIES, size):
            rest = flat[at : at + size].double()
            digits = high[: rest.numel()]
            for k, total in enumerate(sums):
                unit, largest = 2.0 ** (9 - 22 * k), _largest(rest)
                if largest == 0:
                    break
                if largest >= unit / 2:
                    torch.add(rest, 1.5 * 2.0**52 * unit, out=digits).sub_(1.5 * 2.0**52 * unit)
                    total[at : at + size].add_(digits, alpha=WEIGHT)
                    rest.sub_(digits)

    return add


def numpy_limbs() -> Add:
    """The two limbs that these cores reach, in NumPy."""
    sums = [np.zeros(ENTRIES, np.int64) for _ in range(3)]

    def add(core: Tensor) -> None:
        flat = core.view(-1).numpy()
        for at in range(0, ENTRIES, 65536):
            rest = flat[at : at + 65536].astype(np.float64)
            for k in (1, 2):
                digits = (rest * 2.0 ** (32 * k)).astype(np.int64)
                rest -= digits * 2.0 ** (-32 * k)
                sums[k][at : at + 65536] += digits * WEIGHT

    return add


def two_sums() -> Add:
    """A sum of two float64, exact to 106 bits: its last bits still depend on the order."""
    high, low = torch.zeros(ENTRIES, dtype=torch.float64), torch.zeros(ENTRIES, dtype=torch.float64)

    def add(core: Tensor) -> None:
        flat = core.view(-1)
        for at in range(0, ENTRIES, 65536):
            x, h = flat[at : at + 65536].double().mul_(WEIGHT), high[at : at + 65536]
            total = h + x
            taken = total - h
            low[at : at + 65536].add_((h - (total - taken)).add_(x - taken))
            h.copy_(total)

    return add


def plain(dtype: torch.dtype) -> Add:
    """An ordinary sum: what it is depends on the order."""
    total = torch.zeros(SHAPE, dtype=dtype)
    return lambda core: total.add_(core, alpha=WEIGHT)  # type: ignore[return-value]


def today() -> Add:
    total, everything = CoreSum(SHAPE), torch.ones(SHAPE, dtype=torch.bool)
    return lambda core: total.add(core, everything, WEIGHT)


IDEAS: dict[str, Add] = {
    "as it is": today(),
    "1 the weight of every entry added to in each fold, as it was": limbs(cover=True),
    "2 blocks of 8 thousand entries": limbs(8192),
    "2 blocks of 32 thousand entries": limbs(32768),
    "2 blocks of 128 thousand entries": limbs(131072),
    "3 digits in buffers that stay": limbs(reuse=True),
    "4 four cores are kept and folded together": limbs(together=4),
    "5 float64 bins of 22 bits": bins(65536),
    "6 NumPy": numpy_limbs(),
    "7 a sum of two float64 (not free of order)": two_sums(),
    "8 a plain float64 sum (not free of order)": plain(torch.float64),
    "9 a plain float32 sum (not free of order)": plain(torch.float32),
}


def main() -> None:
    torch.set_num_threads(1)
    cores = [torch.randn(SHAPE, generator=torch.Generator().manual_seed(i)) * 0.02 for i in range(8)]
    target = torch.empty(SHAPE)
    times: dict[str, list[float]] = {name: [] for name in (*IDEAS, "a copy")}
    for number in range(0, 4 * PAIRS, 4):  # four folds at a time, since one idea takes them together
        for name, add in IDEAS.items():
            begin = time.process_time()
            for k in range(4):
                add(cores[(number + k) % len(cores)])
            times[name].append((time.process_time() - begin) / 4)
        begin = time.process_time()
        for k in range(8):
            target.copy_(cores[k])
        times["a copy"].append((time.process_time() - begin) / 8)
    copy = median_interval(times["a copy"])[0]
    found = {
        name: {"seconds": median_interval(values), "copies": median_interval(values)[0] / copy}
        for name, values in times.items()
    }
    for name, figures in found.items():
        print(f"{name:64s} {1000 * figures['seconds'][0]:6.2f} ms  {figures['copies']:5.1f} copies")
    write(
        "speed/fold-ideas", {"pairs": PAIRS, "clock": "processor seconds", "load": os.getloadavg()[0], "ideas": found}
    )


if __name__ == "__main__":
    main()
