"""Hostile messages: mutated envelopes and messages, by the hundred thousand. All are refused, memory stays bounded.

The third part is a client with a valid certificate that turns against its server: mutated envelopes, answers with made-up
numbers, hellos of made-up processes, replays of everything it ever sent, and stops and requests that only servers write.
They go through the server's own end of the network while rounds are held with an honest client, which must be served.

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

from h2tune.config import NetworkConfig
from h2tune.protocol.codec import Message, Payload, ProtocolError, decode, encode
from h2tune.session import Exchanges, Place, Session, Status
from h2tune.transport.envelope import PROTOCOL, Envelope, unpack
from h2tune.transport.network import Network
from h2tune.version import __version__

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
    said = {"federation": "f" * 32, "process": "i" * 16, "version": "1", "protocol": PROTOCOL}
    hello = Envelope("hello", said | {"busy": False, "doing": {"step": 3}}).pack()
    return [hello, Envelope("answer", {"number": "n" * 16}, b"body" * 100).pack()]


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


class Besieged:
    """The server's channel between an honest client and a hostile one; time passes with every look into it."""

    ports: list[str] = []

    def __init__(self, rng: random.Random, count: int) -> None:
        self.rng, self.left, self.now = rng, count, 0.0
        self.inbox: list[tuple[str, bytes]] = []
        self.heard: list[bytes] = envelopes()  # what the hostile client has ever sent or received
        self.counts: Counter[str] = Counter()

    def clock(self) -> float:
        return self.now

    def address(self, name: str) -> str:
        return "10.0.0.66"

    def send(self, to: str, data: bytes, done: Any = lambda error: None) -> None:
        envelope = unpack(data)
        if to == "honest" and envelope.kind == "request":
            asked = decode(envelope.body)
            body = encode(asked.reply(asked.kind, Payload(), "honest", "h", 1))
            self.inbox.append(("honest", Envelope("answer", {"number": envelope.fields["number"]}, body).pack()))
        elif to == "hostile":
            self.heard.append(data)
            self.heard = self.heard[-200:]
        done("")

    def hello(self, name: str, process: str) -> bytes:
        said = {"federation": "f" * 32, "process": process, "version": __version__, "protocol": PROTOCOL}
        return Envelope("hello", said | {"busy": False, "doing": {}}).pack()

    def receive(self, seconds: float) -> tuple[str, bytes] | None:
        self.now += 0.002
        if self.inbox:
            return self.inbox.pop(0)
        if int(self.now * 2) != int((self.now - 0.002) * 2):
            return "honest", self.hello("honest", "h")
        if not self.left:
            self.now += seconds
            return None
        self.left -= 1
        return "hostile", self.attack()

    def attack(self) -> bytes:
        rng = self.rng
        kind = rng.choice(["mutated", "replay", "process", "number", "server's kind", "federation"])
        self.counts[kind] += 1
        if kind == "mutated":
            return mutate(rng.choice(self.heard), self.heard, rng)
        if kind == "replay":
            return rng.choice(self.heard)
        if kind == "process":
            return self.hello("hostile", f"{rng.getrandbits(64):016x}")
        if kind == "number":
            body = rng.choice([b"", b"x" * 1000, *(unpack(d).body for d in self.heard[-3:])])
            return Envelope("answer", {"number": f"{rng.getrandbits(64):016x}"}, body).pack()
        if kind == "federation":
            return self.hello("hostile", "p").replace(b"f" * 32, b"e" * 32)
        fields = {"reason": "go away", "finished": True, "process": ""}
        return Envelope("stop", fields).pack() if rng.random() < 0.5 else Envelope("request", {"number": "1", "process": "h"}
                                                                                   ).pack()  # fmt: skip


def besiege(count: int) -> dict[str, Any]:
    """Rounds with an honest client while another one attacks; what it cost."""
    channel, events = Besieged(random.Random(0), count), Counter()
    log = type("Log", (), {"event": lambda self, event, text, **fields: events.update([event])})()
    config = NetworkConfig(silence=20, deadline=120, gather=30)
    network = Network(channel, ["honest", "hostile"], "f" * 32, config, log.event, channel.clock)
    session = Session("r" * 32, "toy", ["honest", "hostile"], network, log, 1 << 20,
                      lambda names: (0, dict.fromkeys(names, Payload())))  # fmt: skip
    begin, rounds, served, missed = time.perf_counter(), 0, 0, 0
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    while channel.left:
        rounds += 1
        here = session.returned()
        session.rejoin(here)
        new = [name for name in here if session.members[name].status is Status.WAITING]
        for reply in session.request("join", dict.fromkeys(new, Payload())):
            session.activate(reply.client)
        active = session.with_status(Status.ACTIVE)
        found = Exchanges(session, Place(rounds))("train", dict.fromkeys(active, Payload()))
        missed += bool(served) and "honest" not in found  # before it has joined it cannot be served
        served += "honest" in found
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {"letters": count, "kinds": dict(channel.counts), "rounds": rounds, "honest_served": served, "honest_missed": missed,
            "events": dict(events), "simulated_seconds": round(channel.now), "kept_bytes": after - before,
            "peak_bytes": peak, "hostile_is": session.members["hostile"].standing,
            "seconds": round(time.perf_counter() - begin, 1)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    count = parser.parse_args().count
    result = {
        "messages": attack(lambda data: decode(data, run="r" * 32, limit=1 << 20), messages(), count),
        "envelopes": attack(unpack, envelopes(), count),
        "a client with a certificate": besiege(count),
    }
    for name, found in result.items():
        print(f"{name:<27} {found}")
    write("fuzz", result)


if __name__ == "__main__":
    main()
