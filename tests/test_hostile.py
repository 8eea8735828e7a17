"""Nothing received is trusted: a bad client is left out and the others go on; a client refuses a bad server by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from federations import build as build_federation
from federations import small

from h2tune.client import Client, LostStateError
from h2tune.config import Experiment
from h2tune.core.packing import pack_core
from h2tune.core.slots import SLOTS
from h2tune.participant.base_models import ModelPool
from h2tune.protocol.codec import Message, Payload, ProtocolError, decode, encode
from h2tune.protocol.schemas import ClientFacts, FinalScores, RoundReport, Scores, read
from h2tune.server import Server
from h2tune.session import Status
from h2tune.transport.access import PUT_OUT

TRAINING = {"steps": 1, "batch_size": 2, "warmup": 0}
QUICK: dict[str, Any] = {"rounds": 1, "training": TRAINING, "evaluation": {"every": 9}, "rank": 4}
POOL = ModelPool("cpu")  # frozen weights are read once


def build(experiment: Experiment, folder: Path, change: Any = None) -> tuple[Server, dict[str, Client]]:
    """As in `federations`, on models that are in memory already."""
    POOL.release()
    return build_federation(experiment, folder, change, POOL)


def of_c0(change: Callable[[Message], None]) -> Callable[[list[tuple[str, Any]]], Iterator[tuple[str, Any]]]:
    """What `build` does to the answers on their way: c0's messages are changed."""

    def spoil(answers: list[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        for name, data in answers:
            message = decode(data)
            if name == "c0":
                change(message)
            yield name, encode(message)

    return spoil


@pytest.mark.parametrize("damage", ["flip a byte", "foreign run", "not finite", "other tensors"])
def test_a_bad_update_excludes_its_client_and_the_others_go_on(damage: str, tmp_path: Path) -> None:
    def spoil(answers: list) -> list:
        out = []
        for name, data in answers:
            message = decode(data)
            if message.kind == "train" and name == "c1":
                if damage == "flip a byte":
                    data = data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]
                elif damage == "foreign run":
                    message.run = "another"
                    data = encode(message)
                elif damage == "not finite":
                    message.payload.tensors["values"][0] = torch.inf
                    data = encode(message)
                else:
                    message.payload.tensors["extra"] = torch.zeros(1)
                    data = encode(message)
            out.append((name, data))
        return out

    server, _ = build(small(**QUICK | {"rounds": 2}), tmp_path / "run", spoil)
    server.run()
    assert server.round == 2
    assert server.members["c1"].standing.startswith("stopped: ")
    assert server.members["c0"].final is not None
    events = (tmp_path / "run" / "events.jsonl").read_text()
    assert "client_excluded" in events


NAMED = {"base": "scores", "final": "final scores"}
NONSENSE = [
    None,
    3,
    "x",
    [],
    {},
    {"loss": {"shared": "low"}},
    {"metric": "high", "nats": 1.0},
    {"loss": {}, "seconds": -1},
]


SAID_OF_ITSELF = [("join", "facts", ClientFacts), ("join", "base", Scores), ("train", "report", RoundReport),
                  ("finish", "final", FinalScores)]  # fmt: skip


@pytest.mark.parametrize(("kind", "key", "schema"), SAID_OF_ITSELF, ids=str)
@pytest.mark.parametrize("nonsense", NONSENSE, ids=str)
def test_what_a_client_says_of_itself_must_be_what_the_server_reads(
    kind: str, key: str, schema: Any, nonsense: Any
) -> None:
    with pytest.raises(ProtocolError, match=f"its {NAMED.get(key, key)} cannot be read"):
        read(schema, nonsense)


@pytest.mark.parametrize(("kind", "key", "schema"), SAID_OF_ITSELF, ids=str)
@pytest.mark.parametrize("nonsense", [None, {"loss": {"shared": "low"}}], ids=str)
def test_what_a_client_says_of_itself_cannot_stop_the_server(
    kind: str, key: str, schema: Any, nonsense: Any, tmp_path: Path
) -> None:
    def change(message: Message) -> None:
        if message.kind == kind:
            message.payload.meta[key] = nonsense

    server, _ = build(small(**QUICK), tmp_path, of_c0(change))
    server.run()
    assert server.members["c0"].standing.startswith(f"stopped: its {NAMED.get(key, key)} cannot be read")
    assert server.members["c1"].final and server.round == 1


INTRODUCTIONS = [
    ("depth", 10**9, "introduction cannot be read: depth"),  # the core would not fit into any memory
    ("depth", None, "introduction cannot be read: depth"),
    ("slots", ["q", "x"], "introduction cannot be read: slots"),
    ("rank", 5, "rank 5 is above the core's, 4"),
    ("keep", -1, "introduction cannot be read: keep"),
    ("digest", ["a"], "introduction cannot be read: digest"),
    ("fingerprint", "a/b", "introduction cannot be read: fingerprint"),
    ("maps", [[1]], "introduction cannot be read: maps"),
    ("slots", ["q", "any"], "slots that do not belong"),
]


# Co-LoRA has no core of a given rank, and only anchor frames have a digest.
UNREAD = {"h2tune": (), "colora": ("rank 5", "do not belong", "digest"), "fedsb": ("digest",)}


@pytest.mark.parametrize(
    ("method", "key", "value", "says"),
    [(m, *case) for m, unread in UNREAD.items() for case in INTRODUCTIONS if not any(u in case[2] for u in unread)],
    ids=str,
)
def test_an_introduction_that_cannot_be_excludes_its_client_and_the_others_begin(
    method: str, key: str, value: Any, says: str, tmp_path: Path
) -> None:
    def change(message: Message) -> None:
        if message.kind == "join":
            message.payload.meta[key] = value

    experiment = small(**QUICK, method={"name": method})
    server, _ = build(experiment, tmp_path, of_c0(change))
    server.run()
    assert says in server.members["c0"].standing, server.members["c0"].standing
    assert server.members["c1"].final and server.round == 1


def test_an_introduction_without_what_the_method_needs_is_no_introduction(tmp_path: Path) -> None:
    def change(message: Message) -> None:
        if message.kind == "join":
            del message.payload.meta["depth"], message.payload.meta["slots"]

    server, _ = build(small(**QUICK), tmp_path, of_c0(change))
    server.run()
    assert server.members["c0"].standing == "stopped: its introduction lacks depth, slots"
    assert server.members["c1"].final


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("rows", "did not use the same anchors"),
        ("ragged", "cannot be read"),
        ("name", "cannot be read"),
        ("loud", "columns longer than"),
        ("empty", "has no column, or more"),
        ("wide", "has no column, or more"),
        ("fewer blocks", "not those of"),
    ],
)
def test_bases_that_cannot_be_exclude_their_client_and_the_others_begin(
    damage: str, says: str, tmp_path: Path
) -> None:
    def change(message: Message) -> None:
        if message.kind == "describe":
            sent = message.payload.tensors
            if damage == "rows":
                message.payload.tensors = {key: u[:-1].contiguous() for key, u in sent.items()}
            elif damage == "ragged":
                sent["in.0.attention"] = sent["in.0.attention"][:-1].contiguous()
            elif damage == "name":
                sent["x"] = torch.zeros(2, 1)
            elif damage in ("empty", "wide"):
                old = sent["in.0.attention"]
                sent["in.0.attention"] = old[:, :0].contiguous() if damage == "empty" else old.repeat(1, 9)
            elif damage == "fewer blocks":
                message.payload.tensors = {key: u for key, u in sent.items() if ".0." in key}
            else:
                sent["in.0.attention"] = sent["in.0.attention"] * 10

    server, _ = build(small(clients=3, **QUICK), tmp_path, of_c0(change))
    server.run()
    assert says in server.members["c0"].standing, server.members["c0"].standing
    assert all(server.members[name].final for name in ("c1", "c2")) and server.method.S.abs().sum() > 0


def test_who_says_another_number_of_examples_than_before_is_excluded(tmp_path: Path) -> None:
    def change(message: Message) -> None:
        if message.kind == "train":
            message.examples = 10_000_000

    server, _ = build(small(**QUICK), tmp_path, of_c0(change))
    server.run()
    assert (
        "it reports 10000000 training examples but reported 16 when it joined" in server.members["c0"].standing
        and server.members["c1"].final
    )


def test_another_describes_the_anchors_where_the_first_cannot(tmp_path: Path) -> None:
    """Two clients on one base: one of them is asked; its answer is rubbish, and the other one is asked."""

    def change(message: Message) -> None:
        if message.kind == "describe":
            message.payload.tensors = {"x": torch.zeros(2, 1)}

    server, _ = build(small(clients=2, same_model=True, **QUICK), tmp_path, of_c0(change))
    server.run()
    assert "bases cannot be read" in server.members["c0"].standing
    assert server.members["c1"].final and server.method.S.abs().sum() > 0


@pytest.mark.parametrize("damage", ["rank", "nothing"])
def test_colora_goes_on_with_another_pivot(damage: str, tmp_path: Path) -> None:
    def change(message: Message) -> None:
        if message.kind == "join":
            message.payload.meta["depth"] = 512  # the deepest model is the pivot
        if message.kind == "describe":
            sent = {k: t[:, :3].contiguous() for k, t in message.payload.tensors.items()}
            message.payload.tensors = sent if damage == "rank" else {}

    server, _ = build(small(clients=3, method={"name": "colora"}, **QUICK), tmp_path, of_c0(change))
    server.run()
    assert "its guide" in server.members["c0"].standing
    assert server.method.pivot != "c0" and all(server.members[name].final for name in ("c1", "c2"))


def test_a_twin_that_holds_its_factors_back_excludes_itself_and_nobody_else(tmp_path: Path) -> None:
    """Who answers first must not say what the updates of its peers look like."""

    def change(message: Message) -> None:
        if message.kind == "train":
            tensors = message.payload.tensors
            message.payload.tensors = {k: t for k, t in tensors.items() if not k.startswith("own.")}

    server, _ = build(small(clients=3, same_model=True, method={"name": "colora"}, **QUICK), tmp_path, of_c0(change))
    server.run()
    assert "lacks the factors that it shares" in server.members["c0"].standing
    assert all(server.members[name].final for name in ("c1", "c2"))


def test_an_update_of_entries_that_are_not_the_clients_excludes_its_sender(tmp_path: Path) -> None:
    """It alone would say what the others then read there."""

    def change(message: Message) -> None:
        if message.kind == "train":
            whole = torch.ones(server.method.S.shape)
            message.payload.tensors = pack_core(whole, whole.bool(), masked=False)

    server, _ = build(small(clients=3, depth=9, **QUICK), tmp_path, of_c0(change))
    server.run()
    assert "covers other entries than its depth" in server.members["c0"].standing
    assert all(server.members[name].final for name in ("c1", "c2"))


def test_a_key_that_is_none_excludes_its_sender_and_nobody_else(tmp_path: Path) -> None:
    pytest.importorskip("Crypto", reason="PyCryptodome is not installed: pip install -e '.[secure]'")

    def change(message: Message) -> None:
        if message.kind == "keys":
            message.payload.meta["mask"] = "00" * 32

    server, _ = build(small(clients=4, secure_aggregation={"threshold": 3}, **QUICK), tmp_path, of_c0(change))
    server.run()
    assert "public key" in server.members["c0"].standing
    assert all(server.members[name].final for name in ("c1", "c2", "c3"))


SAID = [
    ("welcome", {"depth": "deep", "slots": ["q"]}, "depth"),
    ("welcome", {"depth": 10**9, "slots": ["q"]}, "depth"),
    ("welcome", {"depth": 2, "slots": ["z"]}, "unknown slots"),
    ("welcome", {}, "depth"),
    ("welcome", {"depth": 2, "slots": ["q"]}, "lacks this client's"),
    ("welcome", {"depth": 2, "slots": list(SLOTS)}, "frames lack attention"),
    ("shares", {"publics": {"c0": 3}}, "publics"),
    ("shares", {}, "publics"),
    ("train", {"sealed": ["x"]}, "sealed"),
    ("unmask", {"answered": "c0"}, "answered"),
]


@pytest.mark.parametrize(("kind", "meta", "says"), SAID, ids=str)
def test_nonsense_of_a_server_is_refused_by_name(kind: str, meta: dict[str, Any], says: str, tmp_path: Path) -> None:
    pytest.importorskip("Crypto", reason="PyCryptodome is not installed: pip install -e '.[secure]'")
    method = {"name": "h2tune", "frames": "anchor" if kind == "welcome" else "random"}
    _, clients = build(small(clients=3, secure_aggregation={}, method=method), tmp_path)
    client = clients["c0"]

    def say(kind: str, meta: dict[str, Any]) -> bytes:
        return client.handle(encode(Message(kind, "r", 1, "c0", "h2tune", Payload(meta=meta))))

    say("join", {"method": client.kind.actions(client.method.settings)})
    if kind != "welcome":
        say("welcome", {"depth": 2, "slots": list(client.context.layout.slots)})
        say("keys", {})
    with pytest.raises(ProtocolError, match=says):
        say(kind, meta)


@pytest.mark.parametrize(
    "kind", ["describe", "welcome", "keys", "train", "finish", "rejoin", "delete", "handle", "__init__"]
)
def test_what_comes_before_its_time_is_refused(kind: str, tmp_path: Path) -> None:
    _, clients = build(small(clients=1), tmp_path)
    with pytest.raises(
        (ProtocolError, LostStateError),
        match=r"before this client is set up|there is no action|no saved state|the value of '",
    ):
        clients["c0"].handle(encode(Message(kind, "r", 1, "c0", "h2tune")))


@pytest.mark.parametrize("method", ["fedsb", "fedmkt"])
def test_what_the_server_passes_on_cannot_end_the_others(method: str, tmp_path: Path) -> None:
    def change(message: Message) -> None:
        if message.kind == "describe":
            message.payload.tensors = {}
        if message.kind == "train" and method == "fedmkt":
            message.payload.tensors["losses"] = torch.zeros(1)

    same = method == "fedsb"  # bases are passed on to clients with the same model
    asked: dict[str, Any] = {"name": method} | ({} if same else {"sentences": 4})
    experiment = small(
        clients=3, same_model=same, method=asked, **QUICK | {"rounds": 2, "training": TRAINING | {"steps": 2}}
    )
    server, _ = build(experiment, tmp_path, of_c0(change))
    server.run()
    assert server.round == 2 and all(server.members[name].final for name in ("c1", "c2"))
    if same:
        assert "are missing or of another shape" in server.members["c0"].standing


def test_a_client_that_ends_in_the_coordinators_words_is_not_admitted_again(tmp_path: Path) -> None:
    server, _ = build(small(**QUICK), tmp_path)
    server.session.exclude("c0", PUT_OUT, 1)  # its own reason: nobody has revoked it
    server.session.put_out(1)
    assert server.members["c0"].status is Status.EXCLUDED

    server.session.transport.revoked = lambda: {"c1"}
    server.session.put_out(1)
    assert (server.members["c1"].status, server.members["c1"].reason) == (Status.EXCLUDED, PUT_OUT)
    server.session.transport.revoked = tuple
    server.session.put_out(1)
    assert server.members["c1"].status is Status.WAITING and server.members["c0"].status is Status.EXCLUDED
