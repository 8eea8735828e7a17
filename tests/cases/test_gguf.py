"""GGUF files as models: unpacked once, and the same weights ever after."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from families import build, config_of
from model_folders import TASKS, one_client

from h2tune import federation
from h2tune.participant import gguf as gguf_models
from h2tune.participant.base_models import ModelPool
from h2tune.participant.errors import ModelError
from h2tune.plan import make_plan

_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
# Bytes of plain text; the last three are the sign that stands for a space.
_BYTES = (b"abcdefghijklmnopqrstuvwxyz0123456789.,:;!?'-ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:58]) + "\u2581".encode()
_TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in _BYTES)]


def _permuted(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of q and k as llama.cpp keeps them: the halves of a head alternate."""
    return weight.view(heads, 2, weight.shape[0] // heads // 2, -1).transpose(1, 2).reshape(weight.shape)


def write_gguf(path: Path, kind: str = "F32") -> Path:
    """The tiny Llama of `families` in one file, its matrices in one of GGUF's formats."""
    gguf = pytest.importorskip("gguf", reason="the package gguf is an extra: pip install h2tune[gguf]")
    config, model = config_of("llama"), build("llama")
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(_TOKENS)
    writer.add_token_scores([0.0] * len(_TOKENS))
    writer.add_token_types([2, 3, 3, *([6] * (len(_TOKENS) - 3))])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    quantised = gguf.GGMLQuantizationType[kind]
    for name, tensor in model.state_dict().items():
        place = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
                 "lm_head.weight": "output.weight"}.get(name)  # fmt: skip
        if place is None:
            _, _, block, rest = name.split(".", 3)
            place = f"blk.{block}.{_NAMES[rest.removesuffix('.weight')]}.weight"
            if "q_proj" in name or "k_proj" in name:
                tensor = _permuted(tensor, 4 if "q_proj" in name else 2)
        data = tensor.float().numpy()
        if tensor.ndim == 2 and kind != "F32" and tensor.shape[1] % 32 == 0:
            writer.add_tensor(place, gguf.quants.quantize(data, quantised), raw_dtype=quantised)
        else:
            writer.add_tensor(place, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("H2TUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_file_runs_and_is_unpacked_once(tmp_path: Path, cache: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    experiment = one_client(tmp_path, path, TASKS["generate"], method="local")
    with pytest.warns(UserWarning, match=r"tiny\.gguf holds its weights as F32 \(21\); unpacked to float16"):
        assert make_plan(experiment).problems == []
    (folder,) = (p for p in (cache / "gguf").iterdir() if p.is_dir())
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        base = ModelPool("cpu").get(str(path))
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    for name, tensor in build("llama").state_dict().items():
        torch.testing.assert_close(base.model.state_dict()[name], tensor.half().float())
    metrics = federation.run(experiment, tmp_path / "run")
    assert metrics["clients"]["c"]["status"] == "ok"


def test_a_quantised_file_says_what_it_has_lost(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "folder").mkdir()
    write_gguf(tmp_path / "folder" / "tiny.gguf", "Q8_0")
    with pytest.warns(
        UserWarning, match=r"holds its weights as .*Q8_0.* What quantisation has rounded away stays away"
    ):
        first = ModelPool("cpu").get(str(tmp_path / "folder"))
    assert ModelPool("cpu").get(str(tmp_path / "folder" / "tiny.gguf")).fingerprint == first.fingerprint


def test_the_missing_package_is_named(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(gguf_models, "find_spec", lambda name: None)
    with pytest.raises(
        ModelError, match=r"a\.gguf is a GGUF file; reading it needs the package gguf \(pip install h2tune\[gguf\]\)"
    ):
        ModelPool("cpu").get(str(tmp_path / "a.gguf"))


def test_an_empty_file_is_one_that_was_not_fetched(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "m.gguf").touch()
    with pytest.raises(ModelError, match="is empty, as after a download that failed; get it again"):
        ModelPool("meta").get(str(tmp_path / "m.gguf"))


def test_of_several_files_one_must_be_named(tmp_path: Path, cache: Path) -> None:
    for name in ("a-Q4.gguf", "b-Q8.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"holds several GGUF files; name one: a-Q4\.gguf, b-Q8\.gguf"):
        ModelPool("cpu").get(str(tmp_path))
