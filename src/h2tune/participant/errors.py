"""What is wrong with a base model, in words for its user."""

from __future__ import annotations

from h2tune.errors import H2TuneError


class ModelError(H2TuneError, ValueError):
    """A base model cannot be used; the text says why and what to do."""


class ModelAwayError(ModelError):
    """The model is not on this machine, and only this machine was to be looked at."""
