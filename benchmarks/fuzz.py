"""Hostile messages: mutated envelopes and messages, by the hundred thousand. All are refused, memory stays bounded.

Run as: python benchmarks/fuzz.py                  # 100,000 of each, about two minutes on one core
        python benchmarks/fuzz.py --count 5000     # a glance

A mutation flips bits, cuts, repeats or splices parts, or rewrites single values of the headers (shapes, types, offsets,
names, numbers). A mutated message that is still exactly a valid one is counted apart; anything but a refusal or such a
message fails the run. Peak memory is that of Python's allocator above what the mutated bytes themselves take.
"""

from __future__ import annotations

import argparse
import json
import random
import struct
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from common import write

from h2tune.protocol.codec import Message, Payload, ProtocolError, decode, encode
from h2tune.transport.envelope import Envelope, unpack

STRANGE = [-1, 0, 2**31, 2**63, 10**30, 1.5, None, True, "", "\0", "F32", "F64", "../..", [], {}, [2**40, 2**40], [-4],
           [[]], {"a": {}}, "x" * 5000, float("1e308")]  # fmt: skip


def messages() -> list[bytes]:
    """What a round really sends: cores, bits, plain values."""
    found = []
    for seed in range(8):
        torch.manual_seed(seed)
        tensors = {"values": torch.randn(6 * 16 * 16), "pairs": torch.randint(0, 255, (6,), dtype=torch.uint8),
                   "half": torch.randn(4, 4).to(torch.bfloat16)}  # fmt: skip
        meta = {"record": {"loss": {"shared": 0.5}, "validation": None}, "evaluate": True}
        found.append(encode(Message("update", "r" * 32, seed, "client", "h2tune", Payload(tensors, meta), 24)))
    return found


def envelopes() -> list[bytes]:
    hello = {"federation": "f" * 32, "process": "i" * 16, "version": "1", "busy": False, "doing": {"step": 3}}
    return [Envelope("hello", hello).pack(), Envelope("answer", {"number": "n" * 16}, b"body" * 100).pack()]


def mutate(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    kind = rng.randrange(6)
    found = bytearray(data)
    if kind == 0:
        for _ in range(rng.randint(1, 8)):
            found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del found[rng.randrange(len(found)) :]
    elif kind == 2:
        a, b = sorted(rng.randrange(len(found)) for _ in range(2))
        found[a:b] = found[a:b] * rng.randint(0, 3)
    elif kind == 3:
        other = rng.choice(others)
        found[rng.randrange(len(found)) :] = other[rng.randrange(len(other)) :]
    elif kind == 4:
        size = rng.choice([0, 1, 7, 2**16, 2**31, 2**63, rng.getrandbits(64)])
        found[: rng.choice([4, 8])] = struct.pack("<Q", size)
    else:
        return rewrite(data, rng)
    return bytes(found)


def rewrite(data: bytes, rng: random.Random) -> bytes:
    """Another value somewhere in the headers, lengths put right, so that it gets past the first look."""
    wide = data[4:5] != b"{"  # a message has an eight-byte length, a envelope one of four
    form, start = ("<Q", 8) if wide else (">I", 4)
    size = struct.unpack(form, data[:start])[0]
    head = json.loads(data[start : start + size])
    if wide and rng.random() < 0.5:
        inner = json.loads(head["__metadata__"]["h2tune"])
        change(inner, rng)
        head["__metadata__"]["h2tune"] = json.dumps(inner)
    else:
        change(head, rng)
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack(form, len(text)) + text + data[start + size :]


def change(place: Any, rng: random.Random) -> None:
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return
        key = rng.choice(keys)
        inner = place[key]
        if isinstance(inner, (dict, list)) and inner and rng.random() < 0.7:
            place = inner
            continue
        roll = rng.random()
        if roll < 0.2:
            del place[key]
        elif roll < 0.35 and isinstance(place, dict):
            place[str(rng.choice(STRANGE))] = inner
        else:
            place[key] = rng.choice(STRANGE)
        return


def attack(read: Callable[[bytes], Any], seeds: list[bytes], count: int) -> dict[str, Any]:
    rng, outcomes, reasons = random.Random(0), Counter(), Counter()
    begin, peak = time.perf_counter(), 0
    for number in range(count):
        data = mutate(rng.choice(seeds), seeds, rng)
        measured = number % 50 == 0  # tracing every message would take an hour
        if measured:
            tracemalloc.start()
        try:
            read(data)
            outcomes["still valid"] += 1
        except ProtocolError as error:
            outcomes["refused"] += 1
            reasons[str(error)[:40]] += 1
        if measured:
            peak = max(peak, tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    return {"messages": count, "outcomes": dict(outcomes), "reasons": len(reasons), "peak_bytes": peak,
            "longest_seed": max(map(len, seeds)), "seconds": round(time.perf_counter() - begin, 1)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    count = parser.parse_args().count
    result = {
        "messages": attack(lambda data: decode(data, run="r" * 32, limit=1 << 20), messages(), count),
        "envelopes": attack(unpack, envelopes(), count),
    }
    for name, found in result.items():
        print(f"{name:<10} {found}")
    write("fuzz", result)


if __name__ == "__main__":
    main()
