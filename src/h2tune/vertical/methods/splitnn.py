"""Split learning: one linear layer over the embeddings of aligned rows; unaligned rows are not used.

The tuning may let the active party also train its own encoder on its own unaligned rows, which it has labels of.
"""

from h2tune.vertical.methods.base import AUGMENTED, FASTER, PLAIN, Method

METHOD = Method(
    "splitnn",
    "one linear layer over the parties' embeddings, on aligned rows only",
    "Vepakomma et al., 2018",
    options={
        "method": {"gate": "mean", "missing": "coverage", "select": "none", "view_weight": 0.0, "labels": False},
        "training": {"dropout": 0.0, "local_steps": 0},
    },
    tuned=(PLAIN, FASTER, {"training.local_steps": 10}, AUGMENTED),
)
