"""From a TriLoRA adapter to the standard LoRA that equals it: factors (s B (T + rho I), A), no approximation.

An offset becomes further directions of the LoRA, by a singular value decomposition; a shift becomes LoRA's bias.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import save
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from h2tune.adapter.layer import TriLoraLayer


def lora_tensors(model: PeftModel, adapter_name: str) -> tuple[dict[str, Tensor], int]:
    """PEFT's LoRA state dict for one adapter, and its single rank.

    Smaller ranks are padded with zeros: servers such as vLLM read one rank and one alpha for all modules.
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, TriLoraLayer) and adapter_name in module.trilora_A
    }
    if not layers:
        raise ValueError(f"The model has no TriLoRA adapter {adapter_name!r}.")
    tensors = {}
    with torch.no_grad():
        factors = {name: _factors(layer, adapter_name) for name, layer in layers.items()}
        rank = max(a.shape[0] for a, _ in factors.values())
        for name, (a, b) in factors.items():
            missing = rank - a.shape[0]
            a = torch.nn.functional.pad(a, (0, 0, 0, missing))
            b = torch.nn.functional.pad(b, (0, missing))
            tensors[f"{name}.lora_A.weight"] = a.cpu().contiguous()
            tensors[f"{name}.lora_B.weight"] = b.cpu().contiguous()
            if adapter_name in layers[name].trilora_q:
                tensors[f"{name}.lora_B.bias"] = layers[name].constant(adapter_name).float().cpu()
    return tensors, rank


def _factors(layer: TriLoraLayer, adapter_name: str) -> tuple[Tensor, Tensor]:
    """A and B of one map's standard LoRA."""
    a, b = layer.trilora_A[adapter_name].float(), layer.left_factor(adapter_name).float()
    if adapter_name in layer.trilora_offset:
        u, s, vh = torch.linalg.svd(layer.trilora_offset[adapter_name].double(), full_matrices=False)
        kept = s > 1e-6 * s[0].clamp_min(1e-30)  # beyond that it is rounding of float32
        a = torch.cat([a, vh[kept].to(a)])
        b = torch.cat([b, (u[:, kept] * s[kept]).to(b)], dim=1)
    return a, b


def save_lora(
    model: PeftModel, path: str | Path, adapter_name: str = "default", dtype: torch.dtype | None = None
) -> Path:
    """Write one adapter as a standard LoRA folder that PEFT loads without this package.

    ``dtype`` rounds the factors; by default they stay exact, in float32.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    config: Any = model.peft_config[adapter_name]
    tensors, rank = lora_tensors(model, adapter_name)
    tensors |= _saved_modules(model, adapter_name)
    names = {key.removeprefix("base_model.model.").rsplit(".lora_", 1)[0] for key in tensors if ".lora_A." in key}
    lora = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=_target_modules(model, names),
        modules_to_save=sorted(set(config.modules_to_save or ())) or None,
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        revision=config.revision,
        fan_in_fan_out=any(isinstance(m, Conv1D) for m in model.modules()),
        lora_bias=config.shift,
        inference_mode=True,
    )
    if dtype is not None:
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    # Not save_file, which makes a file that only its owner may read.
    (path / "adapter_model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
    lora.save_pretrained(str(path))
    return path


def _saved_modules(model: PeftModel, adapter_name: str) -> dict[str, Tensor]:
    """The trained copies of whole modules (a classification head), under the names that PEFT gives them."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        copies = getattr(module, "modules_to_save", None)
        if isinstance(copies, torch.nn.ModuleDict) and adapter_name in copies:
            for key, value in copies[adapter_name].state_dict().items():
                found[f"{name}.{key}"] = value.detach().cpu().contiguous().clone()
    return found


def _target_modules(model: PeftModel, adapted: set[str]) -> list[str]:
    """The shortest endings that name exactly the adapted modules: servers expect ``q_proj``, not a path."""
    everything = {
        name.removeprefix("base_model.model.")
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D, TriLoraLayer)) and not name.endswith(".base_layer")
    }
    targets = set()
    for name in adapted:
        pieces = name.split(".")
        for length in range(1, len(pieces) + 1):
            ending = ".".join(pieces[-length:])
            same = {other for other in everything if other == ending or other.endswith("." + ending)}
            if same <= adapted:
                targets.add(ending)
                break
    return sorted(targets)
