"""A tiny model of every family, from its real class and with its real layout: fused, interleaved, grouped-query, tied.

Weights are small but nowhere zero or one (norms and biases too), so that a wrong row, a lost bias or a missed gain
shows in the logits. A model is built once per process and copied; tests may do with their copy what they like.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
import transformers as hf
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from h2tune.adapter import TriLoraConfig
from h2tune.core.slots import layout_of

VOCAB, HIDDEN, BLOCKS, LABELS = 64, 32, 2, 3
_ROPE = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": 48, "num_hidden_layers": BLOCKS,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip
_BERT = {k: v for k, v in _ROPE.items() if k != "num_key_value_heads"}
_PLAIN = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

# name -> (config class, model class, settings). "tied" and "untied" speak of the word embeddings and the output.
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", _ROPE | {"tie_word_embeddings": False}),
    "llama-tied": ("LlamaConfig", "LlamaForCausalLM", _ROPE | {"num_hidden_layers": 3, "tie_word_embeddings": True}),
    "mistral": ("MistralConfig", "MistralForCausalLM", _ROPE | {"sliding_window": 8}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", _ROPE | {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", _ROPE | {"head_dim": 16}),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", _ROPE | {"head_dim": 16, "sliding_window": 8}),
    "gemma3_text": ("Gemma3TextConfig", "Gemma3ForCausalLM", _ROPE | {"head_dim": 16, "sliding_window": 8}),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", _ROPE),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel",
             {"vocab_size": VOCAB, "n_embd": HIDDEN, "n_layer": BLOCKS, "n_head": 4, "n_positions": 64}),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", _BERT | {"tie_word_embeddings": False}),
    "opt": ("OPTConfig", "OPTForCausalLM",
            {"vocab_size": VOCAB, "hidden_size": HIDDEN, "ffn_dim": 48, "num_hidden_layers": BLOCKS,
             "num_attention_heads": 4, "max_position_embeddings": 64, "word_embed_proj_dim": HIDDEN}),
    "bert-cls": ("BertConfig", "BertForSequenceClassification", _BERT | {"num_labels": LABELS}),
    "roberta-cls": ("RobertaConfig", "RobertaForSequenceClassification", _BERT | {"num_labels": LABELS}),
    "electra-cls": ("ElectraConfig", "ElectraForSequenceClassification", _BERT | {"num_labels": LABELS, "embedding_size": 16}),
    "distilbert-cls": ("DistilBertConfig", "DistilBertForSequenceClassification",
                       {"vocab_size": VOCAB, "dim": HIDDEN, "hidden_dim": 48, "n_layers": BLOCKS, "n_heads": 4,
                        "max_position_embeddings": 64, "num_labels": LABELS}),
    "modernbert-cls": ("ModernBertConfig", "ModernBertForSequenceClassification",
                       _BERT | {"num_labels": LABELS, "local_attention": 8, "global_attn_every_n_layers": 2,
                                "cls_token_id": 1, "sep_token_id": 2}),
    "deberta-cls": ("DebertaConfig", "DebertaForSequenceClassification",
                    _BERT | {"num_labels": LABELS, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "deberta-v2-cls": ("DebertaV2Config", "DebertaV2ForSequenceClassification",
                       _BERT | {"num_labels": LABELS, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "llama-cls": ("LlamaConfig", "LlamaForSequenceClassification", _ROPE | {"num_labels": LABELS}),
}  # fmt: skip
NAMES = tuple(FAMILIES)
DECODERS = tuple(name for name in NAMES if not name.endswith("-cls"))
CLASSIFIERS = tuple(name for name in NAMES if name.endswith("-cls"))
FUSED = ("phi3", "gpt2", "gpt_neox")


def config_of(family: str, **changes: Any) -> PreTrainedConfig:
    """The family's tiny config."""
    config, _, options = FAMILIES[family]
    return getattr(hf, config)(**(_PLAIN | options | {"attn_implementation": "eager"} | changes))


@cache
def _built(family: str) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(NAMES.index(family))
        model = getattr(hf, FAMILIES[family][1])(config_of(family))
        for name, parameter in model.named_parameters():
            around = 1.0 if parameter.ndim == 1 and "norm" in name.lower() and name.endswith("weight") else 0.0
            nn.init.normal_(parameter, mean=around, std=0.2 if parameter.ndim == 1 else 0.15)
    return model.eval()


def build(family: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A fresh copy of the family's model, in evaluation mode."""
    return copy.deepcopy(_built(family)).to(dtype)


def ids(rows: int = 3, tokens: int = 10, seed: int = 0) -> Tensor:
    """Token ids without padding, rows x tokens."""
    return torch.randint(3, VOCAB, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def logits(model: nn.Module, seed: int = 0) -> Tensor:
    """What a model says to the common input, in float32."""
    with torch.no_grad():
        return model(input_ids=ids(seed=seed)).logits.float()


def task_type(family: str) -> str:
    return "SEQ_CLS" if family in CLASSIFIERS else "CAUSAL_LM"


def adapted(
    family: str,
    residual: bool = True,
    r: int = 4,
    *,
    seed: int = 0,
    perturbed: bool = True,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> PeftModel:
    """A fresh model with a TriLoRA adapter on all its slots; perturbed, it changes every map it sits on."""
    model = build(family, dtype)
    layout = layout_of(model)
    settings = {
        "target_modules": layout.targets,
        "parts": layout.parts or None,
        "task_type": task_type(family),
    } | options
    peft = get_peft_model(model, TriLoraConfig(r=r, residual=residual, **settings)).eval()
    return perturb(peft, seed=seed) if perturbed else peft


def perturb(model: PeftModel, adapter: str = "default", seed: int = 0) -> PeftModel:
    """Random A, B, T and heads, as if trained, large enough to move every logit."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if ("trilora_" in name and name.endswith(adapter)) or f"modules_to_save.{adapter}." in name:
            scale = 0.3 if "trilora_A" not in name else parameter.shape[1] ** -0.5
            parameter.data = (torch.randn(parameter.shape, generator=generator) * scale).to(parameter)
    return model
