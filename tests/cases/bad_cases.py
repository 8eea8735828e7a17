"""Inputs that cannot be used, each with the words that say so. A case makes its files in a folder and its experiment."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from families import build, config_of
from model_folders import ROWS, TASKS, model_folder, one_client
from safetensors.torch import load_file, save_file
from tiny_tokenizers import tokenizer

from h2tune.config import Experiment

Case = Callable[[Path], Experiment]
GENERATE = TASKS["generate"]
CHATS = [
    {"messages": [{"role": "user", "content": "say tea"}, {"role": "assistant", "content": "tea"}]} for _ in range(4)
]
REFUSES = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('this model knows no system turns') }}{% endif %}"
    "{% for m in messages %}{{ '[' + m['role'] + '] ' + m['content'] + ' [/] ' }}{% endfor %}"
)


def half_character(folder: Path) -> Experiment:
    rows = [*ROWS, {"text": "smile \ud83d", "word": "smile"}]
    return one_client(folder, model_folder(folder / "model", "gpt2"), GENERATE, rows)


def refused_role(folder: Path) -> Experiment:
    model = model_folder(folder / "model", "gpt2")
    words = tokenizer("characters")
    before, words.chat_template = words.chat_template, REFUSES
    words.save_pretrained(model)
    words.chat_template = before
    turns = [{"role": "system", "content": "be short"}, *CHATS[0]["messages"]]
    return one_client(folder, model, {"kind": "generate"}, [*CHATS, {"messages": turns}])


def structure(folder: Path) -> Experiment:
    rows = [*ROWS, {"text": {"a": 1}, "word": "x"}]
    return one_client(folder, model_folder(folder / "model", "llama"), GENERATE, rows)


def label_by_case(folder: Path) -> Experiment:
    rows = [*ROWS, {"text": "x", "label": "LOW"}]
    return one_client(folder, model_folder(folder / "model", "bert-cls"), TASKS["classify"], rows)


def prefixed_weights(folder: Path) -> Experiment:
    file = model_folder(folder / "model", "llama") / "model.safetensors"
    tensors = {f"_orig_mod.{name}": tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    return one_client(folder, folder / "model", GENERATE)


def prefixed_and_tied(folder: Path) -> Experiment:
    file = model_folder(folder / "model", "qwen2") / "model.safetensors"
    tensors = {f"module.{name}": tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    return one_client(folder, folder / "model", GENERATE)


def lacking_weights(folder: Path) -> Experiment:
    file = model_folder(folder / "model", "llama") / "model.safetensors"
    tensors = {name: t for name, t in load_file(file).items() if "layers.1.mlp" not in name}
    save_file(tensors, file, metadata={"format": "pt"})
    return one_client(folder, folder / "model", GENERATE)


def blocks_too_many(folder: Path) -> Experiment:
    file = model_folder(folder / "model", "llama") / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | {"num_hidden_layers": 1}
    file.write_text(json.dumps(config), encoding="utf-8")
    return one_client(folder, folder / "model", GENERATE)


def other_shapes(folder: Path) -> Experiment:
    file = model_folder(folder / "model", "llama") / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | {"intermediate_size": 40}
    file.write_text(json.dumps(config), encoding="utf-8")
    return one_client(folder, folder / "model", GENERATE)


def adapter_as_model(folder: Path) -> Experiment:
    (folder / "lora").mkdir()
    (folder / "lora" / "adapter_config.json").write_text("{}", encoding="utf-8")
    return one_client(folder, folder / "lora", GENERATE)


def encoder_decoder(folder: Path) -> Experiment:
    config = hf.T5Config(
        vocab_size=64, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    hf.T5ForConditionalGeneration(config).save_pretrained(folder / "model")
    tokenizer("characters").save_pretrained(folder / "model")
    return one_client(folder, folder / "model", GENERATE)


def encoder_that_writes(folder: Path) -> Experiment:
    return one_client(folder, model_folder(folder / "model", "bert-cls"), GENERATE)


def no_tokenizer(folder: Path) -> Experiment:
    build("llama").save_pretrained(folder / "model")
    return one_client(folder, folder / "model", GENERATE)


def too_long(folder: Path) -> Experiment:
    rows = [*ROWS, {"text": "the market " * 40, "word": "x"}]
    return one_client(folder, model_folder(folder / "model", "gpt2"), GENERATE, rows)


def longer_than_positions(folder: Path) -> Experiment:
    return one_client(folder, model_folder(folder / "model", "gpt2"), GENERATE, client={"max_length": 100})


def token_without_embedding(folder: Path) -> Experiment:
    with torch.random.fork_rng():
        hf.LlamaForCausalLM(config_of("llama", vocab_size=40)).save_pretrained(folder / "model")
    tokenizer("characters").save_pretrained(folder / "model")
    return one_client(folder, folder / "model", GENERATE)


def no_file(folder: Path) -> Experiment:
    return one_client(folder, model_folder(folder / "model", "llama"), GENERATE, client={"test": "other.jsonl"})


def unknown_family(folder: Path) -> Experiment:
    hf.BloomForCausalLM(hf.BloomConfig(vocab_size=64, hidden_size=16, n_layer=1, n_head=2)).save_pretrained(
        folder / "model"
    )
    tokenizer("characters").save_pretrained(folder / "model")
    return one_client(folder, folder / "model", GENERATE)


BAD: dict[str, tuple[Case, str]] = {
    "half-emoji": (half_character, r"rows\.jsonl: row 9: column 'text' holds half a character"),
    "template-refuses-role": (
        refused_role,
        r"rows\.jsonl: row 5: the model's chat template refuses .*knows no system",
    ),
    "structure": (structure, r"rows\.jsonl: row 9: column 'text' holds an object"),
    "label-by-case": (label_by_case, r"row 9: label 'LOW' is not known .* ignore_case: true"),
    "compiled-checkpoint": (prefixed_weights, r"weights would be random.*'_orig_mod\.': saved from a compiled model"),
    "wrapped-checkpoint": (
        prefixed_and_tied,
        r"27 of the model's 27 weights would be random.*'module\.': saved from a wrapped",
    ),
    "lacking-weights": (lacking_weights, r"3 of the model's 21 weights are not in its files"),
    "blocks-too-many": (blocks_too_many, r"no place for 9 of the checkpoint's weights \(first: model\.layers\.1"),
    "other-shapes": (
        other_shapes,
        r"layers\.0\.mlp\.down_proj\.weight is \(32, 48\) in the files and \(32, 40\) by config\.json",
    ),
    "adapter-as-model": (adapter_as_model, r"holds an adapter and no model"),
    "encoder-decoder": (encoder_decoder, r"is an encoder-decoder"),
    "encoder-that-writes": (encoder_that_writes, r"does not generate text"),
    "no-tokenizer": (no_tokenizer, r"tokenizer"),
    "too-long": (
        too_long,
        r"1 of 9 examples are longer than 64 tokens \(the longest has \d+, first .*rows\.jsonl: row 9\)",
    ),
    "longer-than-positions": (longer_than_positions, r"max_length: 100 is more than the 64 positions"),
    "token-without-embedding": (token_without_embedding, r"row 1: token .* has embeddings for 40 tokens only"),
    "no-file": (no_file, r"no file or folder .*other\.jsonl"),
    "unknown-family": (unknown_family, r"The family 'bloom' is not known"),
}


def good_names(folder: Path, name: str) -> Experiment:
    model = model_folder(folder / "model", "llama")
    return one_client(folder, model, GENERATE, client={"name": name})


def head_of_another_task(folder: Path) -> Experiment:
    hf.BertForSequenceClassification(config_of("bert-cls", num_labels=5)).save_pretrained(folder / "model")
    tokenizer("characters").save_pretrained(folder / "model")
    return one_client(folder, folder / "model", TASKS["classify"])


def masked_model(kind: str, **changes: Any) -> Case:
    """A checkpoint saved from a masked-language model: no pooler and no head for classes."""

    def make(folder: Path) -> Experiment:
        config, _, _ = {"bert": ("bert-cls", 0, 0), "distilbert": ("distilbert-cls", 0, 0),
                        "modernbert": ("modernbert-cls", 0, 0), "deberta-v2": ("deberta-v2-cls", 0, 0)}[kind]  # fmt: skip
        names = {"bert": "Bert", "distilbert": "DistilBert", "modernbert": "ModernBert", "deberta-v2": "DebertaV2"}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = getattr(hf, f"{names[kind]}ForMaskedLM")(config_of(config))
        model.save_pretrained(folder / "model")
        tokenizer("characters").save_pretrained(folder / "model")
        return one_client(folder, folder / "model", TASKS["classify"], **changes)

    return make


def vision_wrapper(folder: Path) -> Experiment:
    text = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "sliding_window": 16}  # fmt: skip
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
              "image_size": 28, "patch_size": 14}  # fmt: skip
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = hf.Gemma3Config(text_config=text | ids, vision_config=vision, mm_tokens_per_image=4, **ids)
        hf.Gemma3ForConditionalGeneration(config).save_pretrained(folder / "model")
    tokenizer("characters").save_pretrained(folder / "model")
    return one_client(folder, folder / "model", GENERATE)


def mixture_of_experts(folder: Path) -> Experiment:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf.Qwen3MoeForCausalLM(hf.Qwen3MoeConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_experts=4,
            num_experts_per_tok=2, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
            max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )).save_pretrained(folder / "model")  # fmt: skip
    tokenizer("characters").save_pretrained(folder / "model")
    slots = {"blocks": "layers", **{s: f"self_attn.{s}_proj" for s in "qkvo"}}
    return one_client(folder, folder / "model", GENERATE, client={"slots": slots})


GOOD: dict[str, Case] = {
    "name with a dot": lambda folder: good_names(folder, "st.mary"),
    "name of a method": lambda folder: good_names(folder, "children"),
    "checkpoint-with-a-head": head_of_another_task,
    "bert-no-pooler": masked_model("bert"),
    "distilbert": masked_model("distilbert"),
    "modernbert": masked_model("modernbert"),
    "deberta-v2": masked_model("deberta-v2"),
    "gemma3-with-vision": vision_wrapper,
    "mixture-of-experts": mixture_of_experts,
}
