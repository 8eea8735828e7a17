"""The model card of an export: what it sits on, under which licence, how it is asked, and how it is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

_CAUSAL, _CLASSES = "AutoPeftModelForCausalLM", "AutoPeftModelForSequenceClassification"


@dataclass(frozen=True)
class CardFacts:
    """What the card says.

    Attributes:
        task: its name; None where its writer gave none.
        base: name or folder of the base model. licence: as the base's own card has it; None where it says none.
        prompt: what the model reads, columns in braces. answer: what follows it.
        labels: names of the classes, in the order of the head's outputs.
        label_bias: for each place of the answer, by token, what is added to its logit there.
        exact: whether the prompt is that text, and not a description of it. notes: what both cannot say.
        pads: whether the base does not say, or says otherwise, which token fills rows up.
    """

    title: str
    base: str
    licence: str | None
    revision: str | None
    task: str | None
    kind: str
    prompt: str
    answer: str
    labels: Sequence[str]
    merged: bool
    dtype: str
    label_bias: Sequence[Mapping[int, float]] = ()
    pads: bool = False
    exact: bool = True
    notes: Sequence[str] = ()


def licence_of(folder: Path) -> str | None:
    """The licence that the model card in a folder names: in its header, or as "Licence: X" in its text."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    text = card.read_text(encoding="utf-8", errors="replace")
    if header := re.match(r"---\s*\n(.*?)\n---\s*(?:\n|\Z)", text, re.DOTALL):
        try:
            values = yaml.safe_load(header[1])
        except yaml.YAMLError:
            values = None
        if isinstance(values, dict) and values.get("license"):
            return str(values["license"])
    found = re.search(r"\bLicen[cs]e:\s*`?([A-Za-z0-9][\w.+-]*\w)", text)
    return found[1] if found else None


def card_text(facts: CardFacts) -> str:
    """The card, in the form that the Hub reads."""
    header = {"base_model": facts.base, "library_name": "transformers" if facts.merged else "peft"}
    header |= {
        "pipeline_tag": "text-classification" if facts.labels and facts.kind == "classify" else "text-generation"
    }
    if facts.licence:
        header["license"] = facts.licence.lower()
    licence = facts.licence or "not stated by its files; look it up before passing this on"
    revision = f" at revision {facts.revision}" if facts.revision else ""
    lines = [
        "---", yaml.safe_dump(header, sort_keys=False, allow_unicode=True).strip(), "---", "", f"# {facts.title}", "",
        f"{'A model' if facts.merged else 'A LoRA adapter'} trained with h2tune for {_task(facts)}, in {facts.dtype}.", "",
        f"- Base model: {facts.base}{revision}", f"- Licence of the base model: {licence}", "",
        "## Prompt", "", *_prompt(facts), "",
    ]  # fmt: skip
    if facts.kind == "classify":
        lines += ["## Labels", "", *(f"{number}. {label}" for number, label in enumerate(facts.labels)), ""]
    else:
        lines += ["The answer follows at once:", "", _fenced(facts.answer), ""]
    lines += [line for note in facts.notes for line in (_plain(note), "")]
    if facts.label_bias:
        lines += [
            "## Label bias", "", "Its scores hold with these numbers added to the logits of these tokens, line by line at"
            " the first token of the answer, the second and so on. `logit_bias` of vLLM and `sequence_bias` of Transformers"
            " hold for a whole answer: generate one token at a time with them.", "",
            _fenced("\n".join(f"{{{_numbers(place)}}}" for place in facts.label_bias)), "",
        ]  # fmt: skip
    lines += ["## Use", "", "```python", *_use(facts), "```", ""]
    return "\n".join(lines)


def _prompt(facts: CardFacts) -> list[str]:
    if not facts.exact:
        return [f"It was trained on this: {facts.prompt}."]
    return ["It was trained on exactly this text, spaces included:", "", _fenced(facts.prompt)]


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_<>#|])", r"\\\1", text)


def _task(facts: CardFacts) -> str:
    return f"a task of kind {facts.kind}" if facts.task is None else f"the task {facts.task} ({facts.kind})"


def _numbers(bias: Mapping[int, float]) -> str:
    return ", ".join(f"{token}: {value:.4f}" for token, value in bias.items())


def _fenced(text: str) -> str:
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=2) + 1)
    fence = fence if len(fence) > 2 else "```"
    return f"{fence}text\n{text}\n{fence}"


def _use(facts: CardFacts) -> list[str]:
    name = _CLASSES if facts.kind == "classify" else _CAUSAL
    name = name.replace("AutoPeft", "Auto") if facts.merged else name
    classes = facts.kind == "classify" and not facts.merged
    labels = f", id2label={dict(enumerate(facts.labels))!r}" if classes else ""
    note = (
        ["# The base has no such head: Transformers says that it is new, and then PEFT puts in the trained one."]
        if classes
        else []
    )
    # A decoder with a head reads its classes from the last token that is none of these.
    pads = ["model.config.get_text_config().pad_token_id = tokenizer.pad_token_id"] if classes and facts.pads else []
    library = "transformers" if facts.merged else "peft"
    return [
        f"from {library} import {name}", "from transformers import AutoTokenizer", "", *note,
        f'model = {name}.from_pretrained("THIS_FOLDER"{labels})',
        'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")', *pads,
    ]  # fmt: skip
