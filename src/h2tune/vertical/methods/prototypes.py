"""The method without transport, priors, selection and gate: every unlabelled row gets its likeliest class, all views count alike."""

from h2tune.vertical.methods.base import AUGMENTED, FASTER, PLAIN, Method

METHOD = Method(
    "prototypes",
    "prototypes and pseudo-labels of all rows; no transport, no selection, no gate",
    "ablation",
    options={
        "method": {"assign": "argmax", "select": "all", "gate": "mean", "missing": "coverage", "agree": False},
        "training": {"local_steps": 10},
    },
    tuned=(PLAIN, FASTER, {"training.local_steps": 5}, AUGMENTED),
)
