from __future__ import annotations

import numpy as np
import torch

from h2tune.core.least_squares import least_squares


def problem(rank: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(200, rank, generator=generator, dtype=torch.float64)
    mix = torch.randn(rank, 12, generator=generator, dtype=torch.float64)
    return a @ mix, torch.randn(200, 4, generator=generator, dtype=torch.float64)


def test_it_is_numpys_solution_also_where_columns_depend_on_each_other() -> None:
    for rank in (12, 7):
        a, b = problem(rank)
        expected = np.linalg.lstsq(a.numpy(), b.numpy(), rcond=None)[0]
        np.testing.assert_allclose(least_squares(a, b).numpy(), expected, atol=1e-10)


def test_equal_input_gives_equal_bits_whatever_lay_in_memory_before() -> None:
    a, b = problem()
    found = set()
    for number in range(60):
        # The next small array of integers takes this one's place; its values are a column order that gelsy would start from.
        left = torch.randint(0, 2, (12,), generator=torch.Generator().manual_seed(number), dtype=torch.int32)
        del left
        found.add(least_squares(a, b).numpy().tobytes())
    assert len(found) == 1
