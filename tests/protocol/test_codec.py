"""Messages: what goes in comes out, and whatever else arrives is refused in words, before it costs memory."""

from __future__ import annotations

import io
import json
import pickle
import struct
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from torch import Tensor

from h2tune.protocol import codec as wire
from h2tune.protocol.codec import EXAMPLES, LARGEST, Message, Payload, ProtocolError, decode, encode, expect

DTYPES = [
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.text("abcdefghij._0123456789é漢", min_size=1, max_size=12).filter(lambda name: name != "_")


@st.composite
def tensors(draw: DrawFn) -> Tensor:
    dtype, shape = draw(st.sampled_from(DTYPES)), draw(st.lists(st.integers(0, 4), max_size=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    return (torch.randn(shape, generator=generator) * 10).to(dtype)


@st.composite
def messages(draw: DrawFn) -> Message:
    payload = Payload(
        draw(st.dictionaries(NAMES, tensors(), max_size=3)),
        draw(st.dictionaries(st.text(max_size=5), PLAIN, max_size=3)),
    )
    text = st.text(max_size=12)
    return Message(
        draw(text),
        draw(text),
        draw(st.integers(-1, 10**6)),
        draw(text),
        draw(text),
        payload,
        draw(st.integers(0, EXAMPLES)),
    )


def equal(one: Message, two: Message) -> bool:
    mine, theirs = one.payload.tensors, two.payload.tensors
    fields = ("kind", "run", "round", "client", "method", "examples")
    return (
        all(getattr(one, f) == getattr(two, f) for f in fields)
        and one.payload.meta == two.payload.meta
        and mine.keys() == theirs.keys()
        and all(t.dtype == theirs[k].dtype and torch.equal(t, theirs[k]) for k, t in mine.items())
    )


def message(**changes: Any) -> Message:
    core = torch.linspace(-1, 1, 24).view(2, 3, 4)
    payload = Payload(
        {"values": core, "pairs": torch.tensor([7], dtype=torch.uint8)}, {"rank": 4, "rate": 0.1, "slots": ["q"]}
    )
    known = {"kind": "train", "run": "a-run", "round": 3, "client": "c", "method": "h2tune", "examples": 90}
    return Message(**known | {"payload": payload} | changes)


@given(messages())
def test_what_goes_in_comes_out(sent: Message) -> None:
    assert equal(decode(encode(sent), run=sent.run), sent)


def test_equal_messages_have_equal_bytes_and_no_code_in_them() -> None:
    data = encode(message())
    assert data == encode(message())
    (size,) = struct.unpack("<Q", data[:8])
    table = json.loads(data[8 : 8 + size])
    assert set(table) == {"__metadata__", "_", "pairs", "values"}
    assert list(table["__metadata__"]) == ["h2tune"]


def test_views_and_transposes_are_sent_as_they_read() -> None:
    big = torch.arange(20.0).view(4, 5)
    sent = message(payload=Payload({"t": big.T, "part": big[1:3, ::2], "same": big, "again": big}))
    assert equal(decode(encode(sent)), sent)


@settings(max_examples=150)
@given(st.data())
def test_damage_anywhere_is_noticed(data: st.DataObject) -> None:
    sent = message()
    good = encode(sent)
    kind = data.draw(st.sampled_from(["flip", "cut", "extend", "swap"]))
    if kind == "flip":
        place, bits = data.draw(st.integers(0, len(good) - 1)), data.draw(st.integers(1, 255))
        bad = good[:place] + bytes([good[place] ^ bits]) + good[place + 1 :]
    elif kind == "cut":
        bad = good[: data.draw(st.integers(0, len(good) - 1))]
    elif kind == "extend":
        bad = good + data.draw(st.binary(min_size=1, max_size=9))
    else:
        place, size = data.draw(st.integers(0, len(good) - 8)), data.draw(st.integers(1, 8))
        bad = good[:place] + data.draw(st.binary(min_size=size, max_size=size)) + good[place + size :]
    try:
        got = decode(bad)
    except ProtocolError:
        return
    assert equal(got, sent)


def test_every_single_bit_of_a_header_counts() -> None:
    """Not only the tensors: a flipped digit in `examples` would move the weights of a round."""
    sent = message(payload=Payload(meta={"rank": 4}))
    good = encode(sent)
    for place in range(len(good)):
        for bit in (0, 1, 4):
            bad = good[:place] + bytes([good[place] ^ 1 << bit]) + good[place + 1 :]
            try:
                assert equal(decode(bad), sent), (place, bit)
            except ProtocolError:
                continue


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(data)


def test_pickles_are_refused() -> None:
    buffer = io.BytesIO()
    torch.save({"values": torch.ones(3)}, buffer)
    for data in (buffer.getvalue(), pickle.dumps({"values": 1}), pickle.dumps(print)):
        with pytest.raises(ProtocolError):
            decode(data)


def forged(table: dict[str, Any], body: bytes = b"", header: dict[str, Any] | None = None) -> bytes:
    """Bytes in the form of a message, with any table of tensors and any header."""
    plain = {"schema": wire.SCHEMA, "kind": "k", "run": "r", "round": 0, "step": 0, "attempt": 0, "client": "c", "process": "p",
             "method": "m", "state": "s", "examples": 1, "meta": {}, "checksum": ""} | (header or {})  # fmt: skip
    text = json.dumps(table | {"__metadata__": {"h2tune": json.dumps(plain)}}).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(shape: Any, end: Any, dtype: str = "F32", start: Any = 0) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"t": entry([1 << 40], 1 << 42)}, "do not fill it exactly"),
        ({"t": entry([1 << 20, 1 << 20, 1 << 20], 4)}, "claims another size"),
        ({"t": entry([1] * 7, 4)}, "type or shape that is not allowed"),
        ({"t": entry([-1], -4)}, "not allowed"),
        ({"t": entry([1.0], 4)}, "not allowed"),
        ({"t": entry([True], 4)}, "not allowed"),
        ({"t": entry([1], 4, "F8_E4M3")}, "not allowed"),
        ({"t": entry([1], 4, "object")}, "not allowed"),
        ({"t": entry([1], 8, start=4)}, "cannot be read"),
        ({"t": {"dtype": "F32"}}, "header cannot be read"),
        ({"t": 3}, "header cannot be read"),
    ],
)
def test_tables_that_lie_are_refused_before_a_tensor_is_built(
    table: dict, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if says != "cannot be read":  # that one passes the arithmetic and is left to safetensors
        monkeypatch.setattr(wire, "load", lambda data: pytest.fail("a tensor was built"))
    with pytest.raises(ProtocolError, match=says):
        decode(forged(table, b"\0" * 4))


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ({"schema": 1}, "has schema 1, this version reads schema 2; use the same h2tune version on both sides"),
        ({"schema": 0}, "has schema 0"),
        ({"schema": "1"}, "no schema version"),
        ({"schema": True}, "no schema version"),
        ({"round": -2}, "negative"),
        ({"step": -1}, "negative"),
        ({"attempt": -1}, "negative"),
        ({"process": "x" * 65}, "more than 64 characters"),
        ({"state": None}, "'state'"),
        ({"examples": -1}, "says -1 examples"),
        ({"examples": 1.5}, "'examples'"),
        ({"examples": True}, "'examples'"),
        ({"client": None}, "'client'"),
        ({"meta": []}, "'meta'"),
    ],
)
def test_headers_that_cannot_be_are_refused(header: dict, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "load", lambda data: pytest.fail("a tensor was built"))
    with pytest.raises(ProtocolError, match=says):
        decode(forged({}, header=header))


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 4) + b"null",
        struct.pack("<Q", 40_000) + b"[" * 40_000,
        struct.pack("<Q", 1 << 63) + b"{}",
        struct.pack("<Q", 24) + b'{"__metadata__":{"x":1}}',
        struct.pack("<Q", 39) + b'{"__metadata__":{"h2tune":"not json {"}}'[:39],
    ],
)
def test_other_json_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(data)


def test_a_long_message_and_a_long_header_are_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json, "loads", lambda *_: pytest.fail("the header was read"))
    with pytest.raises(ProtocolError, match=r"has \d+ bytes, the limit is 100"):
        decode(encode(message()), limit=100)
    with pytest.raises(ProtocolError, match="longer than the message or the limit"):
        decode(struct.pack("<Q", wire.HEADER_LIMIT + 1) + b" " * (wire.HEADER_LIMIT + 1))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_refused(value: float) -> None:
    tensor = torch.tensor([1.0, value])
    for dtype in (torch.float32, torch.bfloat16):
        with pytest.raises(ProtocolError, match="'values' holds values that are not finite"):
            decode(encode(message(payload=Payload({"values": tensor.to(dtype)}))))
    with pytest.raises(ValueError):
        encode(message(payload=Payload(meta={"loss": value})))
    with pytest.raises(ProtocolError):
        decode(forged({}, header={"meta": {"loss": value}}))


def test_a_foreign_run_is_refused() -> None:
    with pytest.raises(ProtocolError, match="belongs to run 'a-run', this is run 'b'"):
        decode(encode(message()), run="b")
    assert decode(encode(message()), run="a-run").client == "c"


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        ({"values": (2, 3, 4)}, r"must hold the tensors \['values'\], it holds \['pairs', 'values'\]"),
        ({"values": (2, 3, 5), "pairs": (-1,)}, r"'values' has shape \(2, 3, 4\), expected \(2, 3, 5\)"),
        ({"values": (24,), "pairs": (1,)}, "'values' has shape"),
    ],
)
def test_expect_names_what_is_wrong(shapes: dict, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        expect(message().payload, shapes, "The update")


def test_expect_lets_the_right_shapes_pass() -> None:
    expect(message().payload, {"values": (2, -1, 4), "pairs": (1,)}, "The update")


@pytest.mark.parametrize("value", [1e300, -2 * LARGEST])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_that_overflow_later_are_refused(value: float, dtype: torch.dtype) -> None:
    """A float64 may be finite and no longer be so in float32, or in a product."""
    tensor = torch.tensor([0.0, min(max(value, -3e38), 3e38) if dtype == torch.float32 else value], dtype=dtype)
    data = encode(Message("train", "r", 1, "a", "h2tune", Payload({"x": tensor})))
    with pytest.raises(ProtocolError, match="holds values beyond"):
        decode(data)


@pytest.mark.parametrize("examples", [-1, EXAMPLES + 1, 2**64])
def test_numbers_of_examples_that_cannot_be_are_refused(examples: int) -> None:
    with pytest.raises(ProtocolError, match="examples"):
        decode(encode(Message("train", "r", 1, "a", "h2tune", examples=examples)))


@given(st.lists(st.text(), max_size=20))
def test_texts_travel_to_the_character(texts: list[str]) -> None:
    sent = wire.Message("k", "r", 1, "c", "m", wire.Payload(texts={"paths": texts, "none": []}))
    assert decode(encode(sent)).payload.texts == {"paths": texts, "none": []}


def test_texts_may_be_far_larger_than_the_header() -> None:
    texts = ["a path of reasoning, and another one\n" * 30] * 2000
    data = encode(wire.Message("k", "r", 1, "c", "m", wire.Payload(texts={"paths": texts})))
    assert len(data) > 2 * wire.HEADER_LIMIT and decode(data).payload.texts["paths"] == texts


@pytest.mark.parametrize("value", [b"{}", b"[1]", b'["a"', b"\xff", b'"a"', b""])
def test_texts_that_are_none_are_refused(value: bytes) -> None:
    tensor = torch.frombuffer(bytearray(value), dtype=torch.uint8) if value else torch.zeros(0, dtype=torch.uint8)
    forged_texts = wire.Message("k", "r", 1, "c", "m", wire.Payload({"texts:paths": tensor}))
    with pytest.raises(ProtocolError, match="not a list of texts"):
        decode(encode(forged_texts))
