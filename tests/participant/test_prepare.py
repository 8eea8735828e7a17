"""A client's rows as its model reads them."""

from __future__ import annotations

import pytest

from h2tune import tasks
from h2tune.config import ClientConfig
from h2tune.participant.base_models import ModelPool
from h2tune.participant.prepare import load_data


def test_rows_that_are_cut_are_counted_and_told(recwarn: pytest.WarningsRecorder) -> None:
    base, task = ModelPool("cpu").get("zoo:llama"), tasks.build_task("demo-fill")
    client = {"name": "a", "model": "zoo:llama", "task": "demo-fill", "truncate": True,
              "train": "demo:fill?split=train&n=30", "test": "demo:fill?split=test&n=8"}  # fmt: skip
    load_data(ClientConfig.model_validate(client), task, base, seed=0)
    assert not [w for w in recwarn if "truncate" in str(w.message)]
    cut = ClientConfig.model_validate(client | {"max_length": 12})
    with pytest.warns(
        UserWarning, match="a: 8 of 8 rows fill the 12 tokens that the model reads; what was longer lost"
    ):
        load_data(cut, task, base, seed=0)
