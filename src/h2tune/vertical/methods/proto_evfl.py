"""The method of this package: dual prototypes, transport with class priors, evidence of views (arXiv 2507.22488, reconstructed)."""

from h2tune.vertical.methods.base import AUGMENTED, PLAIN, Candidate, Method

MANY: Candidate = {"training.local_steps": 10}

METHOD = Method(
    "proto-evfl",
    "dual prototypes; unaligned rows chosen by transport with class priors; views speak of what they have seen",
    "reconstructed from arXiv 2507.22488",
    options={},
    tuned=(MANY, PLAIN, MANY | {"method.select": "all"}, MANY | AUGMENTED),
)
