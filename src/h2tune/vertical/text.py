"""A text column as numbers: the mean of a frozen encoder's last states. Runs at the party; no text leaves it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from h2tune.vertical.table import TableError

BATCH = 32


def embed_texts(texts: list[str], model: str, max_length: int) -> Tensor:
    """Embeddings (n x width), each of mean square 1.

    Raises:
        TableError: if the model cannot be loaded.
    """
    tokenizer, encoder = _load(model)
    # Texts of like length share a batch, so that little is spent on padding.
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    found: list[Tensor] = []
    with torch.inference_mode():
        for start in range(0, len(texts), BATCH):
            chunk = [texts[row] for row in order[start : start + BATCH]]
            batch = tokenizer(chunk, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
            states = encoder(**batch).last_hidden_state
            mask = batch["attention_mask"][:, :, None]
            found.append((states * mask).sum(1) / mask.sum(1).clamp_min(1))
    unit: Tensor = torch.nn.functional.normalize(torch.cat(found), dim=1)
    scaled = torch.empty_like(unit)
    scaled[torch.tensor(order)] = unit * float(unit.shape[1]) ** 0.5
    return scaled.clone()


def _load(model: str) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
        encoder = AutoModel.from_pretrained(model)
    except (OSError, ValueError, KeyError) as error:
        kind = "folder" if Path(model).exists() else "model"
        raise TableError(f"The text encoder {model} ({kind}) cannot be loaded: {str(error).splitlines()[0]}") from None
    return tokenizer, encoder.eval()
