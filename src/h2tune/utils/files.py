"""Files that are whole or not there; apart from `h2tune.store`, so that what needs no tensors starts without PyTorch."""

from __future__ import annotations

import os
from pathlib import Path

from h2tune.errors import H2TuneError


class StoreError(H2TuneError, RuntimeError):
    """A run directory cannot be used as asked; the text says what to do."""


def write_atomic(path: Path, data: bytes, several: bool = False) -> None:
    """Replace a file by new contents, or leave the old ones.

    Args:
        several: other processes may write the same file at this moment.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial" if several else path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StoreError(f"{path} could not be written: {error.strerror}. Nothing committed was lost.") from error
