"""A folder that one process at a time may write to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from h2tune.utils.files import Claim, StoreError

HOLDS = """
import pathlib, sys
from h2tune.utils.files import Claim
claim = Claim(pathlib.Path(sys.argv[1]))
claim.take()
print("has it", flush=True)
sys.stdin.read()
"""


def test_a_folder_that_another_process_writes_to_is_refused_until_that_process_ends(tmp_path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout is not None and other.stdout.readline() == b"has it\n"
    claim = Claim(tmp_path)
    with pytest.raises(
        StoreError, match=r"is in use: another process trains there\. Let it end, or take another --out"
    ):
        claim.take()
    other.kill()  # as kill -9: nothing is tidied up
    other.wait()
    claim.take()
    claim.take()
    claim.give_up()
    Claim(tmp_path).take()


def test_a_folder_that_is_not_there_cannot_be_claimed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="could not be written"):
        Claim(tmp_path / "file" / "under").take()
