"""Base models, loaded once and shared: clients that name the same model share one frozen copy in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import _get_in_out_features
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from h2tune.adapter import TriLoraConfig, TriLoraLayer
from h2tune.config import ClientConfig
from h2tune.core.slots import Layout, layout_of
from h2tune.tasks.example import Task

ENCODERS = {"bert", "roberta", "xlm-roberta", "electra"}


class ModelError(ValueError):
    """A base model cannot be used; the text says why and what to do."""


@dataclass
class LoadedModel:
    """A base model in memory with the adapters of all its clients.

    Attributes:
        model: the plain model; its maps are wrapped in place once the first adapter is attached.
        peft: the same model with adapters, one per client, by name; None before the first.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layout: Layout
    family: str
    causal: bool
    peft: PeftModel | None = None
    cache: dict[Any, Any] = field(default_factory=dict)

    @property
    def context(self) -> int:
        """Longest input in tokens."""
        config = self.model.config.get_text_config()
        positions = getattr(config, "max_position_embeddings", None) or self.tokenizer.model_max_length
        # RoBERTa counts positions from padding_idx + 1.
        offset = (config.pad_token_id + 1) if self.family in ("roberta", "xlm-roberta") else 0
        return int(min(positions - offset, self.tokenizer.model_max_length))

    @property
    def fingerprint(self) -> str:
        """Identity of the base: the same for the same weights of the same architecture."""
        if "fingerprint" not in self.cache:
            name = self.layout.targets[0]
            module = self.model.get_submodule(name)
            weight = (module.get_base_layer() if isinstance(module, TriLoraLayer) else module).weight
            digest = hashlib.sha256(f"{self.family} {self.layout.targets} {self.maps(self.layout)}".encode())
            digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
            self.cache["fingerprint"] = digest.hexdigest()[:16]
        return self.cache["fingerprint"]

    def maps(self, layout: Layout, whole: bool = False) -> list[tuple[int, int, int]]:
        """(d_in, d_out, parts) of every map of a layout, in the order of `Layout.targets`.

        d_out is that of a fused map's smallest part, or with ``whole`` that of the map.
        """
        found = []
        for name in layout.targets:
            module = self.model.get_submodule(name)
            d_in, d_out = _get_in_out_features(module.get_base_layer() if isinstance(module, TriLoraLayer) else module)
            sizes = next((p["sizes"] for end, p in layout.parts.items() if name.endswith("." + end)), [d_out])
            found.append((d_in, d_out if whole else min(sizes), len(sizes)))
        return found

    def detach(self, adapter: str) -> None:
        """Remove an adapter; the last one takes the wrapping with it."""
        assert self.peft is not None
        if len(self.peft.peft_config) > 1:
            self.peft.delete_adapter(adapter)
        else:
            self.model, self.peft = self.peft.unload(), None

    def attach(self, adapter: str, config: TriLoraConfig) -> None:
        """Add an adapter, inactive until `activate`."""
        if self.peft is None:
            self.peft = get_peft_model(self.model, config, adapter_name=adapter)
        else:
            self.peft.add_adapter(adapter, config)
        self.activate(adapter)

    @contextmanager
    def untouched(self) -> Iterator[PreTrainedModel]:
        """The model as it was loaded, whatever adapters are on it."""
        with self.peft.disable_adapter() if self.peft else nullcontext():
            yield self.model

    def activate(self, adapter: str) -> PeftModel:
        """Make one client's adapter (and head) the one in use."""
        assert self.peft is not None
        if self.peft.active_adapter != adapter:
            self.peft.set_adapter(adapter)
        return self.peft


class ModelPool:
    """All base models of this process, by what distinguishes them.

    Args:
        folder: where what was worked out for a base and holds for every run on it is kept; None keeps it in memory.
    """

    def __init__(self, device: str = "auto", folder: Path | None = None) -> None:
        self.folder = folder
        self._memory: dict[str, dict[str, Tensor]] = {}
        self.device = device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
        self._held: dict[tuple, LoadedModel] = {}

    def get(self, source: str, *, labels: int | None = None, revision: str | None = None, trust: bool = False,
            slots: dict[str, str] | None = None, quantization: str = "none") -> LoadedModel:  # fmt: skip
        """The base of a model; ``labels`` asks for one with a classification head of so many classes."""
        key = (source, labels, revision, trust, tuple(sorted((slots or {}).items())), quantization)
        if key not in self._held:
            donor = next((r for k, r in self._held.items() if k[0] == source and k[2:] == key[2:]), None)
            self._held[key] = self._load(source, labels, revision, trust, slots, quantization, donor)
        return self._held[key]

    def of(self, config: ClientConfig, task: Task) -> LoadedModel:
        """The model that a client names, with a head for its labels if it classifies."""
        return self.get(
            config.model,
            labels=len(task.labels) if task.kind == "classify" else None,
            revision=config.revision,
            trust=config.trust_remote_code,
            slots=config.slots,
            quantization=config.quantization,
        )

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
            for adapter in list(base.peft.peft_config) if base.peft else []:
                base.detach(adapter)

    def __len__(self) -> int:
        return len(self._held)

    def _load(self, source: str, labels: int | None, revision: str | None, trust: bool, slots: dict[str, str] | None,
              quantization: str, donor: LoadedModel | None) -> LoadedModel:  # fmt: skip
        folder, common = resolve_source(source), {"revision": revision, "trust_remote_code": trust}
        try:
            config = AutoConfig.from_pretrained(folder, **common)
            tokenizer = donor.tokenizer if donor else AutoTokenizer.from_pretrained(folder, **common)
        except Exception as error:
            raise ModelError(_load_advice(source, error)) from None
        family = config.get_text_config().model_type
        causal = family not in ENCODERS
        if labels is None and (not causal or type(config).model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
            raise ModelError(f"{source} ({family}) does not generate text: give it a classification task.")
        if tokenizer.pad_token_id is None:
            # A label at the end token must stay visible, so a missing pad token is only ever used under the mask.
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        config.pad_token_id = tokenizer.pad_token_id
        if labels is not None:
            config.num_labels = labels
        auto = AutoModelForCausalLM if labels is None else AutoModelForSequenceClassification
        try:
            with torch.random.fork_rng():
                torch.manual_seed(0)  # a new classification head is random, but the same in every run
                model = _load_weights(auto, folder, config, common, quantization)
        except Exception as error:
            raise ModelError(_load_advice(source, error)) from None
        if quantization == "none":
            model.to(self.device)
        if donor is not None:
            _share_weights(model, donor.model)
        model.requires_grad_(False)
        return LoadedModel(source, model, tokenizer, layout_of(model, slots), family, causal)


def resolve_source(source: str) -> str:
    """Folder or Hub name behind a model's name in the config."""
    if source.startswith("zoo:"):
        from h2tune.zoo import zoo_folder

        return str(zoo_folder(source.removeprefix("zoo:")))
    if source.startswith((".", "/", "~")) and not Path(source).expanduser().is_dir():
        raise ModelError(f"There is no model folder {source}.")
    return str(Path(source).expanduser()) if source.startswith("~") else source


def _load_weights(auto: Any, folder: str, config: Any, common: dict[str, Any], quantization: str) -> PreTrainedModel:
    options: dict[str, Any] = {"dtype": torch.float32}
    if quantization != "none":
        from transformers import BitsAndBytesConfig

        bits = {"load_in_8bit": True} if quantization == "8bit" else {"load_in_4bit": True}
        options = {"quantization_config": BitsAndBytesConfig(**bits), "dtype": torch.bfloat16}
    elif torch.cuda.is_available():
        options = {"dtype": torch.bfloat16}
    return auto.from_pretrained(folder, config=config, **options, **common)


def _share_weights(model: nn.Module, donor: nn.Module) -> None:
    """Let a second model on the same checkpoint use the first one's frozen tensors instead of its own copy."""
    theirs = {name.replace(".base_layer", ""): p for name, p in donor.named_parameters()}
    for name, own in list(model.named_parameters()):
        other = theirs.get(name)
        if other is not None and other.shape == own.shape and torch.equal(other, own):
            own.data = other.data


def _load_advice(source: str, error: Exception) -> str:
    text = str(error).strip().split("\n")[0][:300]
    if "trust_remote_code" in str(error):
        return f"{source} ships its own Python code; set trust_remote_code: true if you trust its authors with this machine."
    folder = Path(source)
    if folder.is_dir():
        names = [p.name for p in folder.iterdir()]
        if not any(n.endswith((".safetensors", ".bin")) for n in names):
            return f"The model folder {source} holds no weights (*.safetensors)."
        if not any(n.startswith(("tokenizer", "vocab", "spiece")) for n in names):
            return f"The model folder {source} holds no tokenizer."
    return f"The model {source} cannot be loaded: {text}"
