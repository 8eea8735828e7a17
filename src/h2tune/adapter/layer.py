"""The TriLoRA layer: one formula, ``delta W = s B (T + rho I) A``, for forward, merge and export."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features, check_adapters_to_merge
from peft.utils import quantization_extra_repr, resolve_quantization_backend
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from h2tune.adapter.config import RowLayout, TriLoraConfig
from h2tune.adapter.low_rank import plus_low_rank


class Beside(Protocol):
    """Lets the rows of a batch go through several adapters (`h2tune.adapter.side_by_side`)."""

    def added(self, layer: TriLoraLinear, x: Tensor, result: Tensor) -> Tensor: ...


class Rows:
    """Which output rows of a map belong to which of its parts (one part unless the map is fused).

    Args:
        sizes: rows of each part.
        interleave: number of heads whose rows alternate between the parts; 0 if each part is contiguous.
    """

    def __init__(self, sizes: list[int], interleave: int = 0) -> None:
        self.sizes = [int(s) for s in sizes]
        self.order: Tensor | None = None
        if interleave:
            per_head = [s // interleave for s in self.sizes]
            rows = torch.arange(sum(self.sizes)).view(interleave, sum(per_head))
            self.order = torch.cat([part.reshape(-1) for part in rows.split(per_head, dim=1)])
            self.inverse = torch.argsort(self.order)

    def split(self, b: Tensor) -> list[Tensor]:
        """The rows of ``b`` (d_out x ...), part by part."""
        if self.order is not None:
            b = b.index_select(0, self.order.to(b.device))
        return list(b.split(self.sizes))

    def join(self, parts: list[Tensor]) -> Tensor:
        """Inverse of `split`."""
        b = parts[0] if len(parts) == 1 else torch.cat(parts)
        return b if self.order is None else b.index_select(0, self.inverse.to(b.device))


class TriLoraLayer(BaseTunerLayer):
    """What every adapted module has: per adapter A (r x d_in), B (d_out x r) and T (parts x r x r).

    Where the config asks for it also q (parts x r), and a frozen offset (d_out x d_in).
    """

    adapter_layer_names = ("trilora_A", "trilora_B", "trilora_T", "trilora_q")
    other_param_names = (
        "trilora_r", "trilora_scaling", "trilora_rho", "trilora_framed", "trilora_rows", "trilora_dropout", "trilora_offset",
    )  # fmt: skip

    def __init__(self, base_layer: nn.Module, **kwargs: Any) -> None:
        self.base_layer = base_layer
        self.quantization_backend = resolve_quantization_backend(
            self.get_base_layer(), get_apply_tensor_subclass=kwargs.get("get_apply_tensor_subclass")
        )
        self.trilora_A = nn.ParameterDict()
        self.trilora_B = nn.ParameterDict()
        self.trilora_T = nn.ParameterDict()
        self.trilora_q = nn.ParameterDict()
        self.trilora_offset = BufferDict({}, persistent=True)
        self.trilora_dropout = nn.ModuleDict()
        self.trilora_r: dict[str, int] = {}
        self.trilora_scaling: dict[str, float] = {}
        self.trilora_rho: dict[str, float] = {}
        self.trilora_framed: dict[str, int] = {}
        self.trilora_rows: dict[str, Rows] = {}
        self._listening: set[str] = set()  # adapters whose parameters may ask for gradients
        self._zero: dict[str, tuple[tuple[int, int], bool]] = {}  # whether T was 0 when it was looked at last
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.cast_input_dtype_enabled = True
        in_features, out_features = _get_in_out_features(self.get_base_layer())
        if in_features is None or out_features is None:
            raise TypeError(f"TriLoRA cannot adapt a {type(base_layer).__name__}.")
        self.in_features, self.out_features = in_features, out_features

    def update_layer(
        self, adapter_name: str, config: TriLoraConfig, parts: RowLayout | None = None, **kwargs: Any
    ) -> None:
        """Add an adapter to this module, or replace the one of that name."""
        layout: RowLayout = parts or {"sizes": [self.out_features]}
        if sum(layout["sizes"]) != self.out_features:
            raise ValueError(f"The parts {layout['sizes']} do not add up to the {self.out_features} output rows.")
        r = config.r
        self.trilora_r[adapter_name] = r
        self.trilora_scaling[adapter_name] = config.scaling
        self.trilora_rho[adapter_name] = float(config.residual)
        self.trilora_framed[adapter_name] = config.framed if config.residual else 0
        self.trilora_rows[adapter_name] = Rows(**layout)
        if config.dropout:  # no module where there is nothing to do: every walk over the model would visit it
            self.trilora_dropout[adapter_name] = nn.Dropout(config.dropout)
        elif adapter_name in self.trilora_dropout:
            del self.trilora_dropout[adapter_name]
        self.trilora_A[adapter_name] = nn.Parameter(torch.empty(r, self.in_features))
        self.trilora_B[adapter_name] = nn.Parameter(torch.empty(self.out_features, r))
        self.trilora_T[adapter_name] = nn.Parameter(torch.zeros(len(layout["sizes"]), r, r))
        if config.shift:
            self.trilora_q[adapter_name] = nn.Parameter(torch.zeros(len(layout["sizes"]), r))
        if config.offset:
            device = next(self.get_base_layer().parameters()).device
            self.trilora_offset[adapter_name] = torch.zeros(self.out_features, self.in_features, device=device)
        if config.init_weights:
            self.reset_parameters(adapter_name)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self._listening.add(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=kwargs.get("inference_mode", False))

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """As PEFT's, but without a look at every other adapter of the layer."""
        of_base: Any = self._get_base_layer_device_and_dtype  # PEFT has no types for it
        found, dtype = of_base(self.get_base_layer())
        target = device or found
        if target is None:
            return
        for kind in (*self.adapter_layer_names, "trilora_offset"):
            held = getattr(self, kind)
            if adapter_name not in held or held[adapter_name].device.type == "meta":
                continue
            floating = dtype is not None and dtype.is_floating_point
            held[adapter_name] = held[adapter_name].to(target, dtype=dtype if floating else None)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """As PEFT's, but only adapters that were in use are looked at: hundreds may lie beside them."""
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        self._let_listen({name for name in names if not inference_mode})
        self._freeze_non_trainable_peft_weights(names)
        self._active_adapter = names

    def delete_adapter(self, adapter_name: str) -> None:
        """As PEFT's; nothing that was known of the adapter may be taken for one that gets its name later."""
        super().delete_adapter(adapter_name)
        self._listening.discard(adapter_name)
        self._zero.pop(adapter_name, None)

    def enable_adapters(self, enabled: bool) -> None:
        """As PEFT's, with the same shortcut."""
        if enabled:
            self.set_adapter(self.active_adapters)
        else:
            self._let_listen(set())
        self._disable_adapters = not enabled

    def _let_listen(self, names: set[str]) -> None:
        """Let gradients flow to these adapters' parameters and to no others."""
        for kind in self.adapter_layer_names:
            held = getattr(self, kind)
            for name in self._listening | names:
                if name in held:
                    held[name].requires_grad_(name in names)
        self._listening = names

    def parameters_of(self, names: Iterable[str]) -> list[nn.Parameter]:
        """A, B, T and q of some adapters, as far as this module has them."""
        held = (self.trilora_A, self.trilora_B, self.trilora_T, self.trilora_q)
        return [parameters[name] for name in names for parameters in held if name in parameters]

    def reset_parameters(self, adapter_name: str) -> None:
        """A model starts unchanged: B = 0 with the residual (then T moves nothing yet), T = 0 without it."""
        nn.init.kaiming_uniform_(self.trilora_A[adapter_name], a=math.sqrt(5))
        nn.init.zeros_(self.trilora_T[adapter_name])
        b, framed = self.trilora_B[adapter_name], self.trilora_framed[adapter_name]
        nn.init.normal_(b, std=(framed or b.shape[1]) ** -0.5)
        if self.trilora_rho[adapter_name]:
            with torch.no_grad():
                b[:, framed:] = 0

    def left_factor(self, adapter_name: str) -> Tensor:
        """``s B (T + rho I)``, d_out x r: the B of the standard LoRA that equals this adapter exactly."""
        rows = self.trilora_rows[adapter_name]
        b: Tensor = self.trilora_B[adapter_name]
        if self.is_plain(adapter_name):
            return b
        t = self.with_residual(adapter_name, self.trilora_T[adapter_name])
        return rows.join([part @ middle for part, middle in zip(rows.split(b), t.unbind(), strict=True)])

    def with_residual(self, adapter_name: str, t: Tensor) -> Tensor:
        """``s (T + rho I)`` for T of this adapter or of others like it, ... x r x r."""
        rho, scaling = self.trilora_rho[adapter_name], self.trilora_scaling[adapter_name]
        if rho:
            eye = torch.eye(t.shape[-1], dtype=t.dtype, device=t.device)
            eye[: self.trilora_framed[adapter_name]] = 0
            t = t + rho * eye
        if scaling != 1.0:
            t = t * scaling
        return t

    def is_plain(self, adapter_name: str) -> bool:
        """Whether B is the left factor itself: a plain LoRA, whose T is 0 and not trained."""
        t = self.trilora_T[adapter_name]
        if t.requires_grad or not self.trilora_rho[adapter_name] or self.trilora_framed[adapter_name]:
            return False
        if self.trilora_scaling[adapter_name] != 1.0:
            return False
        seen = (t.data_ptr(), t._version)  # reading all of T in every pass would take longer than the product
        if adapter_name not in self._zero or self._zero[adapter_name][0] != seen:
            self._zero[adapter_name] = (seen, not bool(t.any()))
        return self._zero[adapter_name][1]

    def constant(self, adapter_name: str) -> Tensor:
        """``s B q``, d_out: what the shift adds to every output."""
        rows, scaling = self.trilora_rows[adapter_name], self.trilora_scaling[adapter_name]
        parts = zip(rows.split(self.trilora_B[adapter_name]), self.trilora_q[adapter_name].unbind(), strict=True)
        summed: Tensor = scaling * rows.join([part @ q for part, q in parts])
        return summed

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """``s B (T + rho I) A``, and the offset, in the shape of the base weight (transposed for Conv1D)."""
        delta: Tensor = self.left_factor(adapter_name) @ self.trilora_A[adapter_name]
        if adapter_name in self.trilora_offset:
            delta = delta + self.trilora_offset[adapter_name]
        return delta.T if isinstance(self.get_base_layer(), Conv1D) else delta

    def scale_layer(self, scale: float) -> None:
        for name in self.active_adapters:
            if name in self.trilora_scaling:
                self.trilora_scaling[name] *= scale

    def unscale_layer(self, scale: float | None = None) -> None:
        if scale is None:
            warnings.warn("TriLoRA keeps no history of scales: pass the scale to undo.", stacklevel=2)
            return
        self.scale_layer(1 / scale)


class TriLoraLinear(nn.Module, TriLoraLayer):
    """A linear map (``nn.Linear``, ``Conv1D`` or a quantised one) with TriLoRA adapters.

    Attributes:
        beside: lets rows go through several adapters, each its own, in place of the active one.
    """

    beside: Beside | None = None

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: TriLoraConfig, **kwargs: Any) -> None:
        super().__init__()
        TriLoraLayer.__init__(self, base_layer, **kwargs)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config, **kwargs)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the adapters' deltas to the base weight; ``safe_merge`` refuses a result that is not finite."""
        for name in check_adapters_to_merge(self, adapter_names):
            if name in self.trilora_A:
                if name in self.trilora_q:
                    raise ValueError("An adapter with a shift adds a constant, which a weight cannot hold: export it.")
                weight = self.get_base_weight()
                merged = (weight.float() + self.get_delta_weight(name).float()).to(weight.dtype)
                if safe_merge and not torch.isfinite(merged).all():
                    raise ValueError(f"NaNs detected in the merged weights. The adapter {name} seems to be broken.")
                self.set_base_weight(merged)
                self.merged_adapters.append(name)
                self._report_rounding(merged)

    def _report_rounding(self, merged: Tensor) -> None:
        """A quantised base rounds the sum to its few bits again: say by how much."""
        if self.quantization_backend is not None:
            error = (self.get_base_weight().float() - merged.float()).norm() / merged.float().norm()
            text = f"Merged into a quantised map: {100 * error:.1f} % of the sum was lost to rounding."
            warnings.warn(f"{text} An export loses nothing.", stacklevel=3)

    def unmerge(self) -> None:
        """Take the merged deltas out again."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        while self.merged_adapters:
            name = self.merged_adapters.pop()
            if name in self.trilora_A:
                weight = self.get_base_weight()
                self.set_base_weight((weight.float() - self.get_delta_weight(name).float()).to(weight.dtype))

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters and self.merged:
            self.unmerge()
        result: Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        if self.quantization_backend is not None:
            result = self.quantization_backend.maybe_clone_base_result(result)
        if self.base_layer._forward_hooks:  # one of them may have kept what is added to in place below
            result = result.clone()
        if self.beside is not None:
            return self.beside.added(self, x, result)
        dtype = result.dtype
        for name in self.active_adapters:
            if name in self.trilora_A:
                result = self.added(name, x, result)
        return result.to(dtype)

    def added(self, name: str, x: Tensor, result: Tensor) -> Tensor:
        """The base's result with what an adapter adds to it."""
        a = self.trilora_A[name]
        read = self._cast_input_dtype(x, a.dtype)
        if name in self.trilora_dropout:
            read = self.trilora_dropout[name](read)
        # T is folded into B: the same factor as in merge and export, and no activation to keep for it.
        result = plus_low_rank(result, read, a, self.left_factor(name))
        if name in self.trilora_q:
            result = result + self.constant(name)
        if name in self.trilora_offset:
            result = result + F.linear(x, self.trilora_offset[name].to(x.dtype))
        return result

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return True

    def __repr__(self) -> str:
        return "trilora." + super().__repr__()

    def extra_repr(self) -> str:
        text: str = quantization_extra_repr(self)
        return text
