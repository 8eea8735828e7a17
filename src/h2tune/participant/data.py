"""A participant's rows, encoded for its model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from h2tune import tasks
from h2tune.config import ClientConfig
from h2tune.participant.base_models import LoadedModel
from h2tune.tasks.example import Example, Task
from h2tune.tasks.prompts import Encoded, encode
from h2tune.utils.seeds import derive


@dataclass(frozen=True)
class Part:
    """Examples, and what the model reads of them."""

    examples: Sequence[Example]
    encoded: Sequence[Encoded]

    def __len__(self) -> int:
        return len(self.examples)


@dataclass(frozen=True)
class ClientData:
    """Training, validation and test rows; ``leaked`` test rows also occur in the training data."""

    train: Part
    validation: Part
    test: Part
    leaked: int


def load_data(config: ClientConfig, task: Task, base: LoadedModel, seed: int, n_validation: int | None) -> ClientData:
    """Load and encode a client's rows.

    Args:
        seed: of the experiment; samples and the validation part are drawn from it and the client's name.
        n_validation: most validation rows.

    Raises:
        TaskError: naming file, row and what is wrong.
    """
    seed = derive(seed, config.name, "data")
    train = tasks.load_examples(
        config.train, task, limit=config.n_train, seed=seed, columns=config.columns, part=config.part
    )
    test = tasks.load_examples(config.test, task, limit=config.n_test, seed=seed, columns=config.columns)
    leaked = tasks.overlap(train, test)
    if config.validation:
        validation = tasks.load_examples(config.validation, task, columns=config.columns)
    else:
        train, validation = tasks.split_validation(train, seed, test=test)
    length = config.max_length or base.context
    parts = [
        Part(rows, encode(rows, base.tokenizer, max_length=length, truncate=config.truncate))
        for rows in (train, validation[:n_validation], test)
    ]
    return ClientData(*parts, leaked)
