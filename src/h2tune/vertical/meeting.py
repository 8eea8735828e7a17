"""Before the first round: who shares which people with the active party, and which classes there are."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from h2tune.protocol.codec import Payload
from h2tune.vertical.agreed import settings
from h2tune.vertical.align import (
    FORMS,
    AlignmentError,
    Matching,
    as_keys,
    digests,
    looser,
    match,
    nothing_in_common,
    positions,
)  # fmt: skip
from h2tune.vertical.config import VerticalConfig
from h2tune.vertical.exchange import Exchange, PartyGone
from h2tune.vertical.exposure import Sizes
from h2tune.vertical.parties import PartyData, Rows
from h2tune.vertical.psi import Requester


@dataclass(frozen=True)
class Meeting:
    """What the parties agreed on.

    Attributes:
        passive: names of the passive parties, in order.
        classes: names of the classes, as the active party knows them.
        rows: the active party's row of each aligned person (N).
        present: who has each aligned person (N x K, bool).
        test_rows, test_present: the same for the test people.
        sizes: rows of each passive party.
    """

    passive: list[str]
    classes: list[str]
    rows: Tensor
    present: Tensor
    test_rows: Tensor
    test_present: Tensor
    sizes: list[int]


def meet(config: VerticalConfig, data: PartyData, salt: str, exchange: Exchange) -> Meeting:
    """Match people and classes with every passive party, and tell each its positions.

    Raises:
        AlignmentError: if a party shares nobody, or the aligned rows hold one class only.
    """
    asked = [*exchange.session.members]
    requesters = _requesters(config, data, asked)
    said = settings(config)
    answers = exchange.ask("join", {name: replace(_request(requesters.get(name)), texts=said) for name in asked})
    if excluded := exchange.excluded:
        name, reason = next(iter(excluded.items()))
        raise AlignmentError(f"{name} cannot take part: {reason}")
    if missing := [name for name in asked if name not in answers]:
        raise PartyGone(missing)
    train = {name: _keys(data.train, answers[name], requesters.get(name), "") for name in asked}
    test = {name: _keys(data.test, answers[name], requesters.get(name), "test_") for name in asked}
    sizes = [_rows_of(name, answers[name]) for name in asked]
    for name in asked:
        _check_shared(name, data, train[name], sizes[asked.index(name)], salt, exchange, config.align.how)
    classes = _classes(config, data, salt, {name: answers[name].tensors.get("labels") for name in asked})
    own = data.train.keys
    if not asked:  # with nobody to share people with, those that can be learnt from
        own = own[[label is not None for label in data.train.labels]]
    found = match(own, train)
    rows = positions(data.train.keys, found.order)
    tests = data.test.keys if data.test else data.train.keys[:0]
    test_present = torch.stack(
        [
            torch.ones(len(tests), dtype=torch.bool),
            *(torch.from_numpy(np.isin(as_keys(tests), as_keys(test[n]))) for n in asked),
        ],
        1,
    )
    meeting = Meeting(asked, classes, rows, found.present, torch.arange(len(tests)), test_present, sizes)
    _check_labels(config, data, rows)
    exchange.sizes = Sizes(len(classes), config.training.dim, min(config.training.batch, len(rows)))
    _tell_positions(config, data, meeting, found, tests, digests(classes, salt), exchange)
    return meeting


def _tell_positions(
    config: VerticalConfig, data: PartyData, meeting: Meeting, found: Matching, tests: np.ndarray, keys: np.ndarray,
    exchange: Exchange,
) -> None:  # fmt: skip
    """Tell every party which people are aligned; it answers which classes it can name beside them."""
    answers = exchange.ask_all("align", {
        name: _positions(found.order, found.present[:, k], tests, meeting.test_present[:, k], keys)
        for k, name in enumerate(meeting.passive, 1)
    })  # fmt: skip
    if config.method.labels:  # a method that leaves labels of others unused cannot know such classes anyway
        names = {key.tobytes(): name for key, name in zip(keys, meeting.classes, strict=True)}
        left = {names.get(key.tobytes()) for answer in answers.values() for key in answer.tensors["labels"].numpy()}
        _check_known(config, data, meeting.classes, left | set(data.train.labels), " beside the people whom it shares")


def _rows_of(name: str, answer: Payload) -> int:
    """Rows that a party says it has; with hashed ids it must have sent as many hashes."""
    rows = int(answer.meta.get("rows", 0))
    sent = len(answer.tensors["keys"]) if "keys" in answer.tensors else rows
    if rows < 1 or sent != rows:
        raise AlignmentError(
            f"{name} cannot take part: it says that it has {rows:,} rows and sent {sent:,} hashed ids."
        )
    return rows


def _requesters(
    config: VerticalConfig, data: PartyData, names: list[str]
) -> dict[str, tuple[Requester, Requester | None]]:
    if config.align.how != "psi":
        return {}
    return {n: (Requester(data.train.ids), Requester(data.test.ids) if data.test else None) for n in names}


def _request(pair: tuple[Requester, Requester | None] | None) -> Payload:
    if pair is None:
        return Payload()
    tests = {} if pair[1] is None else {"test_request": pair[1].request()}
    return Payload({"request": pair[0].request()} | tests)


def _keys(
    own: Rows | None, answer: Payload, pair: tuple[Requester, Requester | None] | None, prefix: str
) -> np.ndarray:
    """Hashed ids that a party has; after a private intersection only those that are shared."""
    nobody = np.zeros((0, 16), np.uint8)
    if pair is None:
        return answer.tensors[f"{prefix}keys"].numpy() if f"{prefix}keys" in answer.tensors else nobody
    requester = pair[1 if prefix else 0]
    if own is None or requester is None or f"{prefix}setup" not in answer.tensors:
        return nobody
    return own.keys[requester.shared(answer.tensors[f"{prefix}setup"], answer.tensors[f"{prefix}response"])]


def _check_shared(
    name: str, data: PartyData, keys: np.ndarray, rows: int, salt: str, exchange: Exchange, how: str
) -> None:
    if np.isin(as_keys(keys), as_keys(data.train.keys)).any():
        return
    near: dict[str, int] = {}
    # Where a private intersection was agreed, no hashes of ids are asked for.
    for form in FORMS if how == "hmac" else ():
        theirs = exchange.ask_all("join", {name: Payload(meta={"form": form})})[name].tensors["keys"].numpy()
        mine = digests([looser(i, form) for i in data.train.ids], salt)
        near[form] = len(np.intersect1d(as_keys(theirs), as_keys(mine)))
    raise nothing_in_common(name, rows, data.name, len(data.train), near)


def _classes(config: VerticalConfig, data: PartyData, salt: str, spoken: dict[str, Tensor | None]) -> list[str]:
    """All classes: the declared ones, or those of the active party's rows.

    Raises:
        AlignmentError: if somebody labels rows with another class, or nobody can know one of them.
    """
    own = sorted({label for label in data.train.labels if label is not None})
    classes = list(config.label.classes or own)
    if unknown := [c for c in own if c not in classes]:
        raise AlignmentError(f"{data.name}: the label {unknown[0]!r} is not among label.classes.")
    known = {key.tobytes(): name for name, key in zip(classes, digests(classes, salt), strict=True)}
    held = set(own)
    for party, keys in spoken.items():
        for row in (keys if keys is not None else torch.zeros(0, 16)).numpy():
            if row.tobytes() not in known and config.label.classes:
                raise AlignmentError(
                    f"{party} labels rows with a class that is not among label.classes"
                    f" (hash {row.tobytes().hex()[:8]}); add its name there, or correct the party's labels."
                )
            if row.tobytes() not in known:
                raise AlignmentError(
                    f"{party} labels rows with a class that {data.name} has no row of"
                    f" (hash {row.tobytes().hex()[:8]}). Name all classes in label.classes."
                )
            held.add(known[row.tobytes()])
    _check_known(config, data, classes, held)
    return classes


def _check_known(
    config: VerticalConfig, data: PartyData, classes: list[str], held: Collection[str | None], where: str = ""
) -> None:
    """Raise AlignmentError where a class is neither described nor among those that somebody has rows of."""
    if config.passive and config.method.unseen == "named" and (lost := [c for c in classes if c not in held]):
        raise AlignmentError(
            f"Nobody can know the class {lost[0]!r}: {data.name} has no row of it, and no other party labels"
            f" {config.exposure.min_count} rows or more with it{where}. Take it out of label.classes, let a party label"
            " rows (`labels`), or describe it (`unseen: described`)."
        )


def _check_labels(config: VerticalConfig, data: PartyData, rows: Tensor) -> None:
    """Every aligned row needs a label, and they need two classes."""
    labels = [data.train.labels[i] for i in rows.tolist()]
    if None in labels:
        raise AlignmentError(
            f"{data.name}: {labels.count(None)} aligned rows have no label in {config.label.column!r}."
        )
    if len(set(labels)) < 2:
        raise AlignmentError(
            f"All {len(labels)} aligned rows have the same label; at least two classes are needed to learn from."
        )


def _positions(
    order: np.ndarray, present: Tensor, tests: np.ndarray, test_present: Tensor, classes: np.ndarray
) -> Payload:
    def part(keys: np.ndarray, here: Tensor) -> tuple[Tensor, Tensor]:
        places = torch.nonzero(here)[:, 0]
        return torch.from_numpy(keys[places.numpy()].copy()), places.int()

    (keys, places), (test_keys, test_places) = part(order, present), part(tests, test_present)
    tensors = {"keys": keys, "places": places, "test_keys": test_keys, "test_places": test_places,
               "classes": torch.from_numpy(classes.copy())}  # fmt: skip
    return Payload(tensors, {"rows": len(order), "test_rows": len(tests)})
