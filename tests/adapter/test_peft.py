"""TriLoRA's life inside PEFT, Transformers and their Trainer: saved, loaded, doubled, switched off, merged."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path

import peft
import pytest
import torch
from families import CLASSIFIERS, DECODERS, NAMES, adapted, build, config_of, ids, logits, perturb, task_type
from peft import AutoPeftModel, AutoPeftModelForCausalLM, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

import h2tune.adapter
from h2tune.adapter import TRILORA, TriLoraConfig, TriLoraLayer, TriLoraModel, save_lora
from h2tune.core.slots import layout_of

EVERY = pytest.mark.parametrize("family", NAMES)


def same(got: torch.Tensor, wanted: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(got, wanted, atol=tolerance, rtol=0)


@EVERY
@pytest.mark.parametrize("residual", [True, False], ids=["residual", "framed"])
def test_saved_and_loaded(family: str, residual: bool, tmp_path: Path) -> None:
    model = adapted(family, residual, scaling=0.7)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(build(family), tmp_path).eval()
    assert torch.equal(logits(again), logits(model))
    # PEFT itself adds the names of heads to modules_to_save, once more with every load.
    there, here = (m.peft_config["default"].to_dict() | {"inference_mode": None} for m in (again, model))
    assert set(there.pop("modules_to_save") or ()) == set(here.pop("modules_to_save") or ())
    assert there == here
    assert not [name for name, p in again.named_parameters() if p.requires_grad]
    stored = load_file(tmp_path / "adapter_model.safetensors")
    heads = [key for key in stored if ".trilora_" not in key]
    assert len(stored) - len(heads) == 3 * len(layout_of(build(family)).targets)
    assert bool(heads) == (family in CLASSIFIERS)


@EVERY
def test_loaded_without_a_second_copy_in_memory(family: str, tmp_path: Path) -> None:
    model = adapted(family)
    model.save_pretrained(tmp_path)
    lean = PeftModel.from_pretrained(build(family), tmp_path, low_cpu_mem_usage=True).eval()
    assert not [name for name, p in lean.named_parameters() if p.is_meta]
    assert torch.equal(logits(lean), logits(model))


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert-cls"])
def test_auto_classes_find_base_and_adapter(family: str, tmp_path: Path) -> None:
    build(family).save_pretrained(tmp_path / "base")
    model = adapted(family)
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    model.save_pretrained(tmp_path / "adapter")
    auto = AutoPeftModelForCausalLM if family in DECODERS else peft.AutoPeftModelForSequenceClassification
    options = {} if family in DECODERS else {"num_labels": 3}
    same(logits(auto.from_pretrained(tmp_path / "adapter", **options).eval()), logits(model))


def test_auto_mapping_without_a_task(tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path / "base")
    model = perturb(get_peft_model(build("llama"), TriLoraConfig(r=2, target_modules=["q_proj"]))).eval()
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    model.save_pretrained(tmp_path / "adapter")
    same(logits(AutoPeftModel.from_pretrained(tmp_path / "adapter").eval()), logits(model))


@EVERY
def test_adapters_of_different_rank_live_side_by_side(family: str) -> None:
    model, layout = adapted(family, residual=False), layout_of(build(family))
    one = logits(model)
    config = TriLoraConfig(r=2, target_modules=layout.targets, parts=layout.parts or None, task_type=task_type(family))
    model.add_adapter("two", config)
    perturb(model, "two", seed=1)
    same(logits(model), one, 0.0)
    model.set_adapter("two")
    two = logits(model.eval())
    assert (two - one).abs().max() > 0.01
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all(name.endswith(".two") or ".modules_to_save.two." in name for name in trained)
    with model.disable_adapter():
        same(logits(model), logits(build(family)), 0.0)
    same(logits(model), two, 0.0)
    model.set_adapter("default")
    same(logits(model), one, 0.0)
    model.delete_adapter("two")
    same(logits(model), one, 0.0)
    assert not [name for name in model.state_dict() if name.endswith(".two") or ".two." in name]


def test_adapters_that_are_not_in_use_cost_nothing_and_ask_for_no_gradients() -> None:
    """Hundreds of clients may share a base: PEFT walks over modules and names whenever one of them takes its turn."""
    model = adapted("llama")
    before = len(list(model.modules()))
    for name in ("b", "c"):
        model.add_adapter(name, copy.deepcopy(model.peft_config["default"]))
    assert len(list(model.modules())) == before
    for name in ("b", "c", "default", "b"):
        model.set_adapter(name)
        asking = {n.split(".")[-1] for n, p in model.named_parameters() if p.requires_grad}
        assert asking == {name}
    with model.disable_adapter():
        assert not any(p.requires_grad for p in model.parameters())
    assert {n.split(".")[-1] for n, p in model.named_parameters() if p.requires_grad} == {"b"}


def test_a_middle_matrix_that_was_0_is_looked_at_again_when_its_data_is_replaced() -> None:
    """`torch.nn.utils.vector_to_parameters` replaces the data and leaves the version as it was."""
    model = adapted("llama")
    layer = next(module for module in model.modules() if isinstance(module, TriLoraLayer))
    t = layer.trilora_T["default"].requires_grad_(False)
    t.zero_()
    assert layer.is_plain("default")
    t.data = torch.ones_like(t)
    assert not layer.is_plain("default")


def test_two_active_adapters_add_up() -> None:
    """Both deltas on the weight; merged one by one and together."""
    model = adapted("gpt_neox")
    model.add_adapter("two", TriLoraConfig(r=2, target_modules=["query_key_value"]))
    perturb(model, "two", seed=1)
    model.base_model.set_adapter(["default", "two"])
    both = logits(model)
    model.merge_adapter(["default"])
    assert (logits(model) - both).abs().max() > 0.01
    model.unmerge_adapter()
    model.merge_adapter()
    same(logits(model), both)


def test_loading_a_second_adapter_from_disk(tmp_path: Path) -> None:
    adapted("phi3", r=2, seed=3).save_pretrained(tmp_path)
    model = adapted("phi3")
    model.load_adapter(tmp_path, "second")
    model.set_adapter("second")
    same(logits(model), logits(adapted("phi3", r=2, seed=3)), 0.0)


@EVERY
def test_unload_returns_the_base(family: str) -> None:
    plain = adapted(family).unload()
    assert type(plain) is type(build(family))
    if family in DECODERS:
        assert torch.equal(logits(plain), logits(build(family)))
    again = get_peft_model(plain, TriLoraConfig(r=2, target_modules=layout_of(plain).targets))
    assert torch.equal(logits(again.eval()), logits(plain))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_safe_merge_refuses_nan_and_changes_nothing(family: str) -> None:
    model = adapted(family)
    layer = next(m for m in model.modules() if isinstance(m, TriLoraLayer))
    layer.trilora_B["default"].data[0, 0] = float("nan")
    before = layer.get_base_layer().weight.clone()
    with pytest.raises(ValueError, match="default seems to be broken"):
        layer.merge(safe_merge=True)
    assert torch.equal(layer.get_base_layer().weight, before)
    assert not layer.merged
    model.merge_adapter()
    assert layer.get_base_layer().weight.isnan().any()


def test_scale_layer_scales_the_delta() -> None:
    layer = next(m for m in adapted("llama", scaling=0.7).modules() if isinstance(m, TriLoraLayer))
    before = layer.get_delta_weight("default")
    layer.scale_layer(3.0)
    same(layer.get_delta_weight("default"), 3 * before, 1e-6)
    layer.unscale_layer(3.0)
    same(layer.get_delta_weight("default"), before, 1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_transformers_loads_and_adds_the_adapter_itself(family: str, tmp_path: Path) -> None:
    model = adapted(family, residual=False)
    model.save_pretrained(tmp_path)
    plain = build(family)
    plain.load_adapter(str(tmp_path))
    same(logits(plain.eval()), logits(model))
    plain.disable_adapters()
    same(logits(plain), logits(build(family)), 0.0)
    fresh = build(family)
    fresh.add_adapter(TriLoraConfig(r=2, target_modules=layout_of(fresh).targets))
    same(logits(fresh.eval()), logits(build(family)), 0.0)


def test_layers_to_transform_and_default_targets() -> None:
    some = adapted("llama", target_modules=["q_proj", "down_proj"], layers_to_transform=[1])
    found = {name for name, m in some.named_modules() if isinstance(m, TriLoraLayer)}
    assert found == {f"base_model.model.model.layers.1.{m}" for m in ("self_attn.q_proj", "mlp.down_proj")}
    default = get_peft_model(build("llama"), TriLoraConfig(task_type="CAUSAL_LM"))
    found = {n.rsplit(".", 1)[1] for n, m in default.named_modules() if isinstance(m, TriLoraLayer)}
    assert found == {"q_proj", "v_proj"}


def test_status_and_names_that_peft_and_transformers_ask_for() -> None:
    model = adapted("llama")
    assert model.get_model_status().peft_types == {"default": "TRILORA"}
    status = model.get_layer_status()
    assert {s.module_type for s in status} == {"trilora.TriLoraLinear"}
    assert all(
        s.enabled and s.requires_grad == {"default": True} and s.available_adapters == ["default"] for s in status
    )
    assert (TRILORA.value, TRILORA.name, str(TRILORA), f"{TRILORA}") == (
        "TRILORA",
        "TRILORA",
        "PeftType.TRILORA",
        "TRILORA",
    )
    assert repr(next(m for m in model.modules() if isinstance(m, TriLoraLayer))).startswith("trilora.TriLoraLinear(")


def test_registering_twice_changes_nothing() -> None:
    def tables() -> list[dict]:
        return [
            dict(table)
            for table in (
                peft.PEFT_TYPE_TO_CONFIG_MAPPING, peft.PEFT_TYPE_TO_TUNER_MAPPING,
                peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING,
            )
        ]  # fmt: skip

    before = tables()
    h2tune.adapter.register()
    importlib.reload(h2tune.adapter)
    assert tables() == before
    assert [table["TRILORA"] for table in before] == [TriLoraConfig, TriLoraModel, "trilora_"]


@pytest.mark.parametrize("family", ["llama", "bert-cls"])
def test_the_hugging_face_trainer_trains_it(family: str, tmp_path: Path) -> None:
    model = adapted(family, perturbed=False)
    base, labels = logits(model), torch.tensor([0, 1, 2])
    rows = [{"input_ids": x, "labels": x if family in DECODERS else y} for x, y in zip(ids(), labels, strict=True)]
    arguments = TrainingArguments(
        tmp_path, max_steps=2, learning_rate=0.05, per_device_train_batch_size=3, report_to=[], use_cpu=True,
        disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    Trainer(model, arguments, train_dataset=rows).train()
    trained = logits(model.eval())
    assert (trained - base).abs().max() > 1e-3
    assert all(torch.equal(frozen[n], p) for n, p in model.named_parameters() if n in frozen)
    again = PeftModel.from_pretrained(build(family), tmp_path / "checkpoint-2").eval()
    same(logits(again), trained)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_bases(bits: int, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: no quantised bases here")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaForCausalLM

    LlamaForCausalLM(config_of("llama", hidden_size=64, intermediate_size=128)).save_pretrained(tmp_path / "base")
    config = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8, bnb_4bit_compute_dtype=torch.float32)

    def load() -> LlamaForCausalLM:
        return AutoModelForCausalLM.from_pretrained(
            tmp_path / "base", quantization_config=config, dtype=torch.float32
        ).eval()

    base = load()
    before = logits(base)
    model = get_peft_model(base, TriLoraConfig(r=4, target_modules=layout_of(base).targets)).eval()
    assert torch.equal(logits(model), before)
    forward = logits(perturb(model))
    effect = (forward - before).abs().max()
    assert effect > 0.05
    model(input_ids=ids()).logits.square().mean().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "trilora_" in n)
    save_lora(model, tmp_path / "lora")
    same(logits(PeftModel.from_pretrained(load(), tmp_path / "lora").eval()), forward)
    # A merge rounds the sum to the base's few bits again, and says by how much.
    layer = next(m for m in model.modules() if isinstance(m, TriLoraLayer))
    exact = layer.get_base_weight().float() + layer.get_delta_weight("default")
    with pytest.warns(UserWarning, match=r"\d % of the sum was lost to rounding"):
        layer.merge()
    lost = (layer.get_base_weight().float() - exact).norm() / exact.norm()
    assert 0.001 < lost < {4: 0.15, 8: 0.02}[bits]
