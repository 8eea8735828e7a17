"""Kinds A and D: one model in the run, in predict and in the export; its own settings are followed."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cases.bad_cases import GOOD, masked_model
from families import CLASSIFIERS, adapted, build, config_of
from model_folders import LABELS, ROWS, TASKS, model_folder, one_client, write_rows
from peft import PeftModel
from tiny_tokenizers import tokenizer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GenerationConfig, LlamaForCausalLM

from h2tune import federation
from h2tune.distill.generation import write_paths
from h2tune.exporting import export
from h2tune.inference import predict
from h2tune.participant.base_models import ModelPool, adapter_name
from h2tune.participant.batches import collate
from h2tune.participant.scoring import answers, generate, score
from h2tune.store import StoreError
from h2tune.tasks import build_task
from h2tune.tasks.chat_template import stop_tokens, turn_end
from h2tune.tasks.prompts import Encoded, encode
from h2tune.trained import load_trained

TURNS = (
    "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert", "deberta-v2"])
def test_a_head_that_the_checkpoint_lacks_is_trained_saved_and_exported(family: str, tmp_path: Path) -> None:
    training = {"steps": 3, "batch_size": 8, "head_steps": 3, "learning_rate": 0.05}
    experiment = masked_model(family, training=training)(tmp_path)
    run = tmp_path / "run"
    final = federation.run(experiment, run)["clients"]["c"]["final"]
    first, again = (list(predict(run, "c", tmp_path / "rows.jsonl")) for _ in range(2))
    assert first == again
    assert sum(a["prediction"] == a["label"] for a in first) / len(first) == final["metric"]
    export(run, "c", tmp_path / "lora")
    torch.manual_seed(7)  # whatever is new in the plain base is not used
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", num_labels=3)
    plain = PeftModel.from_pretrained(base, tmp_path / "lora").eval()
    trained = load_trained(run, "c")
    batch = collate(encode([trained.task.ask(row) for row in ROWS], trained.base.tokenizer, max_length=64), 0)
    batch.pop("labels")
    with torch.no_grad():
        torch.testing.assert_close(plain(**batch).logits, trained.model(**batch).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_padding_does_not_reach_an_encoder(family: str) -> None:
    model = build(family)
    rows = [Encoded([5, 6, 7, 8, 9, 10, 11], [], 0), Encoded([12, 13], [], 1), Encoded([14, 15, 16, 17], [], 2)]
    batch = collate(rows, 0)
    with torch.no_grad():
        together = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        for row, logits in zip(rows, together, strict=True):
            alone = model(input_ids=torch.tensor([row.input_ids])).logits[0]
            torch.testing.assert_close(logits, alone, atol=1e-5, rtol=0)


def chat_tokenizer() -> Any:
    import copy

    words = copy.deepcopy(tokenizer("characters"))
    words.add_special_tokens({"additional_special_tokens": ["<end>"]})
    words.chat_template = TURNS
    return words


def test_a_chats_answer_is_learnt_to_the_end_of_its_turn() -> None:
    words = chat_tokenizer()
    row = {"messages": [{"role": "user", "content": "say"}, {"role": "assistant", "content": "tea"}]}
    example = build_task({"kind": "generate"}).read(row)
    (encoded,) = encode([example], words, max_length=64)
    learnt = [token for token in encoded.labels if token != -100]
    assert turn_end(words) == "<end>" and words.decode(learnt).replace(" ", "") == "tea<end>"
    assert learnt[-1] == words.convert_tokens_to_ids("<end>") and words.eos_token_id not in learnt
    ends = stop_tokens(words, GenerationConfig(eos_token_id=[9, 11]))
    assert ends == [9, 11, words.eos_token_id, words.convert_tokens_to_ids("<end>")]


def test_an_answer_ends_at_the_models_own_end_tokens() -> None:
    model, words = build("llama"), tokenizer("characters")
    prompt = words("the old")["input_ids"][:-1]
    free = model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
    third = int(free[0, len(prompt) + 2])
    first = free[0, len(prompt) :].tolist().index(third)
    model.generation_config = GenerationConfig(eos_token_id=[third], pad_token_id=0)
    (text,) = generate(model, words, [prompt], 8)
    whole = words.decode(free[0, : len(prompt) + first], skip_special_tokens=True)
    assert words.decode(prompt, skip_special_tokens=True) + text == whole


@pytest.mark.parametrize(
    "own",
    [
        {"repetition_penalty": 1.8},
        {"no_repeat_ngram_size": 1},
        {"num_beams": 3},
        {"min_new_tokens": 8},
        {"do_sample": True, "temperature": 3.0, "top_k": 2},
    ],
)
@pytest.mark.parametrize("peft", [False, True], ids=["base", "adapter"])
def test_what_is_written_obeys_no_other_settings_of_the_model(own: dict[str, Any], peft: bool) -> None:
    words = tokenizer("characters")
    prompts = [words(text)["input_ids"][:-1] for text in ("the old", "two ships")]
    model: Any = adapted("llama") if peft else build("llama")
    plain: Any = model.get_base_model() if peft else model
    plain.generation_config = GenerationConfig()
    free = generate(model, words, prompts, 8)
    ends = [
        words.convert_tokens_to_ids(text[1:2]) for text in free
    ]  # so that not before some tokens makes a difference
    plain.generation_config = GenerationConfig(eos_token_id=ends)
    expected = generate(model, words, prompts, 8)
    torch.manual_seed(5)
    sampled = write_paths(model, words, prompts, new_tokens=8, size=2, one_line=True, temperature=0.9)

    plain.generation_config = held = GenerationConfig(eos_token_id=ends, **own)
    assert generate(model, words, prompts, 8) == expected
    torch.manual_seed(5)
    assert write_paths(model, words, prompts, new_tokens=8, size=2, one_line=True, temperature=0.9) == sampled
    assert plain.generation_config is held and model.generation_config.eos_token_id == ends


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_long_row_is_cut_and_the_others_are_not(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = model_folder(tmp_path / "model", family)
    about = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    about.pop("model_max_length")  # as in most published folders
    (folder / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")
    federation.run(one_client(tmp_path, folder, TASKS["generate"]), tmp_path / "run")
    alone = [row["prediction"] for row in predict(tmp_path / "run", "c", tmp_path / "rows.jsonl")]
    assert "lost" not in capsys.readouterr().err
    mixed = write_rows(tmp_path / "mixed.jsonl", [*ROWS[:3], {"text": "the market " * 50}, *ROWS[3:]])
    together = [row["prediction"] for row in predict(tmp_path / "run", "c", mixed)]
    assert together[:3] + together[4:] == alone
    assert "1 of 9 rows are longer than the model reads and lost their beginning" in capsys.readouterr().err


def test_a_long_text_to_classify_is_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = one_client(tmp_path, model_folder(tmp_path / "model", "bert-cls"), TASKS["classify"])
    federation.run(experiment, tmp_path / "run")
    long = write_rows(tmp_path / "long.jsonl", [{"text": "the market " * 50}])
    (answer,) = predict(tmp_path / "run", "c", long)
    assert answer["prediction"] in LABELS
    assert "1 of 1 rows" in capsys.readouterr().err


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("size", range(1, len(ROWS) + 2))
def test_kind_f_scores_do_not_depend_on_how_rows_are_cut(kind: str, size: int) -> None:
    model = build("gpt2") if kind != "classify" else build("llama-cls")
    words, task = tokenizer("characters"), build_task(TASKS[kind])
    examples = [task.read({**row, "text": row["text"] * (1 + i % 3)}) for i, row in enumerate(ROWS)]
    encoded = encode(examples, words, max_length=64, truncate=True)
    whole = score(model, words, task, examples, encoded, len(ROWS))
    cut = score(model, words, task, examples, encoded, size)
    assert cut.metric == whole.metric and cut.nats == pytest.approx(whole.nats, abs=1e-5)
    assert answers(model, words, task, examples, size) == answers(model, words, task, examples, len(ROWS))


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished run on a base in bfloat16, and the base's folder."""
    folder = tmp_path_factory.mktemp("half")
    base = model_folder(folder / "model", "llama", torch.bfloat16)
    (base / "README.md").write_text("---\nlicense: MIT\n---\n# A model\n", encoding="utf-8")
    federation.run(one_client(folder, base, TASKS["generate"]), folder / "run")
    return folder / "run", base


@pytest.mark.parametrize(("dtype", "wanted"), [(None, torch.bfloat16), ("float32", torch.float32)])
def test_a_merged_model_has_its_bases_number_format(
    half: tuple[Path, Path], tmp_path: Path, dtype: str | None, wanted: torch.dtype
) -> None:
    made = export(half[0], "c", tmp_path / "merged", "merged", dtype)
    model = AutoModelForCausalLM.from_pretrained(made.folder, dtype="auto")
    assert {p.dtype for p in model.parameters()} == {wanted}
    config = json.loads((made.folder / "config.json").read_text(encoding="utf-8"))
    assert config["dtype"] == str(wanted).removeprefix("torch.")
    assert str(made).startswith(f"{tmp_path / 'merged'}\nmerged in {config['dtype']}: ") and "difference" in str(made)


@pytest.mark.parametrize("to", ["peft", "merged"])
def test_an_export_says_what_it_is_and_all_may_read_it(half: tuple[Path, Path], tmp_path: Path, to: str) -> None:
    before = os.umask(0o022)
    try:
        export(half[0], "c", tmp_path / "out", to)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()} == {0o644}
    _, header, text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert yaml.safe_load(header)["license"] == "mit" and yaml.safe_load(header)["base_model"] == str(half[1])
    assert "{text}:" in text and "Licence of the base model: MIT" in text
    assert "trained with h2tune for a task of kind generate" in text
    facts = json.loads((tmp_path / "out" / "task.json").read_text(encoding="utf-8"))
    assert (facts["prompt"], facts["answer"]) == ("{text}:", " {word}")
    if to == "peft":
        config = json.loads((tmp_path / "out" / "adapter_config.json").read_text(encoding="utf-8"))
        assert config["base_model_name_or_path"] == str(half[1])


def test_an_unknown_number_format_is_named(half: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="--dtype must be float32, bfloat16, float16, not 'int8'"):
        export(half[0], "c", tmp_path / "out", dtype="int8")


@pytest.mark.parametrize("part", ["classifier", "layer.1.output.dense.trilora_B"])
def test_a_damaged_adapter_is_not_filled_up_with_new_weights(tmp_path: Path, part: str) -> None:
    from safetensors.torch import load_file, save_file

    run = tmp_path / "run"
    federation.run(GOOD["checkpoint-with-a-head"](tmp_path), run)
    file = run / "clients" / "c" / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name: t for name, t in tensors.items() if part not in name}, file)
    with pytest.raises(StoreError, match="does not fit its base model"):
        load_trained(run, "c")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(StoreError, match=r"adapter_model\.safetensors is damaged: put it back"):
        load_trained(run, "c")


def fingerprint(folder: Path, change: str | None = None, dtype: torch.dtype = torch.float32) -> str:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = LlamaForCausalLM(config_of("llama"))
    if change:
        model.get_parameter(change).data[1] += 0.5
    model.to(dtype).save_pretrained(folder)
    tokenizer("characters").save_pretrained(folder)
    return ModelPool("cpu").get(str(folder)).fingerprint


def test_a_fingerprint_tells_partial_fine_tunes_apart_and_number_formats_not(tmp_path: Path) -> None:
    plain = fingerprint(tmp_path / "a")
    changed = ["model.layers.1.mlp.down_proj.weight", "model.layers.0.input_layernorm.weight", "model.norm.weight",
               "model.embed_tokens.weight"]  # fmt: skip
    others = [fingerprint(tmp_path / str(i), name) for i, name in enumerate(changed)]
    assert len({plain, *others}) == 5
    assert fingerprint(tmp_path / "half", dtype=torch.bfloat16) == plain  # as a GPU holds the same weights
    pool = ModelPool("cpu")
    base = pool.get(str(tmp_path / "a"))
    from h2tune.adapter import TriLoraConfig

    base.attach("x", TriLoraConfig(r=2, target_modules=base.layout.targets, task_type="CAUSAL_LM"))
    assert base.fingerprint == plain
    assert pool.get(str(tmp_path / "a"), labels=3).fingerprint == plain


def test_adapter_names_are_safe_and_no_part_of_one_another() -> None:
    names = [adapter_name(name) for name in ("st.mary", "st_mary", "children", "c1", "c10", "default", "weight")]
    assert len(set(names)) == len(names) and all(name.isidentifier() for name in names)
    assert not any(a in b for a in names for b in names if a != b)
