"""GGUF files as models: unpacked once by Transformers into a cache, and the same weights ever after."""

from __future__ import annotations

import hashlib
import os
import shutil
import warnings
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer

from h2tune.participant.errors import ModelError


def gguf_file(path: Path) -> Path | None:
    """The GGUF file that a path is, or that is the only model in the folder.

    Raises:
        ModelError: if the folder holds several.
    """
    if path.suffix.lower() == ".gguf" and path.is_file():
        return path
    if not path.is_dir() or (path / "config.json").is_file():
        return None
    files = sorted(path.glob("*.gguf"))
    if len(files) > 1:
        raise ModelError(f"{path} holds several GGUF files; name one: {', '.join(file.name for file in files)}.")
    return files[0] if files else None


def cache_folder() -> Path:
    """Where unpacked models lie: ``H2TUNE_CACHE``, or ``h2tune`` in the user's cache."""
    own = os.environ.get("H2TUNE_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "h2tune"


def unpacked(path: Path) -> Path:
    """The folder of a GGUF file's model in float16, made at the first call.

    Raises:
        ModelError: if the package gguf is missing, or Transformers cannot read the file.
    """
    if find_spec("gguf") is None:
        raise ModelError(f"{path} is a GGUF file; reading it needs the package gguf (pip install h2tune[gguf]).")
    if not path.stat().st_size:
        raise ModelError(f"{path} is empty, as after a download that failed; get it again.")
    folder = cache_folder() / "gguf" / f"{path.stem}-{_digest(path)}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / "config.json").is_file():
            _unpack(path, folder)
    return folder


def _unpack(path: Path, folder: Path) -> None:
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        options: dict[str, Any] = {"gguf_file": path.name}
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), **options)
        model = AutoModelForCausalLM.from_pretrained(str(path.parent), dtype=torch.float16, **options)
    except Exception as error:
        raise ModelError(f"{path} cannot be unpacked: {str(error).strip().splitlines()[0][:200]}") from None
    # Transformers holds a GGUF model for quantised, though its weights are plain by now, and would not save it.
    setattr(model, "hf_quantizer", None)  # noqa: B010 - a module types its attributes as tensors
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.replace(folder)
    warnings.warn(
        f"{path.name} holds its weights as {_formats(path)}; unpacked to float16 in {folder}. What quantisation has"
        " rounded away stays away: where there is one, the unquantised model is the better base.",
        stacklevel=2,
    )


def _formats(path: Path) -> str:
    from gguf import GGUFReader

    found = Counter(tensor.tensor_type.name for tensor in GGUFReader(path).tensors)
    return ", ".join(f"{name} ({count})" for name, count in found.most_common())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
