"""Whether freed memory stays with the process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

TRAIN = """
import resource, sys
import torch
from h2tune.utils.memory import keep_freed_memory

print(keep_freed_memory() if sys.argv[1] == "keep" else None)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def work():
    parts = [torch.ones(10 * 2**20) for _ in range(3)]  # 40 MB each: by itself glibc gives back all that is above 32
    del parts

for _ in range(10):  # until pieces of the right size lie there
    work()
begin = faults()
for _ in range(5):
    work()
print(faults() - begin)
"""


def faults(how: str, **changes: str) -> list[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))} | changes
    found = subprocess.run(
        [sys.executable, "-c", TRAIN, how], env=environment, capture_output=True, text=True, check=True
    )
    return found.stdout.split()


def test_what_is_freed_is_used_again_without_asking_the_system() -> None:
    (done, kept), (_, given_back) = faults("keep"), faults("leave")
    if done == "False":
        pytest.skip("another C library")
    assert int(kept) < 0.1 * int(given_back)


def test_a_users_own_setting_is_left_alone() -> None:
    assert faults("keep", MALLOC_TRIM_THRESHOLD_="131072")[0] == "False"
