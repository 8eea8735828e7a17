"""Files that are whole or not there; apart from `h2tune.store`, so that what needs no tensors starts without PyTorch."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from h2tune.errors import H2TuneError

LOCK = ".lock"  # in a folder that is claimed
GLANCE = 0.2  # seconds after which a lock is no longer taken for that of another who only asks


class StoreError(H2TuneError, RuntimeError):
    """A run directory cannot be used as asked; the text says what to do."""


class InUseError(StoreError):
    """Another process has the folder."""


class Claim:
    """A folder that only one process may write to at a time. The system gives it up when the process ends, however it ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = FileLock(folder / LOCK)

    def take(self, patience: float = 0.0) -> None:
        """Claim the folder, which is made if it is not there; again is no mistake.

        Args:
            patience: seconds for which to wait; needed where others ask whether the folder is `taken`.

        Raises:
            InUseError: another process has it.
            StoreError: the folder cannot be written to, or its file system knows no locks.
        """
        if self._lock.is_locked:
            return
        try:
            self._lock.acquire(timeout=patience)
        except Timeout:
            raise InUseError(
                f"{self.folder} is in use: another process trains there. Let it end, or take another --out."
            ) from None
        except OSError as error:
            raise StoreError(f"{self.folder} could not be written: {error.strerror}.") from error

    def give_up(self) -> None:
        self._lock.release()

    def taken(self) -> bool:
        """Whether a process has the folder, be it this one.

        Raises:
            StoreError: it cannot be known, as in `take`.
        """
        if self._lock.is_locked:
            return True
        if not (self.folder / LOCK).exists():
            return False  # nobody has ever claimed it; asking leaves no file behind
        try:
            self.take(GLANCE)
        except InUseError:
            return True
        self.give_up()
        return False


def write_atomic(path: Path, data: bytes, several: bool = False) -> None:
    """Replace a file by new contents, or leave the old ones.

    Args:
        several: other processes may write the same file at this moment.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial" if several else path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        kept = " What was there before is kept." if path.exists() else ""
        raise StoreError(f"{path} could not be written: {error.strerror}.{kept}") from error


def extend(path: Path, length: int, data: bytes) -> int:
    """Put data behind the first bytes of a file, in place of whatever lies there; returns how long the file is then.

    Args:
        length: bytes of the file that stay; it may have none and not be there.

    Raises:
        StoreError: the file is shorter than that, or it could not be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as file:
            if file.tell() < length:
                raise damaged(path)
            file.truncate(length)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StoreError(f"{path} could not be written: {error.strerror}. Nothing committed was lost.") from error
    return length + len(data)


ANEW = "start the run again with another --out"


def damaged(path: Path, otherwise: str = ANEW) -> StoreError:
    """The error for a file of a run that lacks what was committed; ``otherwise``: what helps where there is no backup."""
    return StoreError(f"{path} is damaged: put it back from a backup, or {otherwise}.")


@contextmanager
def sound(path: Path, otherwise: str = ANEW) -> Iterator[None]:
    """Read a file of a run; what a library says of one that cannot be read becomes a sentence.

    Raises:
        StoreError: the file is damaged.
    """
    try:
        yield
    except H2TuneError:
        raise
    except (ValueError, KeyError, TypeError, yaml.YAMLError, SafetensorError) as error:
        raise damaged(path, otherwise) from error


def append(path: Path, text: str) -> None:
    """Add text to the end of a file.

    Raises:
        StoreError: it could not be written.
    """
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise StoreError(f"{path} could not be written: {error.strerror}. Nothing committed was lost.") from error


def nearest(path: Path) -> str:
    """What to say of a path that is not there: a name beside it that is like it, or that the folder is missing, too."""
    if not path.parent.is_dir():
        return f"; there is no folder {path.parent} either"
    near = difflib.get_close_matches(path.name, [other.name for other in path.parent.iterdir()], 1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""
