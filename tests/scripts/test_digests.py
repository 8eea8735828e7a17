"""The digests are of every method there is, and never of a few in place of all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from h2tune.methods.registry import known_methods


@pytest.fixture
def digests(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # the script sets them; here they go back to what they were
    import digests

    return digests


def test_every_method_has_a_run(digests: Any) -> None:
    runs = digests.runs()
    own = {name for name, kind in known_methods().items() if kind.server.__module__.startswith("h2tune.")}
    methods = {run.method if isinstance(run.method, str) else run.method["name"] for run in runs.values()}
    assert own <= methods and {"bias", "lada", "lada-published", "fedit"} <= methods
    equal = {name for name in runs if name.endswith("(equal models)")}
    assert {"fedit (equal models)", "colora (equal models)"} <= equal and "fedit" not in runs


def test_a_few_are_not_recorded_as_all(digests: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "RECORD", tmp_path / "digests.json")
    monkeypatch.setattr("sys.argv", ["digests.py", "lada"])
    with pytest.raises(SystemExit, match="there is no record yet"):
        digests.main()
    assert not digests.RECORD.exists()
