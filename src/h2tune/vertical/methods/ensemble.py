"""Every view is trained on its own; the class probabilities of the views that know a class are averaged."""

from h2tune.vertical.methods.base import AUGMENTED, FASTER, PLAIN, Method

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
            "missing": "coverage",
        },
        "training": {"local_steps": 10},
    },
    tuned=(PLAIN, FASTER, {"training.dropout": 0.0}, AUGMENTED),
)
