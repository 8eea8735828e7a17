"""The core as it travels: nothing but what is covered, byte for byte as computed, and nothing malformed accepted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from torch import Tensor

from h2tune.core.client_core import CoreShape
from h2tune.core.packing import pack_bits, pack_core, unpack_bits, unpack_core
from h2tune.protocol.codec import Message, Payload, decode, encode

SHAPE = CoreShape(3, 4, ("q", "up", "down"))


@st.composite
def cores(draw: DrawFn) -> tuple[Tensor, Tensor, bool]:
    """S, its coverage and whether single entries are dropped."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    rank, masked = draw(st.integers(1, 4)), draw(st.booleans())
    pairs = torch.rand(3, 3, generator=generator) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    coverage = pairs[..., None, None].expand(3, 3, rank, rank).clone()
    if masked:
        coverage &= torch.rand(coverage.shape, generator=generator) < 0.5
    return torch.randn(coverage.shape, generator=generator), coverage, masked


@given(st.lists(st.booleans(), max_size=40))
def test_bits_are_little_endian_and_come_back(flags: list[bool]) -> None:
    packed = pack_bits(torch.tensor(flags, dtype=torch.bool))
    assert packed.numpy().tobytes() == np.packbits(np.array(flags, dtype=bool), bitorder="little").tobytes()
    assert unpack_bits(packed, (len(flags),)).tolist() == flags


@given(cores())
def test_sparse_equals_dense_times_mask(case: tuple[Tensor, Tensor, bool]) -> None:
    core, coverage, masked = case
    got, covered = unpack_core(pack_core(core, coverage, masked=masked), SHAPE, core.shape[-1])
    assert torch.equal(covered, coverage)
    assert torch.equal(got, core * coverage)


@given(cores(), st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_bytes_equal_the_arithmetic(case: tuple[Tensor, Tensor, bool], dtype: torch.dtype) -> None:
    core, coverage, masked = case
    tensors = pack_core(core, coverage, masked=masked, dtype=dtype)
    width = {torch.float32: 4, torch.float16: 2, torch.bfloat16: 2}[dtype]
    rank, pairs = core.shape[-1], int(coverage.flatten(2).any(-1).sum())
    per_pair = int(coverage.sum()) / max(pairs, 1)
    wanted = int(pairs * per_pair * width) + -(-9 // 8) + (-(-pairs * rank * rank // 8) if masked else 0)
    assert sum(t.nbytes for t in tensors.values()) == wanted
    message = Message("train", "a-run", 3, "a-client", "h2tune", Payload(tensors), 100)
    assert wanted < len(encode(message)) < wanted + 1024
    got, _ = unpack_core(decode(encode(message)).payload.tensors, SHAPE, rank)
    assert torch.equal(got, (core * coverage).to(dtype).float())


def test_half_the_rank_costs_a_quarter_of_the_bytes() -> None:
    sizes = []
    for rank in (4, 2):
        core = torch.randn(3, 3, rank, rank)
        sizes.append(pack_core(core, torch.ones_like(core, dtype=torch.bool), masked=False)["values"].nbytes)
    assert sizes == [9 * 16 * 4, 9 * 4 * 4]


def packed(**changes: Tensor | None) -> dict[str, Tensor]:
    core = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    tensors = pack_core(core, core > 0, masked=True) | changes
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


@pytest.mark.parametrize(
    "changes",
    [
        {"values": torch.zeros(3)},
        {"values": torch.zeros(144)},
        {"values": torch.zeros(12, 12)},
        {"values": packed()["values"].long()},
        {"values": None},
        {"pairs": torch.zeros(1, dtype=torch.uint8)},
        {"pairs": packed()["pairs"].float()},
        {"pairs": None},
        {"mask": None},
        {"mask": packed()["mask"][:-1]},
        {"mask": torch.zeros_like(packed()["mask"])},
        {"P": torch.zeros(3, 3)},
    ],
    ids=str,
)
def test_malformed_cores_are_refused(changes: dict[str, Tensor | None]) -> None:
    with pytest.raises(ValueError):
        unpack_core(packed(**changes), SHAPE, 4)


@pytest.mark.parametrize("rank", [0, -1, 3, 5])
def test_another_rank_is_refused(rank: int) -> None:
    with pytest.raises(ValueError):
        unpack_core(packed(), SHAPE, rank)


@given(st.binary(max_size=12), st.binary(max_size=40), st.integers(0, 160))
def test_arbitrary_bytes_raise_value_error_or_give_a_core(pairs: bytes, mask: bytes, values: int) -> None:
    tensors = {
        "pairs": torch.tensor(list(pairs), dtype=torch.uint8),
        "mask": torch.tensor(list(mask), dtype=torch.uint8),
    }
    try:
        core, coverage = unpack_core(tensors | {"values": torch.ones(values)}, SHAPE, 4)
    except ValueError:
        return
    assert core.shape == coverage.shape == (3, 3, 4, 4)
    assert int(coverage.sum()) == values
