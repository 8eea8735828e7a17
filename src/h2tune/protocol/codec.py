"""Messages as bytes: a safetensors body with one JSON header. Nothing in a message is code, nothing is trusted.

A message is the safetensors format with the header under the metadata key ``h2tune``. `decode` reads and checks the
plain JSON of that format before a single tensor is built. Texts travel in the body, too, as tensors of UTF-8 bytes: the
header has a limit, since it is parsed before anything else is known of a message.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import torch
from pydantic import Field, TypeAdapter, ValidationError
from safetensors.torch import load, save
from torch import Tensor

from h2tune.errors import ProtocolError
from h2tune.utils.tensors import on_cpu

SCHEMA = 2
HEADER_LIMIT = 1 << 20
EXAMPLES = 10_000_000  # behind one update: sums of weights over a hundred clients stay exact
LARGEST = 1e12  # of a value: what is made of received values, as the product of two, stays finite in float32
IDENTITY = 64  # most characters of a process's identity, or of a state's digest
Size = Annotated[int, Field(ge=1, le=4096)]  # of what room is made for on another's word: blocks, ranks
_TEXTS = "texts:"  # before the name of a list of texts, among the names of the body's tensors
_DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass
class Payload:
    """What one side of a method says to the other.

    Attributes:
        tensors: by name, of any shape.
        meta: a few plain values (JSON); together with the rest of the header at most `HEADER_LIMIT` bytes.
        texts: lists of texts by name, of any length.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)

    def names(self) -> set[str]:
        """Names of everything it holds."""
        return {*self.tensors, *self.meta, *self.texts}

    def said(self, key: str, kind: Any) -> Any:
        """The plain value under a key, which must be of this type (``int``, ``list[str]``); else raises ProtocolError."""
        try:
            return TypeAdapter(kind).validate_python(self.meta.get(key), strict=True)
        except ValidationError as error:
            raise ProtocolError(f"the value of {key!r} cannot be read: {error.errors()[0]['msg']}") from None


@dataclass
class Message:
    """A payload with its address.

    Attributes:
        kind: what is asked for: ``join``, ``resume``, ``finish``, or an action of the method, as ``train``. An answer has
            the kind of its request, or ``failure``.
        run: identity of the run; a message of another run is refused.
        round: the round that it belongs to.
        client: whom it goes to or comes from.
        method: name of the federated method.
        examples: training examples behind an update, or 0.
        step: which exchange of the round it is, from 0.
        attempt: how often the round was begun before.
        process: identity of the sender's process, new whenever it starts.
        state: digest of the committed state that a request was made from; an answer repeats it.
    """

    kind: str
    run: str
    round: int
    client: str
    method: str
    payload: Payload = field(default_factory=Payload)
    examples: int = 0
    step: int = 0
    attempt: int = 0
    process: str = ""
    state: str = ""

    def reply(self, kind: str, payload: Payload, client: str, process: str, examples: int = 0) -> Message:
        """The answer to this message."""
        return replace(self, kind=kind, payload=payload, client=client, process=process, examples=examples)


def encode(message: Message) -> bytes:
    """Bytes of a message."""
    tensors = _separate(message.payload.tensors)
    tensors |= {_TEXTS + name: _as_bytes(texts) for name, texts in message.payload.texts.items()}
    header: dict[str, Any] = {"schema": SCHEMA, "meta": message.payload.meta}
    header |= {name: getattr(message, name) for name in _FIELDS if name not in ("meta", "checksum")}
    header["checksum"] = _checksum(header, tensors)
    # A body always holds one tensor, so that the format's own checks apply to every message.
    body = {"_": torch.zeros(1, dtype=torch.uint8)} | tensors
    return save(body, metadata={"h2tune": _plain(header)})


def decode(data: bytes, *, run: str | None = None, limit: int = 1 << 30) -> Message:
    """The message in ``data``.

    Args:
        run: refuse messages of any other run.
        limit: most bytes that a message may have.

    Raises:
        ProtocolError: if anything about it is not as it must be.
    """
    header = _judge(data, limit)
    if run is not None and header["run"] != run:
        raise ProtocolError(f"The message belongs to run {header['run']!r}, this is run {run!r}.")
    try:
        tensors = load(data)
    except Exception as error:
        raise ProtocolError(f"The message's tensors cannot be read: {error}") from None
    # In a fixed order, and each in memory of PyTorch's own: where a tensor lies decides how a sum over it is rounded.
    tensors = {name: tensors[name].clone() for name in sorted(tensors) if name != "_"}
    if _checksum({k: v for k, v in header.items() if k != "checksum"}, tensors) != header["checksum"]:
        raise ProtocolError("The message was damaged in transit: its checksum is wrong.")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            low, high = tensor.aminmax()
            if not bool(torch.isfinite(low) & torch.isfinite(high)):
                raise ProtocolError(f"The tensor {name!r} holds values that are not finite.")
            if max(-float(low), float(high)) > LARGEST:
                raise ProtocolError(f"The tensor {name!r} holds values beyond {LARGEST:g}.")
    texts = {name.removeprefix(_TEXTS): _as_texts(tensors.pop(name)) for name in list(tensors) if _is_texts(name)}
    fields = {name: header[name] for name in _FIELDS if name not in ("meta", "checksum")}
    return Message(payload=Payload(tensors, header["meta"], texts), **fields)


def _judge(data: bytes, limit: int) -> dict[str, Any]:
    """Check everything that can be checked without building a tensor; return our header."""
    if len(data) > limit:
        raise ProtocolError(f"The message has {len(data):,} bytes, the limit is {limit:,}.")
    if len(data) < 8:
        raise ProtocolError("Not an h2tune message: too short for a header.")
    (size,) = struct.unpack("<Q", data[:8])
    if size > min(HEADER_LIMIT, len(data) - 8):
        raise ProtocolError("Not an h2tune message: its header is longer than the message or the limit.")
    try:
        table = json.loads(data[8 : 8 + size])
        header: dict[str, Any] = json.loads(table.pop("__metadata__")["h2tune"])
        _plain(header)
        body = sum(_tensor_bytes(name, entry) for name, entry in table.items())
    except ProtocolError:
        raise
    except Exception:
        raise ProtocolError("Not an h2tune message: its header cannot be read.") from None
    if body != len(data) - 8 - size:
        raise ProtocolError("The message's tensors do not fill it exactly.")
    _check_header(header)
    return header


def _tensor_bytes(name: str, entry: dict[str, Any]) -> int:
    shape: list[int] = entry["shape"]
    start, end = entry["data_offsets"]
    size: int = end - start
    if entry["dtype"] not in _DTYPES or len(shape) > 6 or any(type(n) is not int or n < 0 for n in shape):
        raise ProtocolError(f"The tensor {name!r} has a type or shape that is not allowed.")
    if math.prod(shape) * _DTYPES[entry["dtype"]] != size:
        raise ProtocolError(f"The tensor {name!r} claims another size than it has.")
    return size


_FIELDS = {"kind": str, "run": str, "round": int, "step": int, "attempt": int, "client": str, "process": str, "method": str,
           "state": str, "examples": int, "meta": dict, "checksum": str}  # fmt: skip


def _check_header(header: Any) -> None:
    if not isinstance(header, dict) or type(header.get("schema")) is not int:
        raise ProtocolError("Not an h2tune message: its header has no schema version.")
    if header["schema"] != SCHEMA:
        raise ProtocolError(
            f"The message has schema {header['schema']}, this version reads schema {SCHEMA}; use the same h2tune version on both sides."
        )
    for name, kind in _FIELDS.items():
        if type(header.get(name)) is not kind:
            raise ProtocolError(f"The message's header lacks {name!r}, or its type is wrong.")
    if not 0 <= header["examples"] <= EXAMPLES:
        raise ProtocolError(f"The message's header says {header['examples']} examples; at most {EXAMPLES} can be.")
    if header["round"] < -1 or header["step"] < 0 or header["attempt"] < 0:
        raise ProtocolError("The message's header holds a negative round, step or attempt.")
    if max(len(header["process"]), len(header["state"])) > IDENTITY:
        raise ProtocolError(f"The message's header has a process or state of more than {IDENTITY} characters.")


def _plain(header: dict[str, Any]) -> str:
    """One text for equal headers; raises ValueError for numbers that are not finite."""
    return json.dumps(header, separators=(",", ":"), sort_keys=True, allow_nan=False)


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU, no two in the same memory (the format refuses that)."""
    found: dict[str, Tensor] = {}
    held: set[int] = set()
    for name, tensor in on_cpu(tensors).items():
        tensor = tensor.contiguous()
        memory = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if memory in held else tensor
        held.add(memory)
    return found


def _as_bytes(texts: list[str]) -> Tensor:
    """A list of texts as one tensor: JSON in UTF-8."""
    data = json.dumps(texts, ensure_ascii=False).encode("utf-8")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _is_texts(name: str) -> bool:
    return name.startswith(_TEXTS)


def _as_texts(tensor: Tensor) -> list[str]:
    try:
        return TypeAdapter(list[str]).validate_json(tensor.numpy().tobytes(), strict=True)
    except (ValidationError, TypeError):
        raise ProtocolError("The message holds texts that are not a list of texts.") from None


def _checksum(header: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(_plain(header).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def expect(payload: Payload, shapes: dict[str, tuple[int, ...]], what: str) -> None:
    """Refuse a payload whose tensors are not exactly those of ``shapes`` (-1 stands for any length)."""
    if payload.tensors.keys() != shapes.keys():
        raise ProtocolError(f"{what} must hold the tensors {sorted(shapes)}, it holds {sorted(payload.tensors)}.")
    for name, shape in shapes.items():
        found = tuple(payload.tensors[name].shape)
        if len(found) != len(shape) or any(want not in (-1, got) for want, got in zip(shape, found, strict=True)):
            raise ProtocolError(f"{what}: the tensor {name!r} has shape {found}, expected {shape}.")
