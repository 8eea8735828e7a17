"""What a client sends is not trusted: a bad one is left out, the others and the server go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from federations import Tampering, build, small

from h2tune.wire import decode, encode


@pytest.mark.parametrize("damage", ["flip a byte", "foreign run", "not finite", "other tensors"])
def test_a_bad_update_excludes_its_client_and_the_others_go_on(damage: str, tmp_path: Path) -> None:
    def spoil(answers: list) -> list:
        out = []
        for name, data in answers:
            message = decode(data)
            if message.kind == "update" and name == "c1":
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

    server, _ = build(small(rounds=2), tmp_path / "run", spoil)
    server.run()
    assert server.round == 2
    assert server.members["c1"].status.startswith("stopped: ")
    assert server.members["c0"].final is not None
    events = (tmp_path / "run" / "events.jsonl").read_text()
    assert "client_excluded" in events


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


@pytest.mark.parametrize(
    ("kind", "key"), [("joined", "facts"), ("joined", "base"), ("update", "record"), ("result", "final")]
)
@pytest.mark.parametrize("nonsense", NONSENSE, ids=str)
def test_what_a_client_says_of_itself_cannot_stop_the_server(
    kind: str, key: str, nonsense: Any, tmp_path: Path
) -> None:
    def spoil(answers: list[tuple[str, Any]]) -> Any:
        for name, data in answers:
            message = decode(data)
            if name == "c0" and message.kind == kind:
                message.payload.meta[key] = nonsense
            yield name, encode(message)

    server, _ = build(small(rounds=1, training={"steps": 1, "batch_size": 2}), tmp_path)
    server.transport = Tampering(server.transport, spoil)
    server.run()
    assert server.members["c0"].status.startswith(f"stopped: its {'figures' if key == 'base' else key} cannot be read")
    assert server.members["c1"].final and server.round == 1
