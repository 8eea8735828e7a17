"""Hidden states of texts by a key that names model and text: the last used ones in memory, others in files."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from pathlib import Path

import numpy
import torch
from torch import Tensor

from h2tune.utils.files import StoreError, write_atomic


class StateCache:
    """What is known, within a budget of memory and of disk.

    Args:
        memory: most bytes in memory. disk: most bytes in files, as far as this process knows of them: those that lay
            there when it began, and its own.
        folder: where the files lie; None keeps none.
    """

    def __init__(self, memory: int, disk: int = 0, folder: Path | None = None) -> None:
        self.memory, self.disk, self.folder = memory, disk if folder else 0, folder
        self._held: OrderedDict[str, Tensor] = OrderedDict()
        self._bytes = 0
        self._on_disk = sum(p.stat().st_size for p in folder.glob("*.states")) if folder and folder.is_dir() else 0
        self._told = False

    def get(self, key: str, shape: tuple[int, int], dtype: torch.dtype) -> Tensor | None:
        """States under a key, tokens x width; None where there are none of this shape and number format."""
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        path = self._path(key)
        size = shape[0] * shape[1] * dtype.itemsize
        if path is None or not path.is_file() or path.stat().st_size != size:
            return None
        mapped = torch.from_numpy(numpy.memmap(path, mode="c")).view(dtype).view(shape)
        self._hold(key, mapped.clone())
        return mapped

    def put(self, key: str, states: Tensor) -> None:
        path, size = self._path(key), states.numel() * states.dtype.itemsize
        there = path.stat().st_size if path is not None and path.is_file() else 0
        added = size - there  # a file of another size is what is left of a damaged one
        if path is not None and added and self._on_disk + added <= self.disk:
            try:
                write_atomic(path, states.contiguous().view(torch.uint8).numpy().tobytes(), several=True)
                self._on_disk += added
            except StoreError as error:  # what is kept only saves time
                self.disk = self._on_disk
                warnings.warn(f"hidden states are kept in memory alone from here on: {error}", stacklevel=2)
        self._hold(key, states)

    def _hold(self, key: str, states: Tensor) -> None:
        size = states.numel() * states.dtype.itemsize
        if size > self.memory:
            self._tell()
            return
        self._held[key] = states
        self._bytes += size
        while self._bytes > self.memory:
            old, gone = self._held.popitem(last=False)
            self._bytes -= gone.numel() * gone.dtype.itemsize
            path = self._path(old)
            if path is None or not path.exists():
                self._tell()

    def _tell(self) -> None:
        if not self._told:
            self._told = True
            warnings.warn(
                "the cache of hidden states is full; what no longer fits is computed again each time. Raise"
                " `cache.memory` or `cache.disk` to avoid that",
                stacklevel=2,
            )

    def _path(self, key: str) -> Path | None:
        return self.folder / f"{key}.states" if self.folder and self.disk else None
