"""Keep the libraries' chatter off the screen: progress bars and notices that say nothing about the user's run."""

from __future__ import annotations

import logging
import os
import warnings


def quiet_libraries() -> None:
    """Must run before transformers is imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", module="(peft|transformers|torch|accelerate)")
    # What the package says of the user's data is for its user, who has no use for a line of our source.
    warnings.formatwarning = lambda message, *rest, **more: f"note: {message}\n"
    from transformers.utils import logging as hf_logging

    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
