"""True and False in tables: Parquet and JSON have them as such, CSV as text."""

from __future__ import annotations

import numpy as np
import pandas as pd

TRUTHS = {"true": 1.0, "false": 0.0}


def is_truth(values: pd.Series) -> bool:
    """Whether a column holds True and False as such, and nothing else but missing cells."""
    if values.dtype == object:
        known = values.dropna().tolist()
        return bool(known) and all(isinstance(value, bool | np.bool_) for value in known)
    return bool(pd.api.types.is_bool_dtype(values))


def truths_of(texts: list[str | None]) -> np.ndarray | None:
    """1 and 0 for True and False as text, in any case, NaN for missing cells; None where one is something else."""
    if any(text is not None and text.casefold() not in TRUTHS for text in texts):
        return None
    return np.array([np.nan if text is None else TRUTHS[text.casefold()] for text in texts])
