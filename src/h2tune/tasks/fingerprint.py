"""What a run's data were when it began, so that a resumed run notices when they are other data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from h2tune.config import Experiment
from h2tune.tasks.sources import source_path
from h2tune.utils.files import StoreError, sound, write_atomic

FILE = "data.json"
_CLIENT_KEYS = ("train", "validation", "test", "practice")


def data_fingerprint(
    experiment: Experiment, names: Sequence[str] | None = None, there: bool = False
) -> dict[str, str]:
    """A digest of every data source of an experiment that lies on this machine, by its key in the config.

    Args:
        names: of the clients whose data are here; None takes all.
        there: leaves out sources that are no file or folder here, so that data that are gone are not other data.
    """
    sources = {"anchors": experiment.anchors, "anchor_words": experiment.anchor_words}
    sources["public"] = experiment.public.source if experiment.public else None
    for client in experiment.clients:
        if names is None or client.name in names:
            sources |= {f"{client.name}.{key}": getattr(client, key) for key in _CLIENT_KEYS}
    named = {key: source for key, source in sources.items() if source}
    if there:
        named = {key: source for key, source in named.items() if source_path(source)[0].exists()}
    digests = {source: source_digest(source) for source in set(named.values())}  # many may share a file
    return {key: digests[source] for key, source in named.items()}


def source_digest(source: str) -> str:
    """A digest of a file or folder; of a name, where there is neither."""
    path, split = source_path(source)
    digest = hashlib.sha256(f"{split or ''}".encode())
    if path.is_file():
        files = [path]
    elif path.is_dir():
        # Arrow writes its caches into the folders that it reads.
        files = sorted(f for f in path.rglob("*") if f.is_file() and not f.name.startswith(("cache-", ".")))
    else:
        return hashlib.sha256(source.encode()).hexdigest()[:32]  # a name, such as demo:fill or hub:owner/name
    for file in files:
        digest.update(b"" if file == path else file.relative_to(path).as_posix().encode())
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()[:32]


def keep_fingerprint(folder: Path, found: Mapping[str, str]) -> None:
    """Write what the data are at the beginning of a run."""
    write_atomic(folder / FILE, json.dumps(dict(found), indent=1, sort_keys=True).encode("utf-8") + b"\n")


def kept_fingerprint(folder: Path) -> dict[str, str]:
    """What `keep_fingerprint` has written; nothing in a run of an older version."""
    path = folder / FILE
    with sound(path):
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def differing(before: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """Keys of the sources whose data differ; those that came or went are changes of the config, compared by itself."""
    return sorted(key for key in before.keys() & found.keys() if before[key] != found[key])


def check_fingerprint(
    folder: Path,
    found: Mapping[str, str],
    changed: Sequence[str] = (),
    cure: str = "say that you mean it: --changed data",
    told: Mapping[str, str] | None = None,
) -> list[str]:
    """Keys of the sources whose data differ from those that the run began with; ``data`` in ``changed`` lets them.

    ``cure`` is what the message says to do where the new data are meant, ``told`` what it calls a source instead of its key.
    A run of an older version has kept nothing and is not checked.

    Raises:
        StoreError: before anything is done, naming the sources.
    """
    before = kept_fingerprint(folder)
    differ = differing(before, found)
    if differ and "data" not in changed:
        names = [(told or {}).get(key, key) for key in differ]
        raise StoreError(
            f"The data of this run have changed since it began: {', '.join(names[:8])}. Put the old files back, or"
            f" {cure}"
        )
    if differ:
        keep_fingerprint(folder, {**before, **found})
    return differ
