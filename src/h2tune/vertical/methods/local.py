"""The active party alone, with all rows that it has labels of."""

from h2tune.vertical.methods.base import AUGMENTED, FASTER, PLAIN, Method

METHOD = Method(
    "local",
    "the active party alone",
    "standard",
    options={"method": {"gate": "mean", "missing": "coverage", "select": "none"}, "training": {"dropout": 0.0}},
    alone=True,
    tuned=(PLAIN, FASTER, {"training.weight_decay": 1e-2}, AUGMENTED),
)
