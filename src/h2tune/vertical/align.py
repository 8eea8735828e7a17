"""Which rows of the parties belong to the same person: keyed hashes of ids, and from then on only positions."""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from h2tune.errors import H2TuneError
from h2tune.vertical.spelling import normalise

DECIMALS = "without the .0 of numbers"
FORMS = ("without punctuation", DECIMALS, "by their digits alone", "by their digits without leading zeros")
DIGEST = 16  # bytes; a collision among 10^9 ids has a chance of 10^-21


class AlignmentError(H2TuneError, ValueError):
    """The parties' rows cannot be matched; the text says why and what to do."""


def digests(ids: list[str], salt: str) -> np.ndarray:
    """Keyed hashes of normalised ids (n x 16 bytes): HMAC-SHA256, cut."""
    key = salt.encode()
    joined = b"".join(hmac.digest(key, normalise(i).encode(), hashlib.sha256)[:DIGEST] for i in ids)
    return np.frombuffer(joined, np.uint8).reshape(len(ids), DIGEST)


def as_keys(found: np.ndarray) -> np.ndarray:
    """Digests as one sortable value a row."""
    return np.ascontiguousarray(found).view(f"S{DIGEST}").ravel() if len(found) else np.zeros(0, f"S{DIGEST}")


def check_ids(ids: list[str | None], who: str) -> list[str]:
    """Ids of a table, each once and none missing.

    Raises:
        AlignmentError: naming rows, and ids only by their number of occurrences: they are private.
    """
    if gaps := [row for row, value in enumerate(ids, 1) if value is None]:
        raise AlignmentError(f"{who}: {len(gaps)} rows have no id, the first is row {gaps[0]}.")
    known = [value for value in ids if value is not None]
    seen: dict[str, int] = {}
    doubles: list[tuple[int, int, bool]] = []
    for row, value in enumerate(known, 1):
        form = normalise(value)
        if form in seen:
            doubles.append((seen[form], row, known[seen[form] - 1] == value))
        else:
            seen[form] = row
    if doubles:
        first, second, same = doubles[0]
        how = "have the same id" if same else "have ids that differ only in case, spaces or character forms"
        raise AlignmentError(
            f"{who}: ids are not unique: {len(doubles)} rows repeat an id; rows {first} and {second} {how}."
            " Keep one row for each person."
        )
    return known


@dataclass(frozen=True)
class Matching:
    """Who has which aligned person.

    Attributes:
        order: digests of the aligned people, sorted (N x 16).
        present: who has them (N x K, bool); the active party comes first and has all of them.
    """

    order: np.ndarray
    present: Tensor


def match(active: np.ndarray, passive: dict[str, np.ndarray]) -> Matching:
    """People that the active party shares with at least one other, in the order of their digests."""
    mine = np.sort(as_keys(active))
    columns = [np.isin(mine, as_keys(theirs)) for theirs in passive.values()]
    shared = np.any(columns, axis=0) if columns else np.ones(len(mine), bool)
    order = mine[shared]
    present = np.stack([np.ones(len(order), bool), *(column[shared] for column in columns)], 1)
    return Matching(_bytes(order), torch.from_numpy(present))


def positions(own: np.ndarray, order: np.ndarray) -> Tensor:
    """The own row of each aligned person (N, int64), -1 where there is none."""
    keys, wanted = as_keys(own), as_keys(order)
    if not len(keys):
        return torch.full((len(wanted),), -1)
    ranks = np.argsort(keys, kind="stable")
    found = ranks[np.minimum(np.searchsorted(keys[ranks], wanted), len(keys) - 1)]
    return torch.from_numpy(np.where(keys[found] == wanted, found, -1).astype(np.int64))


def _bytes(keys: np.ndarray) -> np.ndarray:
    # A digest may end in zero bytes, which numpy's text type hides but keeps in memory.
    return np.frombuffer(keys.tobytes(), np.uint8).reshape(len(keys), DIGEST)


def looser(identity: str, form: str) -> str:
    """An id in one of the looser forms of `FORMS`."""
    if form == DECIMALS:  # a program that takes ids for numbers writes 12 as 12.0 once a cell of the column is empty
        return re.sub(r"\.0+$", "", normalise(identity))
    plain = "".join(c for c in normalise(identity) if c.isalnum())
    if form == "without punctuation":
        return plain
    digits = "".join(c for c in plain if c.isdigit())
    return digits if form == "by their digits alone" else digits.lstrip("0")


def nothing_in_common(party: str, rows: int, active: str, active_rows: int, near: dict[str, int]) -> AlignmentError:
    """The error for two parties without a common id; the likeliest cause first.

    Args:
        near: for each looser form of ids, how many would be common in that form; empty where that was not compared.
    """
    counts = "; ".join(f"{count:,} {form}" for form, count in near.items())
    found = f"Compared as hashes of looser forms, these would be common: {counts}" if near else "`psi` does not tell"
    return AlignmentError(
        f"{party} and {active} have no id in common ({rows:,} and {active_rows:,} rows).\n"
        "  1. The salt may differ: all parties need the same one (`align.salt`, or the file in the kit).\n"
        f"  2. The ids may be written differently. {found}.\n"
        "  3. `align.by` may name another column than the id."
    )
