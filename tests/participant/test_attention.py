"""Plain products give what the fused kernel gives, for every family; where they are not meant they are not used."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from families import NAMES, build
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from h2tune.participant import attention
from h2tune.participant.base_models import ModelPool

ANY = pytest.mark.parametrize("family", NAMES)


def logits_and_gradient(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """On texts of several lengths, padded on the left (encoders: right); the gradient is that of the embeddings."""
    torch.manual_seed(0)
    classifies = type(model).__name__.endswith("Classification")
    ids, mask = torch.randint(3, 60, (4, 12)), torch.ones(4, 12, dtype=torch.long)
    for row, cut in enumerate((0, 3, 7, 10)):
        mask[row, slice(12 - cut, 12) if classifies else slice(0, cut)] = 0
    words = model.get_input_embeddings().weight
    words.requires_grad_(True)
    logits = model(input_ids=ids.masked_fill(mask == 0, model.config.pad_token_id or 0), attention_mask=mask).logits
    seen = logits if classifies else logits[:, -1]
    (gradient,) = torch.autograd.grad(seen.float().square().sum(), words)
    return seen.detach().float(), gradient.float()


def ways(family: str) -> dict[str, PreTrainedModel]:
    """The model in float32, and in bfloat16 with the fused kernel and with plain products."""
    model = build(family).eval()
    if not model._supports_sdpa:
        pytest.skip("Transformers has no fused attention for this family")
    model.set_attn_implementation("sdpa")
    half = {name: copy.deepcopy(model).to(torch.bfloat16) for name in ("fused", "plain")}
    attention.use_plain_where_short(half["plain"])
    assert half["plain"].config._attn_implementation == attention.NAME
    return {"exact": model} | half


@ANY
def test_it_is_as_close_to_float32_as_the_fused_kernel(family: str) -> None:
    found = {name: logits_and_gradient(model) for name, model in ways(family).items()}
    for exact, fused, plain in zip(*(found[name] for name in ("exact", "fused", "plain")), strict=True):
        error, usual = (plain - exact).norm() / exact.norm(), (fused - exact).norm() / exact.norm()
        assert error < 1.5 * usual + 1e-3, (error, usual)


@ANY
def test_long_texts_and_float32_change_no_bit(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    models = ways(family)
    models["exact, set"] = copy.deepcopy(models["exact"])
    attention.use_plain_where_short(models["exact, set"])
    monkeypatch.setattr(attention, "LONGEST", 11)
    for a, b in (("fused", "plain"), ("exact", "exact, set")):
        for one, other in zip(logits_and_gradient(models[a]), logits_and_gradient(models[b]), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("common", [0.0, 50.0, 500.0])
def test_large_scores_lose_no_digits(common: float) -> None:
    """A part that all keys have in common moves no weight, however large it is (biases of Qwen's keys)."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, heads, 24, 16) for heads in (6, 2, 2))
    query[..., 0], key[..., 0] = 8.0, common
    half = [x.bfloat16().requires_grad_(True) for x in (query, key, value)]
    whole = [x.detach().double().requires_grad_(True) for x in half]
    module = torch.nn.Module()
    module.num_key_value_groups = 3  # type: ignore[assignment]
    found, _ = attention.attention(module, *half, None)
    q, k, v = whole[0], *(x.repeat_interleave(3, 1) for x in whole[1:])
    hidden = torch.ones(24, 24, dtype=torch.bool).triu(1)
    exact = ((q @ k.mT / 4).masked_fill(hidden, -torch.inf).softmax(-1) @ v).transpose(1, 2)
    assert (found - exact).norm() < 0.005 * exact.norm()
    weights = torch.randn(exact.shape)
    found.backward(weights.bfloat16())
    exact.backward(weights.double())
    for mine, true in zip(half, whole, strict=True):
        assert (mine.grad - true.grad)[..., 1:].norm() < 0.02 * true.grad[..., 1:].norm()  # type: ignore[operator, union-attr, index]


def test_a_query_that_may_see_nothing_gives_zeros() -> None:
    query, key, value = (torch.randn(1, 2, 5, 8, dtype=torch.bfloat16) for _ in range(3))
    mask = torch.ones(1, 1, 5, 5, dtype=torch.bool)
    mask[..., 1, :] = False
    for given in (mask, torch.zeros(mask.shape).masked_fill(~mask, -torch.inf).bfloat16()):
        found, _ = attention.attention(torch.nn.Module(), query, key, value, given)
        assert bool((found[:, 1] == 0).all()) and bool(found[:, 0].isfinite().all())
        torch.testing.assert_close(
            found[:, [0, 2, 3, 4]],
            attention.attention(torch.nn.Module(), query, key, value, torch.ones_like(mask))[0][:, [0, 2, 3, 4]],
        )


def test_a_family_that_is_not_known_keeps_its_own() -> None:
    model = build("llama")
    model.set_attn_implementation("sdpa")
    model.config.model_type = "glm_moe_dsa"
    attention.use_plain_where_short(model)
    assert model.config._attn_implementation == "sdpa"


def test_a_base_in_bfloat16_uses_it_and_its_folder_does_not_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("h2tune.participant.base_models._cpu_has_bf16", lambda: True)
    half, whole = (ModelPool("cpu", precision=p).get("zoo:llama").model for p in ("bf16", "fp32"))
    assert half.config._attn_implementation == attention.NAME and whole.config._attn_implementation == "sdpa"
    half.save_pretrained(tmp_path)
    assert attention.NAME not in (tmp_path / "config.json").read_text()
    assert AutoConfig.from_pretrained(tmp_path)._attn_implementation != attention.NAME
