"""What the parties' tables were when a run or a comparison began, so that other tables are noticed before they are used."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from h2tune.tasks.fingerprint import check_fingerprint, source_digest
from h2tune.vertical.config import VerticalConfig

Frames = Mapping[str, tuple[pd.DataFrame, pd.DataFrame | None]]
KINDS = ("train", "test")


def sources(config: VerticalConfig, names: Sequence[str] | None = None) -> dict[str, str]:
    """Paths of the files that a federation reads, by their key.

    Args:
        names: of the parties whose files are here; None takes all.
    """
    found = {f"{p.name}.{kind}": getattr(p, kind) for p in config.parties for kind in KINDS
             if names is None or p.name in names}  # fmt: skip
    if names is None or config.label.party in names:
        found["label.vectors"] = config.label.vectors
    return {key: path for key, path in found.items() if path}


def data_fingerprint(
    config: VerticalConfig, frames: Frames | None = None, names: Sequence[str] | None = None
) -> dict[str, str]:
    """A digest of each of these tables, by its key. A file that is not there has none: reading it says so.

    Args:
        frames: training and test table of each party, where they are in memory already.
        names: of the parties whose files are here; None takes all.
    """
    found = {key: source_digest(path) for key, path in sources(config, names).items() if Path(path).is_file()}
    for name, tables in (frames or {}).items():
        for kind, table in zip(KINDS, tables, strict=True):
            found.pop(f"{name}.{kind}", None)
            if table is not None:
                found[f"{name}.{kind}"] = _of_frame(table)
    return found


def check_data(
    folder: Path,
    config: VerticalConfig,
    frames: Frames | None = None,
    names: Sequence[str] | None = None,
    cure: str = "begin anew with another --out",
) -> None:
    """Hold the tables against those that the run in a folder began with.

    Raises:
        StoreError: naming the parties and files that differ.
    """
    told = {key: f"{key} ({path})" for key, path in sources(config, names).items() if path != "-"}
    check_fingerprint(folder, data_fingerprint(config, frames, names), cure=cure, told=told)


def _of_frame(table: pd.DataFrame) -> str:
    digest = hashlib.sha256("\0".join(map(str, table.columns)).encode())
    digest.update(pd.util.hash_pandas_object(table, index=False).to_numpy().tobytes())
    return digest.hexdigest()[:32]
