"""What stands before training: a client's task, base model and data, built by the same steps in `plan` and in a run.

`plan` asks a pool on the meta device (`ModelPool("meta", offline=True)`): the same code without any weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from h2tune import tasks
from h2tune.config import ClientConfig, ConfigError, Experiment
from h2tune.participant.base_models import LoadedModel, ModelPool
from h2tune.participant.checkpoints import positions_of
from h2tune.tasks.example import Example, Task, TaskError
from h2tune.tasks.prompts import Encoded, encode, encode_prompts, fit_prompts
from h2tune.tasks.read_by import read_otherwise

FEW = 20  # test rows; with fewer, each of them is more than five points
UNKNOWN = "-"  # a model or data source that only the client itself knows


@dataclass(frozen=True)
class Split:
    """Rows of one part, read and encoded, in the same order."""

    examples: Sequence[Example]
    encoded: Sequence[Encoded]

    def __len__(self) -> int:
        return len(self.examples)


@dataclass(frozen=True)
class ClientData:
    """What a client trains on and is measured by.

    leaked: test examples whose prompt is also in the training rows as they were given.
    """

    train: Split
    validation: Split
    test: Split
    leaked: int


def check_known(experiment: Experiment) -> None:
    """Refuse to train where only the clients themselves know their models or data.

    Raises:
        ConfigError: with a line for each such client.
    """
    problems = []
    for client in experiment.clients:
        keys = [key for key in ("model", "train", "test", "validation") if getattr(client, key) == UNKNOWN]
        if keys:
            named = " and ".join(filter(None, (", ".join(keys[:-1]), keys[-1])))
            problems.append(
                f'{client.name}: {named} {"is" if len(keys) == 1 else "are"} "-": known at the client only; use h2tune'
                " provision, or fill them in"
            )
    if problems:
        raise ConfigError(problems)


def client_base(config: ClientConfig, task: Task, models: ModelPool) -> LoadedModel:
    """The base model of a client, with a head of the task's labels where the task has one.

    Raises:
        ModelError: if it cannot be used.
    """
    labels = len(task.labels) if task.kind == "classify" else None
    return models.get(
        config.model, labels=labels, revision=config.revision, trust=config.trust_remote_code, slots=config.slots,
        quantization=config.quantization,
    )  # fmt: skip


def load_data(
    config: ClientConfig, task: Task, base: LoadedModel, *, seed: int, n_validation: int | None = None
) -> ClientData:
    """Read, split and encode a client's rows.

    Args:
        seed: of the sample and of the validation split.
        n_validation: validation rows to keep; None keeps all.

    Raises:
        TaskError: with every part's first mistake, a line each.
    """
    train, validation, test, leaked = read_rows(config, task, seed=seed)
    parts = {"train": train, "validation": tasks.sample(validation, n_validation, seed), "test": test}
    splits: dict[str, Split] = {}
    problems = []
    for part, examples in parts.items():
        try:
            splits[part] = Split(examples, encode_rows(config, base, examples))
        except TaskError as error:
            problems.append(f"{part}: {error}")
    if problems:
        raise TaskError("\n".join(problems))
    _note_room(config, task, base, test)
    return ClientData(splits["train"], splits["validation"], splits["test"], leaked)


def remarks(task: Task, train: Sequence[Example], test: Sequence[Example], leaked: int) -> list[str]:
    """What is said of test rows before training: those that are also trained on, those that ask otherwise, and that they are few."""
    found = [f"{leaked} test examples occur in its training data"] if leaked else []
    if otherwise := read_otherwise(task, train, test):
        found.append(otherwise)
    if len(test) < FEW:
        rows = "one test row" if len(test) == 1 else f"{len(test)} test rows"
        found.append(f"{rows}: a score of fewer than {FEW} says little")
    return found


def read_rows(
    config: ClientConfig, task: Task, *, seed: int
) -> tuple[list[Example], list[Example], list[Example], int]:
    """Training, validation and test examples, and how many of the last occur in training.

    Raises:
        TaskError: with every part's first mistake, a line each.
    """
    found: dict[str, list[Example]] = {}
    problems = []
    for part in ("train", "test", "validation"):
        try:
            found[part] = read_part(config, task, part, seed=seed)
        except TaskError as error:
            problems.append(f"{part}: {error}")
    if problems:
        raise TaskError("\n".join(problems))
    train, test, validation = found["train"], found["test"], found["validation"]
    leaked = tasks.overlap(train, test)
    if not config.validation:
        train, validation = tasks.split_validation(train, seed, test=test)
    else:
        for part, others in (("train", train), ("test", test)):
            if common := tasks.overlap(others, validation):
                warnings.warn(f"{common} of {len(validation)} validation examples are also in {part}", stacklevel=3)
    _note_join(train)
    return train, validation, test, leaked


def read_part(config: ClientConfig, task: Task, part: str, *, seed: int) -> list[Example]:
    """The examples of one part; none for a part that the config does not name.

    Raises:
        TaskError: naming file, row and column.
    """
    source = getattr(config, part)
    if not source:
        return []
    limits = {"train": config.n_train, "test": config.n_test}
    only = config.part if part == "train" else None
    return tasks.load_examples(source, task, limit=limits.get(part), seed=seed, columns=config.columns, part=only)


def max_length(config: ClientConfig, base: LoadedModel) -> int:
    """Longest example in tokens: the config's, else the model's context.

    Raises:
        TaskError: if the config's is longer than the model's positions.
    """
    positions = positions_of(base.model.config)
    if config.max_length and positions and config.max_length > positions:
        raise TaskError(f"max_length: {config.max_length} is more than the {positions} positions of {base.name}")
    return config.max_length or base.context


def encode_rows(config: ClientConfig, base: LoadedModel, examples: Sequence[Example]) -> list[Encoded]:
    """Examples as the model reads them.

    Raises:
        TaskError: if a row is too long, or holds a token that the model has no embedding for.
    """
    longest = max_length(config, base)
    rows = encode(examples, base.tokenizer, max_length=longest, truncate=config.truncate)
    if config.truncate and (full := sum(len(row.input_ids) == longest for row in rows)):
        warnings.warn(
            f"{config.name}: {full} of {len(rows)} rows fill the {longest} tokens that the model reads; what was longer lost its"
            " beginning (truncate: true)",
            stacklevel=2,
        )
    table: Any = base.model.get_input_embeddings()
    known = int(table.weight.shape[0])
    for example, row in zip(examples, rows, strict=True):
        if (highest := max(row.input_ids)) >= known:
            token = base.tokenizer.convert_ids_to_tokens(highest)
            raise TaskError(
                f"{example.place}: token {token!r} has number {highest}, but {base.name} has embeddings for {known} tokens"
                " only; resize them (model.resize_token_embeddings(len(tokenizer))) and save the model again"
            )
    return rows


def _note_room(config: ClientConfig, task: Task, base: LoadedModel, test: Sequence[Example]) -> None:
    if task.kind != "generate":
        return
    context = max_length(config, base)
    _, cut = fit_prompts(
        encode_prompts(test, base.tokenizer), base.tokenizer, context=context, new_tokens=task.max_new_tokens
    )
    lengths = [len(ids) for ids in base.tokenizer([e.answer for e in test], add_special_tokens=False)["input_ids"]]
    if lengths and min(lengths) > task.max_new_tokens:
        warnings.warn(
            f"{config.name}: max_new_tokens: {task.max_new_tokens} is less than every reference answer of its test rows has"
            f" (the shortest: {min(lengths)})",
            stacklevel=4,
        )
    if cut:
        warnings.warn(
            f"{config.name}: {cut} of {len(test)} test prompts lose their beginning to leave room for an answer in"
            f" {context} tokens",
            stacklevel=4,
        )


def _note_join(train: Sequence[Example]) -> None:
    """Say where prompts and answers run into each other in every row: seldom meant, and not ours to change."""
    plain = [e for e in train if e.answer and not e.messages]
    if plain and all(e.prompt[-1:].isalnum() and e.answer[:1].isalnum() for e in plain):
        first = plain[0]
        warnings.warn(
            f"{first.place}: nothing stands between prompt and answer ({first.prompt[-12:]!r} + {first.answer[:12]!r});"
            " where a space belongs, set join: ' ' in the task",
            stacklevel=4,
        )
