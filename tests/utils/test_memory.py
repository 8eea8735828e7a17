"""Whether freed memory stays with the process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from h2tune.transport import inprocess
from h2tune.utils.memory import KEPT

TRAIN = """
import resource, sys
import torch
from h2tune.utils.memory import keep_freed_memory

print(keep_freed_memory() if sys.argv[1] == "keep" else None)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def work():
    parts = [torch.ones(2**20) for _ in range(12)]  # 4 MB each
    del parts

for _ in range(10):  # until pieces of the right size lie there
    work()
begin = faults()
for _ in range(5):
    work()
print(faults() - begin)
"""


def ran(how: str, program: str = TRAIN, **changes: str) -> list[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))} | changes
    found = subprocess.run(
        [sys.executable, "-c", program, how], env=environment, capture_output=True, text=True, check=True
    )
    return found.stdout.split()


GROW = """
import resource, sys
import torch
from h2tune.utils.memory import give_back_memory, keep_freed_memory

print(keep_freed_memory() if sys.argv[1] == "keep" else None)
held = lambda: int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() // 2**20
begin, small = held(), []
for length in range(16, 257, 4):
    pass_ = [torch.ones(4, length, 1000) for _ in range(20)] + [torch.ones(4, length, 16000)]
    small.append(torch.ones(100 * length))
    del pass_
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**10 - begin
give_back_memory()
print(peak, held() - begin)
"""


def test_the_peak_of_a_pass_whose_texts_grow_rises_little_and_what_is_free_can_be_given_back() -> None:
    (done, kept, left), (_, usual, _) = ran("keep", GROW), ran("leave", GROW)
    if done == "False":
        pytest.skip("another C library")
    assert int(kept) < 1.5 * int(usual) and int(left) < 0.3 * int(kept)


def test_what_is_freed_is_used_again_without_asking_the_system() -> None:
    # By itself glibc learns from what is freed, and keeps pieces in some layouts of the heap: here it gives all back.
    (done, kept), (_, given_back) = ran("keep"), ran("leave", MALLOC_MMAP_THRESHOLD_="131072")
    if done == "False":
        pytest.skip("another C library")
    assert int(kept) < 0.1 * int(given_back)


def test_a_users_own_setting_is_left_alone() -> None:
    assert ran("keep", MALLOC_TRIM_THRESHOLD_="131072")[0] == "False"


SCATTERED = """
import resource, sys
import torch
from h2tune.utils.memory import freed_memory, give_back_memory, keep_freed_memory

print(keep_freed_memory())
held = lambda: int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() // 2**20
parts = [torch.ones(2**18) for _ in range(200)]  # 1 MB each
del parts[::2]  # what is free lies between what is in use, and not at the end of the heap
full = held()
give_back_memory(above=2**30)
print(freed_memory() // 2**20, full - held())
give_back_memory(above=64 * 2**20)
print(full - held())
"""


def test_what_is_free_is_given_back_only_where_it_is_much() -> None:
    done, free, little, much = ran("keep", SCATTERED)
    if done == "False" or free == "0":
        pytest.skip("another C library")
    assert int(free) >= 99 and abs(int(little)) < 20 and int(much) > 80


def test_after_each_client_of_a_process_what_is_free_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    monkeypatch.setattr(inprocess, "give_back_memory", lambda above: told.append(above))
    way = inprocess.InProcess({name: Echo() for name in "ab"})
    assert dict(way.exchange({"a": b"1", "b": b"2"})) == {"a": b"1", "b": b"2"}
    assert told == [KEPT, KEPT]


class Echo:
    def handle(self, data: bytes) -> bytes:
        return data
