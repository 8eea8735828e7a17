"""An exported adapter is the same map as a standard LoRA, for PEFT and by the rules of servers of LoRA files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from families import CLASSIFIERS, DECODERS, NAMES, adapted, build, ids, logits
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from h2tune.adapter import TriLoraConfig, TriLoraLayer, save_lora
from h2tune.adapter.export import lora_tensors
from h2tune.core.slots import layout_of


def same(got: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize("residual", [True, False], ids=["residual", "framed"])
def test_plain_peft_loads_the_export_with_equal_logits(family: str, residual: bool, tmp_path: Path) -> None:
    model = adapted(family, residual, scaling=0.7)
    save_lora(model, tmp_path)
    lora = PeftModel.from_pretrained(build(family), tmp_path).eval()
    assert type(lora.peft_config["default"]) is LoraConfig
    adapted_maps = {n for n, m in model.named_modules() if isinstance(m, TriLoraLayer)}
    assert {n for n, m in lora.named_modules() if hasattr(m, "lora_A")} == adapted_maps
    same(logits(lora), logits(model))
    same(logits(lora.merge_and_unload(safe_merge=True)), logits(model))


def _serve(base: nn.Module, folder: Path) -> nn.Module:
    """Load a LoRA as vLLM does (vllm/lora/peft_helper.py): one rank, one alpha, names that end in a target."""
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert not config["modules_to_save"]
    assert not config["use_dora"]
    assert config["bias"] == "none"
    assert config["rank_pattern"] == {}
    assert config["alpha_pattern"] == {}
    assert config["use_rslora"] is False
    assert config["lora_alpha"] == config["r"] <= 16
    assert all(target.isidentifier() for target in config["target_modules"])
    tensors = load_file(folder / "adapter_model.safetensors")
    while tensors:
        key = next(iter(tensors))
        name = key.removeprefix("base_model.model.").rsplit(".lora_", 1)[0]
        assert name.rsplit(".", 1)[1] in config["target_modules"]
        a, b = (tensors.pop(f"base_model.model.{name}.lora_{k}.weight") for k in "AB")
        assert a.shape[0] == b.shape[1] == config["r"]
        module = base.get_submodule(name)
        module.weight.data += (b @ a).T if isinstance(module, Conv1D) else b @ a
    return base


@pytest.mark.parametrize("family", DECODERS)
def test_a_server_that_knows_one_rank_and_one_alpha_serves_it(family: str, tmp_path: Path) -> None:
    model = adapted(family, residual=False, scaling=0.7)
    save_lora(model, tmp_path)
    served = logits(_serve(build(family), tmp_path))
    assert (served - logits(build(family))).abs().max() > 0.05
    same(served, logits(model))


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_a_trained_head_leaves_with_the_adapter(family: str, tmp_path: Path) -> None:
    save_lora(adapted(family), tmp_path)
    heads = {k for k in load_file(tmp_path / "adapter_model.safetensors") if ".lora_" not in k}
    deep = {f"classifier.{part}.{kind}" for part in ("dense", "out_proj") for kind in ("weight", "bias")}
    plain = {"classifier.weight", "classifier.bias"}
    wanted = {"llama-cls": {"score.weight"}, "roberta-cls": deep, "electra-cls": deep,
              "distilbert-cls": plain | {"pre_classifier.weight", "pre_classifier.bias"}}.get(family, plain)  # fmt: skip
    assert heads == {f"base_model.model.{name}" for name in wanted}


def test_smaller_ranks_are_padded_to_the_largest(tmp_path: Path) -> None:
    model = adapted("gpt_neox", residual=False)
    layer = next(m for m in model.modules() if isinstance(m, TriLoraLayer))
    parts = {"sizes": [32, 32, 32], "interleave": 4}
    layer.update_layer("default", TriLoraConfig(r=2, residual=True), parts)
    nn.init.normal_(layer.trilora_B["default"], std=0.3)
    tensors, rank = lora_tensors(model, "default")
    assert rank == 4
    assert {t.shape[0] for k, t in tensors.items() if "lora_A" in k} == {4}
    assert {t.shape[1] for k, t in tensors.items() if "lora_B" in k} == {4}
    save_lora(model, tmp_path)
    same(logits(PeftModel.from_pretrained(build("gpt_neox"), tmp_path).eval()), logits(model))


def test_one_of_several_adapters_is_exported(tmp_path: Path) -> None:
    model = adapted("llama")
    model.add_adapter("two", TriLoraConfig(r=2, target_modules=["q_proj"]))
    save_lora(model, tmp_path, "two")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["target_modules"]) == (2, ["q_proj"])
    with pytest.raises(ValueError, match="no TriLoRA adapter 'three'"):
        lora_tensors(model, "three")


def test_some_blocks_only_are_named_as_exactly_as_needed(tmp_path: Path) -> None:
    model = adapted("llama", target_modules=["q_proj"], layers_to_transform=[1])
    save_lora(model, tmp_path)
    lora = PeftModel.from_pretrained(build("llama"), tmp_path).eval()
    same(logits(lora), logits(model))
    assert [n for n, m in lora.named_modules() if hasattr(m, "lora_A")] == [
        "base_model.model.model.layers.1.self_attn.q_proj"
    ]


def test_a_half_precision_base_exports_the_exact_float32_factors() -> None:
    model = adapted("llama", dtype=torch.bfloat16)
    tensors, _ = lora_tensors(model, "default")
    for name, layer in model.named_modules():
        if isinstance(layer, TriLoraLayer):
            a, b, t = (getattr(layer, f"trilora_{k}")["default"].detach() for k in "ABT")
            assert a.dtype == torch.float32
            assert torch.equal(tensors[f"{name}.lora_A.weight"], a)
            same(tensors[f"{name}.lora_B.weight"], b @ (t[0] + torch.eye(4)))


_STRANGER = """
import sys
import torch
from peft import AutoPeftModelForCausalLM
model = AutoPeftModelForCausalLM.from_pretrained(sys.argv[1]).eval()
wanted = torch.load(sys.argv[2], weights_only=True)
with torch.no_grad():
    error = (model(input_ids=wanted["ids"]).logits - wanted["logits"]).abs().max().item()
assert not [name for name in sys.modules if name.startswith("h2tune")]
print(error)
"""


def test_a_process_that_never_heard_of_this_package_loads_it(tmp_path: Path) -> None:
    build("gpt_neox").save_pretrained(tmp_path / "base")
    model = adapted("gpt_neox", residual=False)
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    save_lora(model, tmp_path / "lora")
    torch.save({"ids": ids(), "logits": logits(model)}, tmp_path / "wanted.pt")
    command = [sys.executable, "-c", _STRANGER, str(tmp_path / "lora"), str(tmp_path / "wanted.pt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-5


def test_the_exported_maps_are_those_of_the_layout(tmp_path: Path) -> None:
    for family in DECODERS:
        tensors, _ = lora_tensors(adapted(family), "default")
        names = {key.removeprefix("base_model.model.").rsplit(".lora_", 1)[0] for key in tensors}
        assert names == set(layout_of(build(family)).targets)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "bert-cls"])
def test_shift_and_offset_are_exported_saved_and_deleted(family: str, tmp_path: Path) -> None:
    model = adapted(family, True, shift=True, offset=True)
    before = logits(model)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, TriLoraLayer):
                module.trilora_q["default"].normal_()
                # Of rank 2: the export needs as many further directions, not a whole width.
                n, m = module.trilora_offset["default"].shape
                module.trilora_offset["default"].copy_(0.02 * torch.randn(n, 2) @ torch.randn(2, m))
                assert not module.trilora_offset["default"].requires_grad
    changed = logits(model)
    assert (changed - before).abs().max() > 1e-3
    assert lora_tensors(model, "default")[1] == model.peft_config["default"].r + 2
    save_lora(model, tmp_path / "lora")
    same(logits(PeftModel.from_pretrained(build(family), tmp_path / "lora").eval()), changed)
    model.save_pretrained(tmp_path / "own")
    again = PeftModel.from_pretrained(build(family), tmp_path / "own").eval()
    same(logits(again), changed)
    with pytest.raises(ValueError, match="constant"):
        again.merge_and_unload()
    model.add_adapter("other", model.peft_config["default"])
    model.delete_adapter("default")
    assert all("default" not in m.trilora_offset for m in model.modules() if isinstance(m, TriLoraLayer))


def test_an_offset_is_merged_and_taken_out_again() -> None:
    model = adapted("gpt2", True, offset=True)
    plain = model.get_base_model().transformer.h[0].attn.c_attn.base_layer.weight.clone()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, TriLoraLayer):
                module.trilora_offset["default"].normal_(std=0.02)
    wanted = logits(model)
    model.merge_adapter()
    same(logits(model), wanted)
    model.unmerge_adapter()
    torch.testing.assert_close(model.get_base_model().transformer.h[0].attn.c_attn.base_layer.weight, plain)
