"""A client's result in other people's formats: a standard LoRA, or a whole model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from torch import nn

from h2tune import tasks
from h2tune.adapter import save_lora
from h2tune.adapter.card import CardFacts, card_text, licence_of
from h2tune.participant.checkpoints import Checkpoint, open_checkpoint
from h2tune.participant.prepare import encode_rows, read_part
from h2tune.participant.scoring import score
from h2tune.tasks.chat_template import has_chat_template
from h2tune.tasks.example import UNNAMED
from h2tune.tasks.read_by import read_by
from h2tune.tasks.told import TaskTexts, task_texts
from h2tune.trained import Trained, load_trained
from h2tune.utils.files import StoreError
from h2tune.utils.seeds import derive

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_MEASURED = 32  # test rows on which a merged model is compared


@dataclass(frozen=True)
class Exported:
    """Where an export lies, and what is to be said of it."""

    folder: Path
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join([str(self.folder), *self.notes])


def export(run: Path, name: str, out: Path, to: str = "peft", dtype: str | None = None) -> Exported:
    """Write a client's result as a standard LoRA (``peft``) or as a whole model (``merged``).

    Args:
        dtype: number format of the weights; by default the LoRA's exact float32, and for a merged model its base's.

    Raises:
        StoreError: if ``out`` is not empty or cannot be made, ``dtype`` is not known, or the adapter cannot be merged.
    """
    _check_free(out)
    if dtype is not None and dtype not in DTYPES:
        raise StoreError(f"--dtype must be {', '.join(DTYPES)}, not {dtype!r}.")
    trained = load_trained(run, name, device="cpu", whole=True)
    client, config = trained.client, trained.model.peft_config["default"]
    merges = not getattr(config, "shift", False)
    if to == "merged" and not merges:
        raise StoreError(
            f"The adapter of {name} cannot be merged: its method adds a trained constant to what every adapted map"
            " answers, and a weight has no place for that. Export it with --to peft."
        )
    checkpoint = open_checkpoint(client.model, labels=len(trained.task.labels) or None
                                 if trained.task.kind == "classify" else None,
                                 revision=client.revision, trust=client.trust_remote_code)  # fmt: skip
    _make(out)
    base = str(Path(checkpoint.folder).resolve()) if Path(checkpoint.folder).is_dir() else checkpoint.folder
    if to == "merged":
        kept = DTYPES[dtype] if dtype else checkpoint.dtype
        notes = _merge(trained, out, kept)
    else:
        kept, notes = DTYPES[dtype or "float32"], _says_where(base, merges)
        trained.model.peft_config["default"].base_model_name_or_path = base
        save_lora(trained.model, out, dtype=kept)
    trained.base.tokenizer.save_pretrained(out)
    _describe(trained, checkpoint, base, out, to == "merged", str(kept).removeprefix("torch."))
    _one_mode(out)
    return Exported(out, notes)


def _check_free(out: Path) -> None:
    try:
        if out.exists() and any(out.iterdir()):
            raise StoreError(f"{out} is not empty: choose another --out.")
    except OSError as error:
        raise _not_made(out, error) from None


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_made(out, error) from None


def _not_made(out: Path, error: OSError) -> StoreError:
    return StoreError(f"{out} could not be made: {error.strerror}. Choose another --out.")


def _says_where(base: str, merges: bool) -> tuple[str, ...]:
    """A base that is a folder is known on this machine only: the models of the zoo lie in the installed package."""
    if not Path(base).is_dir():
        return ()
    return (
        f"base_model_name_or_path is a folder of this machine: {base}",
        f"on another machine, load the base from where it lies there{', or export with --to merged' if merges else ''}",
    )


def _merge(trained: Trained, out: Path, dtype: torch.dtype) -> tuple[str, ...]:
    """Write the merged model, and say by how much rounding has moved it."""
    before = _measured(trained, trained.model)
    merged = trained.model.merge_and_unload(safe_merge=True).to(dtype)
    merged.config.dtype = dtype
    merged.save_pretrained(out)
    named = str(dtype).removeprefix("torch.")
    if before is None:
        return (f"merged in {named}; not compared with the adapter, since the test data cannot be read here",)
    after = _measured(trained, merged.float())
    assert after is not None
    return (
        f"merged in {named}: {after[0]:.6f} nats on {before[1]} test rows, {before[0]:.6f} with the adapter beside its"
        f" base (difference {abs(after[0] - before[0]):.1e})",
    )


def _measured(trained: Trained, model: nn.Module) -> tuple[float, int] | None:
    """Nats on the first of the client's test rows, and how many; None where they cannot be read."""
    client, task, base = trained.client, trained.task, trained.base
    try:
        seed = derive(trained.experiment.seed, client.name, "data")
        examples = read_part(client, task, "test", seed=seed)[:_MEASURED]
        encoded = encode_rows(client, base, examples)
    except (tasks.TaskError, OSError):
        return None
    whole: Any = model  # PEFT's wrapper passes on what a model of Transformers has
    found = score(whole, base.tokenizer, task, examples, encoded, loss_only=True, passes=trained.passes)
    return found.nats, len(examples)


def _describe(trained: Trained, checkpoint: Checkpoint, base: str, out: Path, merged: bool, dtype: str) -> None:
    """The prompt and the labels, for programs (task.json) and for people (README.md)."""
    task = trained.task
    texts = _texts(trained)
    facts = {"name": task.name, "kind": task.kind, "prompt": texts.prompt, "answer": texts.answer, "labels": list(task.labels),
             "max_new_tokens": task.max_new_tokens, "base_model": base, "revision": trained.client.revision}  # fmt: skip
    facts |= {"options": texts.options} if texts.options else {}
    facts |= {"written": texts.written} if texts.written else {}
    facts |= {"notes": texts.notes} if texts.notes else {}
    bias = _label_bias(trained)
    facts |= {"label_bias": bias} if bias else {}
    text = json.dumps(facts, indent=1, ensure_ascii=False) + "\n"
    (out / "task.json").write_text(text, encoding="utf-8")
    card = CardFacts(
        title=f"{trained.experiment.name}: {trained.client.name}", base=base, licence=_licence(checkpoint),
        revision=trained.client.revision, task=None if task.name == UNNAMED else task.name, kind=task.kind, prompt=texts.prompt,
        answer=texts.answer, exact=texts.exact, notes=texts.notes,
        labels=task.labels, merged=merged, dtype=dtype, label_bias=bias,
        pads=checkpoint.config.get_text_config().pad_token_id != trained.base.tokenizer.pad_token_id,
    )  # fmt: skip
    (out / "README.md").write_text(card_text(card), encoding="utf-8")


def _label_bias(trained: Trained) -> list[dict[int, float]]:
    """What is added to the logits of the labels' tokens, by token, for each place of the answer."""
    bias = trained.passes.bias
    return [dict(zip(*place, strict=True)) for place in zip(bias.tokens, bias.values, strict=True)] if bias else []


def _licence(checkpoint: Checkpoint) -> str | None:
    if Path(checkpoint.folder).is_dir():
        return licence_of(Path(checkpoint.folder))
    card = try_to_load_from_cache(checkpoint.folder, "README.md", revision=checkpoint.revision)
    return licence_of(Path(card).parent) if isinstance(card, str) else None


def _texts(trained: Trained) -> TaskTexts:
    """What is told of the task, by the columns that its training rows were read by."""
    known = trained.read_by
    for part in () if known else ("train", "test"):  # a run of an older version has not kept them
        seed = derive(trained.experiment.seed, trained.client.name, "data")
        try:
            known = read_by(read_part(trained.client, trained.task, part, seed=seed))
            break
        except (tasks.TaskError, OSError):
            continue
    client = trained.client
    return task_texts(
        trained.task, client.task, client.columns, known, template=has_chat_template(trained.base.tokenizer)
    )


def _one_mode(folder: Path) -> None:
    """Every file readable by whom the user's umask lets read: some libraries write for the owner alone."""
    mode = (folder / "README.md").stat().st_mode & 0o777
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)
