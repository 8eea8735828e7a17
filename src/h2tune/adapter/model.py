"""TriLoRA as a PEFT tuner."""

from __future__ import annotations

from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import (
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
    get_quantization_kwargs,
    resolve_quantization_backend,
)
from torch import nn
from transformers.pytorch_utils import Conv1D

from h2tune.adapter.config import TriLoraConfig
from h2tune.adapter.layer import TriLoraLayer, TriLoraLinear


class TriLoraModel(BaseTuner):
    """A pretrained model with TriLoRA adapters; made by ``get_peft_model(model, TriLoraConfig(...))``."""

    prefix: str = "trilora_"
    tuner_layer_cls = TriLoraLayer
    target_module_mapping = {
        family: list(names) for family, names in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.items()
    }

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        assert isinstance(peft_config, TriLoraConfig)  # PEFT makes this tuner for no other
        parts = peft_config.parts_of(current_key)
        if isinstance(target, TriLoraLayer):
            target.update_layer(adapter_name, peft_config, parts=parts, inference_mode=peft_config.inference_mode)
            return
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        quantised = resolve_quantization_backend(base)
        if not isinstance(base, (nn.Linear, Conv1D)) and (quantised is None or quantised.layer_type != "linear"):
            raise TypeError(f"TriLoRA adapts linear maps; {current_key} is a {type(base).__name__}.")
        kwargs = get_quantization_kwargs(self) | {"parts": parts, "inference_mode": peft_config.inference_mode}
        module = TriLoraLinear(target, adapter_name, peft_config, **kwargs)
        if adapter_name not in self.active_adapters:
            module.requires_grad_(False)
        self._replace_module(parent, target_name, module, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """Put a layer in, or back; PEFT's own hands on a ``weight``, which a whole saved head (RoBERTa's) has not."""
        if isinstance(new_module, TriLoraLayer):
            super()._replace_module(parent, child_name, new_module, child)
        else:
            setattr(parent, child_name, new_module)
