"""Every view is trained on its own; the class probabilities of the views that know a class are averaged."""

from h2tune.vertical.methods.base import Method
from h2tune.vertical.methods.proto_evfl import RATES

METHOD = Method(
    "ensemble",
    "mean probability of views trained apart, over those that know the class",
    "standard",
    options={
        "method": {
            "combine": "probabilities",
            "fused_weight": 0.0,
            "view_weight": 1.0,
            "select": "none",
            "gate": "mean",
        },
    },
    tuned=(*RATES, {"training.local_steps": 20}, {"training.dropout": 0.0}, {"training.weight_decay": 1e-2}),
)
