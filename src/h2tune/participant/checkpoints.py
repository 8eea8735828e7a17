"""From the name of a model in the config to its parts: where it lies, its config, its tokenizer, its weights.

Every path that needs a model goes through here (`plan` with the weights on the meta device, where none are read), so
that none of them accepts what another refuses.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from h2tune.core.slots import Layout, layout_of
from h2tune.participant.errors import ModelAwayError, ModelError
from h2tune.participant.gguf import gguf_file, unpacked
from h2tune.participant.load_report import NewHead, check_report
from h2tune.utils.files import nearest

ENCODERS = {
    "bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert", "modernbert", "deberta", "deberta-v2",
}  # fmt: skip
_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert")  # they count positions from padding_idx + 1


@dataclass(frozen=True)
class Checkpoint:
    """A model that has been found, before its weights are read.

    Attributes:
        source: its name in the config.
        folder: the folder, or the name on the Hub, that Transformers loads.
        labels: classes of the task's head; None for a model that writes text.
    """

    source: str
    folder: str
    config: Any
    labels: int | None = None
    revision: str | None = None
    trust: bool = False
    offline: bool = False

    @property
    def family(self) -> str:
        return str(self.config.get_text_config().model_type)

    @property
    def causal(self) -> bool:
        return self.family not in ENCODERS

    @property
    def writes_text(self) -> bool:
        """Whether Transformers knows a class that does, or the model ships one that may be run."""
        own = self.trust and "AutoModelForCausalLM" in (getattr(self.config, "auto_map", None) or {})
        return self.causal and (own or type(self.config).model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)

    @property
    def options(self) -> dict[str, Any]:
        """What every ``from_pretrained`` is told."""
        return {"revision": self.revision, "trust_remote_code": self.trust, "local_files_only": self.offline}

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the weights as they lie there; float32 where that is not said."""
        for config in (self.config, self.config.get_text_config()):
            found = getattr(config, "dtype", None)
            found = getattr(torch, found, None) if isinstance(found, str) else found
            if isinstance(found, torch.dtype):
                return found
        return torch.float32


def resolve_source(source: str) -> str:
    """Folder or Hub name behind a model's name in the config.

    Raises:
        ModelError: if there is no such folder, or it holds an adapter in place of a model.
    """
    if source.startswith("zoo:"):
        from h2tune.zoo import zoo_folder

        return str(zoo_folder(source.removeprefix("zoo:")))
    path = Path(source).expanduser()
    if gguf := gguf_file(path):
        return str(unpacked(gguf))
    if source.startswith((".", "/", "~")) and not path.is_dir():
        raise ModelError(f"There is no model folder {source}{nearest(path) or '.'}")
    if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
        raise ModelError(
            f"{source} holds an adapter and no model. Name its base model instead, or merge the two first:"
            " h2tune export RUN --to merged, or merge_and_unload() in PEFT."
        )
    return str(path) if path.is_dir() else source


def open_checkpoint(source: str, *, labels: int | None = None, revision: str | None = None, trust: bool = False,
                    offline: bool = False) -> Checkpoint:  # fmt: skip
    """Find a model and read its config; ``offline`` looks on this machine only.

    Raises:
        ModelAwayError: if ``offline`` and it is not on this machine.
        ModelError: if it cannot be used for what is asked.
    """
    folder = resolve_source(source)
    try:
        config = AutoConfig.from_pretrained(
            folder, revision=revision, trust_remote_code=trust, local_files_only=offline
        )
    except Exception as error:
        if offline and not Path(folder).is_dir():
            raise ModelAwayError(f"{source} is not on this machine yet") from None
        raise ModelError(load_advice(source, folder, error)) from None
    found = Checkpoint(source, folder, config, labels, revision, trust, offline)
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{source} ({found.family}) is an encoder-decoder; only decoders, which write text, and encoders, for"
            " classification, can take part. Choose one of these."
        )
    if labels is None and not found.writes_text:
        raise ModelError(f"{source} ({found.family}) does not generate text: give it a classification task.")
    if labels is not None:
        config.num_labels = labels
    return found


def load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a pad token.

    Raises:
        ModelError: if it cannot be loaded.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, **checkpoint.options)
    except Exception as error:
        raise ModelError(load_advice(checkpoint.source, checkpoint.folder, error)) from None
    rows = getattr(checkpoint.config.get_text_config(), "vocab_size", None) or len(tokenizer)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= rows:
        # A label at the end token must stay visible, so a missing pad token is only ever used under the mask.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise ModelError(f"The tokenizer of {checkpoint.source} has no pad, end or unknown token to fill rows with.")
    return tokenizer


def load_weights(
    checkpoint: Checkpoint,
    tokenizer: PreTrainedTokenizerBase,
    slots: dict[str, str] | None = None,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    quantization: str = "none",
) -> tuple[PreTrainedModel, Layout, NewHead]:
    """The model, its layout, and what of its head is new and must be trained and saved.

    On the device ``meta`` nothing is read but the names and shapes of the weights.

    Raises:
        ModelError: if weights are missing, or are called by other names.
    """
    config = checkpoint.config
    config.pad_token_id = config.get_text_config().pad_token_id = tokenizer.pad_token_id
    auto = AutoModelForCausalLM if checkpoint.labels is None else AutoModelForSequenceClassification
    options = checkpoint.options | {"dtype": dtype, "ignore_mismatched_sizes": True, "output_loading_info": True}
    if device == "meta":
        options["device_map"] = "meta"
    options |= _quantized(quantization, device)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)  # a new classification head is random, but the same in every run
            loaded: Any = auto.from_pretrained(checkpoint.folder, config=config, **options)
            model, info = loaded
    except Exception as error:
        if checkpoint.offline and not Path(checkpoint.folder).is_dir():
            raise ModelAwayError(f"{checkpoint.source} is not on this machine yet") from None
        raise ModelError(load_advice(checkpoint.source, checkpoint.folder, error)) from None
    layout = layout_of(model, slots)
    head = check_report(checkpoint.source, model, info, layout.blocks, classifies=checkpoint.labels is not None)
    return model, layout, head


def _quantized(quantization: str, device: str) -> dict[str, Any]:
    if quantization == "none":
        return {}
    if find_spec("bitsandbytes") is None:
        raise ModelError(f"quantization: {quantization} needs bitsandbytes (pip install h2tune[quantized]).")
    if device == "meta":
        return {}
    from transformers import BitsAndBytesConfig

    bits = {"load_in_8bit": True} if quantization == "8bit" else {"load_in_4bit": True}
    return {"quantization_config": BitsAndBytesConfig(**bits), "dtype": torch.bfloat16}


def positions_of(config: Any) -> int | None:
    """How many positions a model has; None where its config sets no limit."""
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    if not positions:
        return None
    return int(positions) - (text.pad_token_id + 1 if text.model_type in _OFFSET_POSITIONS else 0)


def context_of(config: Any, tokenizer: Any) -> int:
    """Longest input of a model in tokens, by its config and its tokenizer."""
    limit = int(min(tokenizer.model_max_length, 1 << 20))
    return min(positions_of(config) or limit, limit)


def load_advice(source: str, folder: str, error: Exception) -> str:
    """What to tell the user of an error of Transformers."""
    text = str(error).strip().split("\n")[0][:300]
    if "trust_remote_code" in str(error):
        return f"{source} ships its own Python code; set trust_remote_code: true if you trust its authors with this machine."
    path = Path(folder)
    if path.is_dir():
        names = [p.name for p in path.iterdir()]
        if "config.json" not in names:
            return f"The model folder {source} holds no config.json."
        if not any(n.endswith((".safetensors", ".bin")) for n in names):
            return f"The model folder {source} holds no weights (*.safetensors)."
        if not any(n.startswith(("tokenizer", "vocab", "spiece")) for n in names):
            return f"The model folder {source} holds no tokenizer."
    return f"The model {source} cannot be loaded: {text}"
