"""Base models, loaded once and shared: clients that name the same model share one frozen copy in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import _get_in_out_features
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from h2tune.adapter import TriLoraConfig, TriLoraLayer
from h2tune.config import Cache, Experiment
from h2tune.core.slots import Layout
from h2tune.participant.attention import use_plain_where_short
from h2tune.participant.checkpoints import (
    ENCODERS,
    Checkpoint,
    context_of,
    load_tokenizer,
    load_weights,
    open_checkpoint,
    resolve_source,
)
from h2tune.participant.devices import check_device
from h2tune.participant.errors import ModelError
from h2tune.participant.load_report import NewHead, renew_head
from h2tune.participant.products import FrozenConv1D, FrozenLinear, supported, use_onednn
from h2tune.participant.state_cache import StateCache
from h2tune.utils.memory import keep_freed_memory
from h2tune.utils.sizes import parse_size

__all__ = ["ENCODERS", "LoadedModel", "ModelError", "ModelPool", "adapter_name", "resolve_source"]

_SAMPLED = 4096  # numbers of a tensor that the fingerprint reads


def adapter_name(client: str) -> str:
    """The name under which a client's adapter lies in the model.

    PyTorch takes no names with dots or those of its own methods, and PEFT looks for names inside names; a digest has
    neither trouble.
    """
    return f"client_{hashlib.sha256(client.encode()).hexdigest()[:12]}"


@dataclass
class LoadedModel:
    """A base model in memory with the adapters of all its clients.

    Attributes:
        model: the plain model; its maps are wrapped in place once the first adapter is attached.
        peft: the same model with adapters, one per client, by name; None before the first.
        targets: full names of the maps that the first adapter was put on.
        head: new modules beside PEFT's usual heads, trained and saved with every adapter.
        new: weights of the head that the checkpoint lacks.
        bare: whether the adapters are disabled for a while (`untouched`).
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layout: Layout
    family: str
    causal: bool
    peft: PeftModel | None = None
    targets: frozenset[str] = frozenset()
    head: tuple[str, ...] = ()
    new: frozenset[str] = frozenset()
    bare: bool = False
    cache: dict[Any, Any] = field(default_factory=dict)

    @property
    def context(self) -> int:
        """Longest input in tokens."""
        return context_of(self.model.config, self.tokenizer)

    @property
    def fingerprint(self) -> str:
        """Identity of the base: the same for the same weights of the same architecture, on every device.

        It reads a fixed sample of every tensor below the head, rounded to bfloat16 as a GPU holds it.
        """
        if "fingerprint" not in self.cache:
            digest = hashlib.sha256(f"{self.family} {self.layout.targets} {self.maps(self.layout)}".encode())
            for name, tensor in self._frozen():
                flat = tensor.detach().reshape(-1)
                sample = flat[:: max(1, flat.numel() // _SAMPLED)]
                if sample.is_floating_point():
                    sample = sample.to(torch.bfloat16).view(torch.int16)
                digest.update(f"{name} {tuple(tensor.shape)}".encode())
                digest.update(sample.cpu().contiguous().numpy().tobytes())
            self.cache["fingerprint"] = digest.hexdigest()[:16]
        return str(self.cache["fingerprint"])

    def _frozen(self) -> Iterator[tuple[str, Tensor]]:
        """The backbone's own tensors by their plain names, whatever adapters sit on it."""
        backbone = getattr(self.model, self.model.base_model_prefix, self.model)
        for name, parameter in backbone.named_parameters():
            plain = name.replace(".base_layer", "").replace(".original_module", "")
            if "trilora_" in name or "modules_to_save." in name or plain.split(".")[0] in (*self.head, "pooler"):
                continue
            yield plain, parameter

    def maps(self, layout: Layout, whole: bool = False) -> list[tuple[int, int, int]]:
        """(d_in, d_out, parts) of every map of a layout, in the order of `Layout.targets`.

        d_out is that of a fused map's smallest part, or with ``whole`` that of the map.
        """
        found: list[tuple[int, int, int]] = []
        for name in layout.targets:
            module = self.model.get_submodule(name)
            inner = module.get_base_layer() if isinstance(module, TriLoraLayer) else module
            d_in, d_out = (int(size or 0) for size in _get_in_out_features(inner))
            sizes = next((p["sizes"] for end, p in layout.parts.items() if name.endswith("." + end)), [d_out])
            found.append((d_in, d_out if whole else min(sizes), len(sizes)))
        return found

    def detach(self, adapter: str) -> None:
        """Remove an adapter; the last one takes the wrapping with it."""
        assert self.peft is not None
        if len(self.peft.peft_config) > 1:
            self.peft.delete_adapter(adapter)
        else:
            self.release()

    def release(self) -> None:
        """Remove all adapters; the model is again what was loaded."""
        if self.peft is None:
            return
        wrapped = [(n, m) for n, m in self.model.named_modules() if isinstance(m, ModulesToSaveWrapper)]
        self.model, self.peft = self.peft.unload(), None
        for name, wrapper in wrapped:  # PEFT leaves the trained copy in the place of what it was copied from
            self.model.set_submodule(name, wrapper.original_module.requires_grad_(False))

    def attach(self, adapter: str, config: TriLoraConfig) -> None:
        """Add an adapter and a head of its own where the task has one, and make it the one in use."""
        if self.head:
            config.modules_to_save = [*(config.modules_to_save or ()), *self.head]
        if self.peft is None:
            self.targets = frozenset(config.target_modules or ())
            self.peft = get_peft_model(self.model, config, adapter_name=adapter)
        elif self._can_attach_simply(config):
            self._attach_to_the_same(adapter, config)
        else:
            self.peft.add_adapter(adapter, config)
        self.activate(adapter)

    def _can_attach_simply(self, config: TriLoraConfig) -> bool:
        """Whether an adapter is on the maps of the first one and on nothing else."""
        return (
            not config.modules_to_save and config.task_type != "SEQ_CLS"  # PEFT saves a classifier's head whole
            and self.model.dtype == torch.float32 and self.targets == frozenset(config.target_modules or ())
        )  # fmt: skip

    def _attach_to_the_same(self, adapter: str, config: TriLoraConfig) -> None:
        """Add an adapter to the maps that have one already.

        PEFT's own way visits every parameter of every adapter again: with hundreds of clients that takes minutes.
        """
        assert self.peft is not None
        first: Any = next(iter(self.peft.peft_config.values()))
        config.target_modules = first.target_modules  # PEFT has shortened the names
        self.peft.peft_config[adapter] = config
        for name, module in self.model.named_modules():
            if isinstance(module, TriLoraLayer):
                module.update_layer(adapter, config, parts=config.parts_of(name))

    @contextmanager
    def untouched(self) -> Iterator[PreTrainedModel]:
        """The model as it was loaded, whatever adapters are on it."""
        # Not `PeftModel.disable_adapter`: it first looks at every adapter that there is.
        layers: Any = self.peft.base_model if self.peft and not self.bare else None
        if layers is not None:
            layers.disable_adapter_layers()
            self.bare = True
        try:
            yield self.model
        finally:
            if layers is not None:
                layers.enable_adapter_layers()
                self.bare = False

    def renew_head(self, adapter: str) -> None:
        """Start what the checkpoint lacks of an adapter's head anew from the current random state."""
        renew_head(self.model, adapter, self.new)

    def activate(self, adapter: str) -> PeftModel:
        """Make one client's adapter (and head) the one in use."""
        assert self.peft is not None
        if self.peft.active_adapter != adapter:
            self.peft.set_adapter(adapter)
        return self.peft


class ModelPool:
    """All base models of this process, by what distinguishes them.

    Args:
        device: ``auto``, or a name of PyTorch; on ``meta`` no weights are read.
        folder: where what was worked out for a base and holds for every run on it is kept; None keeps it in memory.
        offline: use what is on this machine only.
        precision: of the forward pass (``training.precision``); with ``bf16`` a CPU that computes in it holds its bases in it.
        cache: how much is kept of what lower blocks say of texts.

    Attributes:
        states: where that is kept (`h2tune.participant.prefix`).
    """

    def __init__(
        self,
        device: str = "auto",
        folder: Path | None = None,
        *,
        offline: bool = False,
        cache: Cache | None = None,
        precision: str = "fp32",
    ) -> None:
        self.folder, self.offline = folder, offline
        cache = cache or Cache()
        self.states = StateCache(parse_size(cache.memory), parse_size(cache.disk), folder and folder / "states")
        self.precision = precision
        self._memory: dict[str, dict[str, Tensor]] = {}
        self.device = device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
        self._held: dict[tuple[Any, ...], LoadedModel] = {}

    def get(self, source: str, *, labels: int | None = None, revision: str | None = None, trust: bool = False,
            slots: dict[str, str] | None = None, quantization: str = "none") -> LoadedModel:  # fmt: skip
        """The base of a model; ``labels`` asks for one with a classification head of so many classes."""
        key = (source, labels, revision, trust, tuple(sorted((slots or {}).items())), quantization)
        if key not in self._held:
            donor = next((r for k, r in self._held.items() if k[0] == source and k[2:] == key[2:]), None)
            self._held[key] = self._load(source, labels, revision, trust, slots, quantization, donor)
        return self._held[key]

    def kept(self, key: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Tensors under a key that names all they depend on; made once, also by several processes at a time."""
        if key in self._memory:
            return self._memory[key]
        if self.folder is None:
            self._memory[key] = make()
            return self._memory[key]
        path = self.folder / f"{key}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.is_file():
                partial = path.with_suffix(".partial")
                save_file({name: t.cpu().contiguous() for name, t in make().items()}, partial)
                partial.replace(path)
        self._memory[key] = load_file(path)
        return self._memory[key]

    def release(self) -> None:
        """Take all adapters off; the bases stay in memory."""
        for base in self._held.values():
            base.release()

    def __len__(self) -> int:
        return len(self._held)

    def _load(self, source: str, labels: int | None, revision: str | None, trust: bool, slots: dict[str, str] | None,
              quantization: str, donor: LoadedModel | None) -> LoadedModel:  # fmt: skip
        check_device(self.device)
        checkpoint = open_checkpoint(source, labels=labels, revision=revision, trust=trust, offline=self.offline)
        tokenizer = donor.tokenizer if donor else load_tokenizer(checkpoint)
        model, layout, head = load_weights(
            checkpoint, tokenizer, slots, device=self.device, dtype=self._dtype(), quantization=quantization
        )
        if quantization == "none":
            model.to(self.device)  # type: ignore[arg-type]  # the decorated method hides its own signature
        if donor is not None and self.device != "meta":
            _share_weights(model, donor.model)
        model.requires_grad_(False)
        if self.device == "cpu":
            suit_cpu(model)
        return loaded_model(checkpoint, tokenizer, model, layout, head)

    def _dtype(self) -> torch.dtype:
        half = self.device.startswith("cuda") or (
            self.device == "cpu" and self.precision == "bf16" and _cpu_has_bf16()
        )
        return torch.bfloat16 if half else torch.float32

    @classmethod
    def of(
        cls,
        experiment: Experiment,
        folder: Path | None = None,
        device: str | None = None,
        precision: str | None = None,
    ) -> ModelPool:
        """The pool of an experiment's clients; ``device`` and ``precision`` where not the experiment's own."""
        precision = precision or experiment.training.precision
        return cls(device or experiment.device, folder, cache=experiment.cache, precision=precision)


def suit_cpu(model: PreTrainedModel) -> None:
    """Let a frozen base take what is fastest on this processor; results change by rounding only."""
    keep_freed_memory()
    if model.dtype is torch.bfloat16:
        use_plain_where_short(model)
    elif supported():
        use_onednn(model)


def kernels_of(model: nn.Module) -> str:
    """By what a base computes: two machines, or two versions, may differ in it, and then in the last digits."""
    attention = getattr(getattr(model, "config", None), "_attn_implementation", "")
    fast = any(isinstance(module, FrozenLinear | FrozenConv1D) for module in model.modules())
    return f"{attention} {'onednn' if fast else ''}"


def _cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 itself; without that it is slower than float32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def loaded_model(
    checkpoint: Checkpoint,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    layout: Layout,
    head: NewHead,
) -> LoadedModel:
    """A base from its parts."""
    about = (checkpoint.source, model, tokenizer, layout, checkpoint.family, checkpoint.causal)
    return LoadedModel(*about, head=head.modules, new=head.weights)


def _share_weights(model: nn.Module, donor: nn.Module) -> None:
    """Let a second model on the same checkpoint use the first one's frozen tensors instead of its own copy."""
    theirs = {name.replace(".base_layer", ""): p for name, p in donor.named_parameters()}
    for name, own in list(model.named_parameters()):
        other = theirs.get(name)
        if other is not None and other.shape == own.shape and torch.equal(other, own):
            own.data = other.data
