"""Variables that launchers of several processes set: srun, mpirun, torchrun, a PyTorchJob, `accelerate launch`.

A federation in one process is one process, wherever it was started; libraries that read these variables would wait for
the others.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_NAMES = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT",
          "MPI_LOCALRANKID", "MPI_LOCALNRANKS"}  # fmt: skip
_PREFIXES = ("PMI_", "PMIX_", "OMPI_COMM_WORLD_", "MV2_COMM_WORLD_", "CCL_", "TORCHELASTIC_", "ACCELERATE_", "FSDP_",
             "DEEPSPEED_", "SLURM_")  # fmt: skip


@contextmanager
def no_launcher(**instead: str) -> Iterator[None]:
    """The environment without them, and with some others, for a while; afterwards it is as it was."""
    held = {name: value for name, value in os.environ.items() if name in _NAMES or name.startswith(_PREFIXES)}
    for name in held:
        del os.environ[name]
    held |= {name: os.environ[name] for name in instead if name in os.environ}
    os.environ.update(instead)
    try:
        yield
    finally:
        for name in instead:
            del os.environ[name]
        os.environ.update(held)
