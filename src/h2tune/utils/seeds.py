"""One seed for a run, and derived ones for every client, round and purpose: the order of clients changes nothing."""

from __future__ import annotations

import hashlib


def derive(seed: int, *names: object) -> int:
    """A seed of 63 bits for the purpose that ``names`` spell out."""
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
