"""What leaves a run for other programs, and what cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from federations import small
from model_folders import ROWS, TASKS, model_folder, one_client
from safetensors.torch import load_file

from h2tune.exporting import export
from h2tune.federation import run
from h2tune.participant import base_models
from h2tune.utils.files import StoreError


def test_an_adapter_that_no_weight_can_hold_is_not_merged(tmp_path: Path) -> None:
    run(small(2, same_model=True, rounds=1, method="colora"), tmp_path / "run")
    with pytest.raises(StoreError, match=r"The adapter of c0 cannot be merged: .* --to peft"):
        export(tmp_path / "run", "c0", tmp_path / "merged", "merged")
    assert not (tmp_path / "merged").exists()
    said = str(export(tmp_path / "run", "c0", tmp_path / "lora"))
    assert "load the base from where it lies there" in said and "merged" not in said


@pytest.mark.parametrize("to", ["merged", "peft"])
def test_an_export_is_the_same_whatever_this_processor_holds_bases_in(
    to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `precision: bf16` a processor that computes in bfloat16 rounds its bases to it."""
    training = {"precision": "bf16", "steps": 2, "batch_size": 4, "warmup": 0}
    run(small(1, rounds=1, method="local", training=training), tmp_path / "run")
    found = []
    for native in (False, True):
        monkeypatch.setattr(base_models, "_cpu_has_bf16", lambda native=native: native)
        made = export(tmp_path / "run", "c0", tmp_path / str(native), to, "float32").folder
        found.append(load_file(next(made.glob("*model.safetensors"))))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(one, found[1][name]) for name, one in found[0].items())


@pytest.mark.parametrize("to", ["peft", "merged"])
def test_the_code_on_a_card_classifies_a_batch(to: str, tmp_path: Path) -> None:
    """Also where the base, a decoder, has no pad token: the run takes the end token."""
    model = model_folder(tmp_path / "model", "llama")
    for name in ("config.json", "tokenizer_config.json"):
        known = json.loads((model / name).read_text(encoding="utf-8"))
        lacks = {key: None for key in ("pad_token", "pad_token_id") if key in known}
        (model / name).write_text(json.dumps(known | lacks), encoding="utf-8")
    run(one_client(tmp_path, model, TASKS["classify"], method="local"), tmp_path / "run")
    export(tmp_path / "run", "c", tmp_path / "out", to)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    given: dict[str, Any] = {}
    exec(card.split("```python")[1].split("```")[0].replace("THIS_FOLDER", str(tmp_path / "out")), given)
    batch = given["tokenizer"]([row["text"] for row in ROWS], return_tensors="pt", padding=True)
    assert given["model"](**batch).logits.shape == (len(ROWS), 3)


@pytest.mark.parametrize("kept", [True, False])
def test_a_card_states_the_prompt_of_training(kept: bool, tmp_path: Path) -> None:
    """Also of a run that an older version has ended, which has not kept its columns."""
    rows = [{"prompt": row["text"], "question": "air", "answer": row["word"]} for row in ROWS]
    task = {"kind": "generate", "join": " ", "max_new_tokens": 3}
    run(one_client(tmp_path, model_folder(tmp_path / "model", "gpt2"), task, rows, method="local"), tmp_path / "run")
    if not kept:
        (tmp_path / "run" / "clients" / "c" / "adapter" / "read_by.json").unlink()
    export(tmp_path / "run", "c", tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "task.json").read_text(encoding="utf-8"))
    assert (facts["prompt"], facts["answer"]) == ("{prompt}", " {answer}")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "exactly this text, spaces included:\n\n```text\n{prompt}\n```\n\nThe answer follows at once" in card


@pytest.mark.parametrize("template", [True, False])
def test_a_card_names_a_chat_template_only_where_there_is_one(template: bool, tmp_path: Path) -> None:
    turns = [[{"role": "user", "content": r["text"]}, {"role": "assistant", "content": r["word"]}] for r in ROWS]
    model = model_folder(tmp_path / "model", "gpt2")
    if template:
        text = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
        (model / "chat_template.jinja").write_text(text, encoding="utf-8")
    task = {"kind": "generate", "max_new_tokens": 3}
    run(one_client(tmp_path, model, task, [{"messages": t} for t in turns], method="local"), tmp_path / "run")
    export(tmp_path / "run", "c", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert ("through the tokenizer's chat template." in card) is template
    assert ("```text\n{role}: {content}\nassistant:\n```" in card) is not template


def test_a_card_says_what_an_answer_is_chosen_from(tmp_path: Path) -> None:
    run(
        one_client(tmp_path, model_folder(tmp_path / "model", "gpt2"), TASKS["choice"], method="local"),
        tmp_path / "run",
    )
    export(tmp_path / "run", "c", tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "task.json").read_text(encoding="utf-8"))
    assert (facts["answer"], facts["options"]) == (" {option}", ["low", "high", "odd"])
    assert "{option} is one of: low, high, odd." in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
