"""What tests of clients side by side share."""

from __future__ import annotations

import pytest

from h2tune.participant.together import Part, TogetherTrainer


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many clients each pass of training held."""
    found: list[int] = []
    real = TogetherTrainer._pass

    def counted(self: TogetherTrainer, parts: list[Part]) -> list[float]:
        found.append(len(parts))
        return real(self, parts)

    monkeypatch.setattr(TogetherTrainer, "_pass", counted)
    return found
