"""The lock file: complete, exact, with hashes, and without a word about where packages come from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LOCK = (ROOT / "requirements" / "lock.txt").read_text()
ENTRIES = [e for e in re.split(r"\n(?=[a-zA-Z0-9])", LOCK) if not e.startswith("#")]


def test_every_package_has_one_version_and_hashes() -> None:
    for entry in ENTRIES:
        assert re.match(r"[a-z0-9-]+==[^ ]+( ; [^\\]+)? \\\n( +--hash=sha256:[0-9a-f]{64}( \\\n)?)+\n?$", entry), entry


@pytest.mark.parametrize("word", ["://", "--index", "--extra-index", "--find-links", "-i ", "-f ", " @ ", "file:"])
def test_no_index_and_no_url(word: str) -> None:
    """Any mirror serves: where packages come from is the user's own setting."""
    for path in (ROOT / "requirements").glob("*.txt"):
        assert word not in path.read_text(), path


def test_pytorch_is_pinned_apart() -> None:
    """Its builds for CPU and for CUDA have other hashes."""
    assert re.fullmatch(r"torch==[0-9.]+\n", (ROOT / "requirements" / "torch.txt").read_text())
    assert not any(re.match(r"(torch|triton|nvidia-|cuda-)", entry) for entry in ENTRIES)
