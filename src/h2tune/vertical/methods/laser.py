"""LASER-VFL: the mean over random subsets of parties, so that any subset may predict; aligned rows only."""

from h2tune.vertical.methods.base import AUGMENTED, FASTER, PLAIN, Method

METHOD = Method(
    "laser",
    "trained on random subsets of parties",
    "Valdeira et al., 2024",
    options={
        "method": {"gate": "mean", "missing": "coverage", "select": "none", "labels": False},
        "training": {"dropout": 0.5, "local_steps": 0},
    },
    tuned=(PLAIN, FASTER, {"training.local_steps": 10}, AUGMENTED),
)
