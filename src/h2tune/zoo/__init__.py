"""Small pretrained models that ship with the package; `h2tune models` lists them."""

from __future__ import annotations

import difflib
import json
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from h2tune.errors import H2TuneError

if TYPE_CHECKING:
    from torch import Tensor


class ZooError(H2TuneError, ValueError):
    """There is no zoo model of that name."""


def zoo_folder(name: str) -> Path:
    """Folder of a zoo model; raises ZooError naming the nearest."""
    folder = Path(str(files("h2tune.zoo"))) / "weights" / name
    if not (folder / "config.json").is_file():
        known = zoo_names()
        near = difflib.get_close_matches(name, known, 1, 0.4)
        hint = f"Did you mean zoo:{near[0]}?" if near else f"Known: {', '.join(known)}."
        raise ZooError(f"There is no zoo:{name}. {hint}")
    return folder


def word_vectors() -> tuple[list[str], Tensor, Tensor]:
    """The word vectors that ship with the package (`make_words`): words, vectors (words x 64), counts."""
    from safetensors.torch import load_file  # `h2tune models` needs no torch

    tensors = load_file(Path(str(files("h2tune.zoo"))) / "words.safetensors")
    return bytes(tensors["words"].tolist()).decode().split("\n"), tensors["vectors"].float(), tensors["counts"]


def zoo_names() -> list[str]:
    root = Path(str(files("h2tune.zoo"))) / "weights"
    return sorted(p.parent.name for p in root.glob("*/config.json"))


def zoo_table() -> list[dict[str, Any]]:
    """Name, family, sizes and pretraining facts of every zoo model."""
    rows = []
    for name in zoo_names():
        folder = zoo_folder(name)
        config = json.loads((folder / "config.json").read_text())
        card = json.loads((folder / "pretraining.json").read_text())
        rows.append(
            {
                "name": f"zoo:{name}",
                "family": config["model_type"],
                "parameters": card["parameters"],
                "width": config.get("hidden_size") or config.get("n_embd"),
                "depth": config.get("num_hidden_layers") or config.get("n_layer"),
                "vocabulary": config["vocab_size"],
                "context": config.get("max_position_embeddings") or config.get("n_positions"),
                "perplexity": card.get("perplexity"),
                "megabytes": round((folder / "model.safetensors").stat().st_size / 1e6, 2),
            }
        )
    return rows
