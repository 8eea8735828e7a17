"""One formula, W + s B (T + rho I) A, in every family: forward, merge and an independent statement of it agree."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from families import CLASSIFIERS, FUSED, LABELS, NAMES, adapted, build, ids, logits
from peft import PeftModel
from torch import nn
from transformers.pytorch_utils import Conv1D

from h2tune.adapter import TriLoraConfig, TriLoraLayer
from h2tune.adapter.layer import Rows
from h2tune.core.slots import layout_of

EVERY = pytest.mark.parametrize("family", NAMES)
RHO = pytest.mark.parametrize("residual", [True, False], ids=["residual", "framed"])
TOLERANCE = 1e-5


def layers(model: nn.Module) -> Iterator[tuple[str, TriLoraLayer]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, TriLoraLayer))


def rows_of(name: str) -> list[list[int]]:
    """Rows of q, k, v (or gate, up) of a tiny family's fused maps, by hand: 4 heads of 8; Phi-3 has 2 for k, v."""
    if name.endswith("qkv_proj"):
        return [list(range(32)), list(range(32, 48)), list(range(48, 64))]
    if name.endswith(("gate_up_proj", "mlp.Wi")):
        return [list(range(48)), list(range(48, 96))]
    if name.endswith(("c_attn", "Wqkv")):
        return [list(range(32)), list(range(32, 64)), list(range(64, 96))]
    if name.endswith(("query_key_value", "in_proj")):
        parts: list[list[int]] = [[], [], []]
        for head in range(4):
            for part in range(3):
                for row in range(8):
                    parts[part].append(head * 24 + part * 8 + row)
        return parts
    return []


def delta(name: str, layer: TriLoraLayer, scaling: float, rho: float) -> np.ndarray:
    """s B (T + rho I) A row by row in NumPy, d_out x d_in."""
    a, b, t = (getattr(layer, f"trilora_{k}")["default"].detach().double().numpy() for k in "ABT")
    out = np.zeros((b.shape[0], a.shape[1]))
    for part, rows in enumerate(rows_of(name) or [list(range(b.shape[0]))]):
        for row in rows:
            out[row] = scaling * (b[row] @ (t[part] + rho * np.eye(t.shape[-1]))) @ a
    return out


def added_by_hand(family: str, model: PeftModel, scaling: float, rho: float) -> torch.Tensor:
    """Logits of a plain model to whose weights the deltas are added."""
    plain = build(family)
    for name, layer in layers(model):
        module = plain.get_submodule(name.removeprefix("base_model.model."))
        change = delta(name, layer, scaling, rho)
        module.weight.data += torch.from_numpy(change.T if isinstance(module, Conv1D) else change).float()
    for name, module in model.named_modules():
        if isinstance(getattr(module, "modules_to_save", None), nn.ModuleDict):
            head = plain.get_submodule(name.removeprefix("base_model.model."))
            head.load_state_dict(module.modules_to_save["default"].state_dict())
    return logits(plain)


@EVERY
@RHO
def test_a_fresh_adapter_changes_no_bit(family: str, residual: bool) -> None:
    model = adapted(family, residual, perturbed=False)
    assert torch.equal(logits(model), logits(build(family)))
    found = dict(layers(model))
    assert len(found) == len(layout_of(build(family)).targets)
    for layer in found.values():
        zero, other = (layer.trilora_B, layer.trilora_T) if residual else (layer.trilora_T, layer.trilora_B)
        assert not zero["default"].any()
        assert residual or other["default"].any()


@EVERY
@RHO
def test_forward_merge_and_formula_agree(family: str, residual: bool) -> None:
    model = adapted(family, residual, scaling=0.7)
    before = {name: layer.get_base_layer().weight.clone() for name, layer in layers(model)}
    forward = logits(model)
    assert (forward - logits(build(family))).abs().max() > 0.05
    torch.testing.assert_close(forward, added_by_hand(family, model, 0.7, float(residual)), atol=TOLERANCE, rtol=0)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), forward, atol=TOLERANCE, rtol=0)
    model.unmerge_adapter()
    torch.testing.assert_close(logits(model), forward, atol=TOLERANCE, rtol=0)
    for name, layer in layers(model):
        torch.testing.assert_close(layer.get_base_layer().weight, before[name], atol=1e-6, rtol=0)


def test_a_merge_without_the_identity_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The defect of H2Tune's release: forward is B (T + I) A, the merged weight B T A."""

    def defect(self: TriLoraLayer, adapter_name: str) -> torch.Tensor:
        rho, self.trilora_rho = self.trilora_rho, dict.fromkeys(self.trilora_rho, 0.0)
        delta = sound(self, adapter_name)
        self.trilora_rho = rho
        return delta

    sound = TriLoraLayer.get_delta_weight
    monkeypatch.setattr(TriLoraLayer, "get_delta_weight", defect)
    with pytest.raises(AssertionError):
        test_forward_merge_and_formula_agree("llama-tied", True)


@EVERY
def test_merge_and_unload_leaves_a_plain_model_and_its_embeddings(family: str) -> None:
    model = adapted(family, dtype=torch.float64)  # float32 adds up in two orders here, 1.2e-5 apart
    forward, embeddings = logits(model), model.get_input_embeddings().weight.clone()
    plain = model.merge_and_unload(safe_merge=True)
    assert type(plain) is type(build(family))
    assert not list(layers(plain))
    torch.testing.assert_close(logits(plain), forward, atol=TOLERANCE, rtol=0)
    assert torch.equal(plain.get_input_embeddings().weight, embeddings)
    if plain.config.tie_word_embeddings and family not in CLASSIFIERS:
        assert plain.get_output_embeddings().weight is plain.get_input_embeddings().weight


@EVERY
def test_only_the_adapter_and_a_head_train(family: str) -> None:
    model = adapted(family, residual=False)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    heads = {name for name in trained if ".modules_to_save.default." in name}
    assert {name for name in trained - heads if "trilora_" not in name} == set()
    assert len(trained - heads) == 3 * len(layout_of(build(family)).targets)
    assert bool(heads) == (family in CLASSIFIERS)
    model(input_ids=ids()).logits.square().mean().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trained


@pytest.mark.parametrize("family", FUSED)
def test_every_part_of_a_fused_map_has_its_own_middle(family: str) -> None:
    """Moving T of one part moves the rows of that part and no other."""
    model = adapted(family, residual=False)
    fused = [(name, layer) for name, layer in layers(model) if rows_of(name)]
    assert fused
    for name, layer in fused:
        rows = rows_of(name)
        assert layer.trilora_T["default"].shape == (len(rows), 4, 4)
        for part in range(len(rows)):
            before = layer.get_delta_weight("default")
            layer.trilora_T["default"].data[part] += 1.0
            moved = (layer.get_delta_weight("default") - before).abs().amax(0 if family == "gpt2" else 1) > 1e-6
            assert moved.nonzero().flatten().tolist() == rows[part]


@pytest.mark.parametrize("interleave", [0, 4])
def test_rows_split_and_join_are_inverse(interleave: int) -> None:
    rows, b = Rows([8, 8, 4], interleave), torch.arange(40.0).view(20, 2)
    assert [len(part) for part in rows.split(b)] == [8, 8, 4]
    assert torch.equal(rows.join(rows.split(b)), b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "bert-cls"])
def test_half_precision_bases(family: str, dtype: torch.dtype) -> None:
    """Factors stay float32. Forward and merged differ by the base's rounding: a tenth of the effect."""
    model = adapted(family, dtype=dtype)
    assert all(p.dtype == torch.float32 for n, p in model.named_parameters() if "trilora_" in n)
    with model.disable_adapter():
        base = logits(model)
    forward = logits(model)
    assert model(input_ids=ids()).logits.dtype == dtype
    effect = (forward - base).abs().max()
    model.merge_adapter()
    assert next(layers(model))[1].get_base_layer().weight.dtype == dtype
    assert (logits(model) - forward).abs().max() < 0.1 * effect


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert-cls"])
def test_checkpointing_gives_the_same_gradients(family: str) -> None:
    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        model = adapted(family, residual=False).train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        torch.manual_seed(0)
        model(input_ids=ids()).logits.square().mean().backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)
    assert plain.keys() == checkpointed.keys()
    assert all(torch.allclose(plain[n], checkpointed[n], atol=1e-7) for n in plain)
    assert any(g.abs().max() > 1e-3 for g in plain.values())


def test_dropout_acts_on_the_input_of_a_in_training_only() -> None:
    model = adapted("llama", dropout=0.5)
    assert torch.equal(logits(model), logits(model))
    torch.testing.assert_close(logits(model), logits(adapted("llama")), atol=1e-6, rtol=0)
    model.train()
    assert not torch.equal(logits(model), logits(model))


def test_all_linear_takes_a_fused_map_as_one() -> None:
    model = adapted("gpt_neox", target_modules="all-linear", parts=None)
    assert all(layer.trilora_T["default"].shape == (1, 4, 4) for _, layer in layers(model))
    forward = logits(model)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), forward, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"r": 0}, "at least 1"),
        ({"bias": "all"}, "bias"),
        ({"target_parameters": ["w"]}, "target_parameters"),
        ({"layers_pattern": "h"}, "layers_to_transform"),
        ({"layers_to_transform": [0], "target_modules": "all-linear"}, "list of target_modules"),
    ],
)
def test_settings_that_mean_nothing_are_refused(options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TriLoraConfig(**options)


def test_parts_that_do_not_fit_and_maps_that_are_not_linear_are_refused() -> None:
    with pytest.raises(ValueError, match="do not add up to the 96 output rows"):
        adapted("gpt2", parts={"attn.c_attn": {"sizes": [32, 32]}})
    with pytest.raises(TypeError, match="Embedding"):
        adapted("gpt2", target_modules=["wte"], parts=None)


def test_heads_are_private_copies() -> None:
    model = adapted("bert-cls")
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(build("bert-cls")))
    assert logits(model).shape == (3, LABELS)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_framed_coordinates_have_no_residual_and_the_others_do(family: str) -> None:
    """delta W = s (B_1 T A_1 + B_2 (T_2 + I) A_2): with T = 0 only the private coordinates act, and a LoRA they are."""
    model = adapted(family, True, framed=3, scaling=0.7)
    for name, layer in layers(model):
        a, b, t = (getattr(layer, f"trilora_{k}")["default"].detach().double().numpy() for k in "ABT")
        want = np.zeros((b.shape[0], a.shape[1]))
        for part, rows in enumerate(rows_of(name) or [list(range(b.shape[0]))]):
            for row in rows:
                want[row] = 0.7 * (b[row] @ t[part] @ a + b[row, 3:] @ a[3:])
        got = layer.get_delta_weight("default").detach().numpy()
        np.testing.assert_allclose(got.T if isinstance(layer.get_base_layer(), Conv1D) else got, want, atol=1e-5)
    fresh = adapted(family, True, framed=3, perturbed=False)
    torch.testing.assert_close(logits(fresh), logits(build(family)), atol=0, rtol=0)
    assert all(layer.trilora_B["default"][:, :3].abs().min() > 0 for _, layer in layers(fresh))
