"""The method of this package: dual prototypes, transport with class priors, coverage gate (arXiv 2507.22488, reconstructed)."""

from typing import Any

from h2tune.vertical.methods.base import Method

RATES: tuple[dict[str, Any], ...] = ({}, {"training.learning_rate": 1e-3}, {"training.learning_rate": 4e-3})

METHOD = Method(
    "proto-evfl",
    "dual prototypes; unaligned rows chosen by transport with class priors; parties weighed by what they have seen",
    "reconstructed from arXiv 2507.22488",
    options={},
    tuned=(*RATES, {"training.local_steps": 20}, {"method.agree": False}, {"method.prior": "local"}),
)
