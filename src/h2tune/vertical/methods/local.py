"""The active party alone, with all rows that it has labels of."""

from h2tune.vertical.methods.base import Method
from h2tune.vertical.methods.proto_evfl import RATES

METHOD = Method(
    "local",
    "the active party alone",
    "standard",
    options={"method": {"gate": "mean", "select": "none"}, "training": {"dropout": 0.0}},
    alone=True,
    tuned=(*RATES, {"training.weight_decay": 1e-2}, {"training.corrupt": 0.0}, {"training.corrupt": 0.4}),
)
