"""Keep the libraries' chatter off the screen: progress bars and notices that say nothing about the user's run."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any


def _once() -> Callable[..., None]:
    """Show what the package says of the user's data: without a line of our source, and once, however many clients met it."""
    told = set[str]()

    def show(message: Warning | str, *rest: Any, **more: Any) -> None:
        if (text := f"note: {message}") not in told:
            told.add(text)
            print(text, file=sys.stderr)

    return show


def quiet_libraries() -> None:
    """Must run before transformers is imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", module="(peft|transformers|torch|accelerate)")
    warnings.showwarning = _once()
    from transformers.utils import logging as hf_logging

    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
