"""Set before anything heavy is imported: one thread (equal bits, busy machines), no network, quiet libraries."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

os.environ |= {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
}

import pytest
import torch
from federations import small
from hypothesis import settings

from h2tune import federation

torch.set_num_threads(1)
warnings.filterwarnings("ignore", message=".*torch_dtype.*")

# Times on a shared machine say nothing about a test, and a failing example must be the same for everybody.
settings.register_profile("h2tune", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("h2tune")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One undisturbed run that others are compared with. Nobody writes into it."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    federation.run(small(), out)
    return out
