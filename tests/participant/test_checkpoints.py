"""Which models are accepted for what."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from model_folders import TASKS, model_folder, one_client

from h2tune import federation
from h2tune.participant.checkpoints import open_checkpoint
from h2tune.participant.errors import ModelError

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
class MineConfig(LlamaConfig):
    model_type = "mine"
class MineForCausalLM(LlamaForCausalLM):
    config_class = MineConfig
"""
SLOTS = {"blocks": "layers", "q": "self_attn.q_proj", "v": "self_attn.v_proj"}


def model_with_code(folder: Path, *classes: str) -> Path:
    """A model of a type that Transformers does not know, with its own Python for these automatic classes."""
    model_folder(folder, "llama")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    own = {"AutoConfig": "code_mine.MineConfig"} | dict.fromkeys(classes, "code_mine.MineForCausalLM")
    config |= {"model_type": "mine", "architectures": ["MineForCausalLM"], "auto_map": own}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "code_mine.py").write_text(CODE, encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def _code_is_copied_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers copies a model's code beside its cache before it runs it."""
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


def test_a_model_with_code_of_its_own_writes_text_where_it_says_so(tmp_path: Path) -> None:
    model = model_with_code(tmp_path / "model", "AutoModelForCausalLM")
    changes = {"method": "local", "client": {"trust_remote_code": True, "slots": SLOTS}}
    metrics = federation.run(one_client(tmp_path, model, TASKS["generate"], **changes), tmp_path / "run")
    assert metrics["clients"]["c"]["final"]["nats"] > 0


def test_a_model_whose_code_has_no_class_that_writes_is_refused(tmp_path: Path) -> None:
    model = model_with_code(tmp_path / "model", "AutoModel")
    with pytest.raises(ModelError, match="does not generate text"):
        open_checkpoint(str(model), trust=True)
    with pytest.raises(ModelError, match="trust_remote_code: true"):
        open_checkpoint(str(model))
