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


def test_a_base_in_bfloat16_uses_it_and_its_folder_does_not_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("h2tune.participant.base_models._cpu_has_bf16", lambda: True)
    half, whole = (ModelPool("cpu", precision=p).get("zoo:llama").model for p in ("bf16", "fp32"))
    assert half.config._attn_implementation == attention.NAME and whole.config._attn_implementation == "sdpa"
    half.save_pretrained(tmp_path)
    assert attention.NAME not in (tmp_path / "config.json").read_text()
    assert AutoConfig.from_pretrained(tmp_path)._attn_implementation != attention.NAME
