"""Updates in fewer bytes: what is read is what was written, nothing is lost for good, nothing malformed is accepted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from torch import Tensor

from h2tune.core.client_core import CoreShape
from h2tune.core.compress import Code, decode_update, encode_update
from h2tune.core.packing import unpack_bits
from h2tune.protocol.codec import Message, Payload, ProtocolError, decode, encode

SHAPE = CoreShape(3, 4, ("q", "up", "down"))
CODES = [Code(dtype, share) for dtype in ("float32", "bfloat16", "int8") for share in (None, 0.5, 0.02, 1.0)]


@st.composite
def updates(draw: DrawFn) -> tuple[Tensor, Tensor, bool]:
    """An update, its coverage, and whether single entries are dropped."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    rank, masked = draw(st.integers(1, 4)), draw(st.booleans())
    pairs = torch.rand(3, 3, generator=generator) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    coverage = pairs[..., None, None].expand(3, 3, rank, rank).clone()
    if masked:
        coverage &= torch.rand(coverage.shape, generator=generator) < 0.5
    scale = draw(st.sampled_from([1e-6, 1.0, 1e6]))
    return scale * torch.randn(coverage.shape, generator=generator), coverage, masked


def sizes(tensors: dict[str, Tensor]) -> int:
    return sum(t.nbytes for name, t in tensors.items() if name not in ("pairs", "mask"))


@given(updates(), st.sampled_from(CODES))
def test_the_server_reads_what_the_client_believes(case: tuple[Tensor, Tensor, bool], code: Code) -> None:
    update, coverage, masked = case
    tensors, believed = encode_update(update, coverage, code, masked=masked)
    message = decode(encode(Message("train", "a-run", 1, "c", "h2tune", Payload(tensors), 1)))
    read, covered = decode_update(message.payload.tensors, SHAPE, update.shape[-1], code, masked=masked)
    assert torch.equal(read, believed) and torch.equal(covered, coverage)
    assert sizes(tensors) == code.size(int(coverage.flatten(2).any(-1).sum()), int(coverage.sum()))
    if code.lossless or code == Code("float32", 1.0):
        assert torch.equal(read, update * coverage)


@given(updates())
def test_eight_bits_equal_numpy(case: tuple[Tensor, Tensor, bool]) -> None:
    update, coverage, masked = case
    _, read = encode_update(update, coverage, Code("int8"), masked=masked)
    for place in np.ndindex(3, 3):
        kept = update[place][coverage[place]].numpy()
        if kept.size:
            scale = np.float32(np.abs(kept).max() / np.float32(127))
            wanted = np.clip(np.round(kept / scale), -127, 127).astype(np.float32) * scale
            np.testing.assert_allclose(read[place][coverage[place]], wanted, rtol=1e-6)
            assert np.abs(wanted - kept).max() <= scale * 0.5001


@given(updates(), st.sampled_from([0.5, 0.02]))
def test_the_largest_entries_are_those_sent(case: tuple[Tensor, Tensor, bool], share: float) -> None:
    update, coverage, masked = case
    _, read = encode_update(update, coverage, Code("float32", share), masked=masked)
    values, count = update[coverage].numpy(), int(coverage.sum())
    sent = min(count, max(1, round(share * count)))
    assert int((read != 0).sum()) == sent
    np.testing.assert_array_equal(
        np.sort(np.abs(read[coverage].numpy()))[count - sent :], np.sort(np.abs(values))[count - sent :]
    )


@pytest.mark.parametrize("code", [Code("int8"), Code("bfloat16"), Code("float32", 0.1), Code("int8", 0.1)], ids=str)
def test_with_feedback_the_sum_of_what_arrives_is_the_sum_of_what_was_learnt(code: Code) -> None:
    """Without it, entries below the top share would never arrive at all."""
    generator = torch.Generator().manual_seed(0)
    coverage, lost = torch.ones(3, 3, 4, 4, dtype=torch.bool), torch.zeros(3, 3, 4, 4)
    drift, arrived, learnt = (
        torch.randn(3, 3, 4, 4, generator=generator),
        torch.zeros(3, 3, 4, 4),
        torch.zeros(3, 3, 4, 4),
    )
    for _ in range(60):
        update = drift + torch.randn(3, 3, 4, 4, generator=generator)
        _, read = encode_update(update + lost, coverage, code, masked=False)
        lost = update + lost - read
        arrived, learnt = arrived + read, learnt + update
    assert float((arrived - learnt).norm() / learnt.norm()) < 0.2
    torch.testing.assert_close(arrived + lost, learnt, atol=1e-4, rtol=1e-4)


def test_nothing_but_zeros_is_written_and_read() -> None:
    coverage = torch.ones(3, 3, 2, 2, dtype=torch.bool)
    for code in CODES:
        tensors, _ = encode_update(torch.zeros(3, 3, 2, 2), coverage, code, masked=False)
        assert not decode_update(tensors, SHAPE, 2, code, masked=False)[0].any()


def test_a_core_that_is_no_number_is_refused() -> None:
    update, coverage = torch.full((3, 3, 2, 2), torch.nan), torch.ones(3, 3, 2, 2, dtype=torch.bool)
    for code in CODES:
        tensors, _ = encode_update(update, coverage, code, masked=False)
        with pytest.raises(ProtocolError, match="finite"):
            decode(encode(Message("train", "a-run", 1, "c", "h2tune", Payload(tensors), 1)))


def written(code: Code, **changes: Tensor | None) -> dict[str, Tensor]:
    update = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    tensors, _ = encode_update(update, update > -9, code, masked=False)
    return {name: tensor for name, tensor in (tensors | changes).items() if tensor is not None}


FEW, HALF = Code("int8", 0.02), Code("int8", 0.5)  # 144 entries: 3 indices; 72 values and a bit for each entry
INT = torch.int32


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        (FEW, {"indices": torch.tensor([0, 1, 144], dtype=INT)}),
        (FEW, {"indices": torch.tensor([-1, 1, 2], dtype=INT)}),
        (FEW, {"indices": torch.tensor([1, 1, 2], dtype=INT)}),
        (FEW, {"indices": torch.tensor([2, 1, 3], dtype=INT)}),
        (FEW, {"indices": torch.tensor([0, 1], dtype=INT)}),
        (FEW, {"indices": torch.tensor([0.0, 1.0, 2.0])}),
        (FEW, {"indices": None}),
        (FEW, {"sent": torch.zeros(18, dtype=torch.uint8)}),
        (FEW, {"values": torch.zeros(4, dtype=torch.int8)}),
        (FEW, {"values": torch.zeros(3)}),
        (HALF, {"sent": torch.zeros(18, dtype=torch.uint8)}),
        (HALF, {"sent": torch.full((18,), 255, dtype=torch.uint8)}),
        (HALF, {"sent": torch.zeros(17, dtype=torch.uint8)}),
        (HALF, {"scales": torch.zeros(9)}),
        (HALF, {"scales": -torch.ones(9)}),
        (HALF, {"scales": torch.full((9,), torch.inf)}),
        (HALF, {"scales": torch.full((9,), torch.nan)}),
        (HALF, {"scales": torch.full((9,), 3e38), "values": torch.full((72,), 127, dtype=torch.int8)}),
        (HALF, {"scales": torch.ones(8)}),
        (HALF, {"scales": torch.ones(9).double()}),
        (HALF, {"scales": None}),
        (HALF, {"pairs": None}),
        (HALF, {"pairs": torch.zeros(2, dtype=torch.uint8)}),
        (HALF, {"mask": torch.full((18,), 255, dtype=torch.uint8)}),
        (HALF, {"P": torch.zeros(3)}),
        (Code("bfloat16"), {"values": torch.zeros(144)}),
    ],
)  # fmt: skip
def test_malformed_updates_are_refused(code: Code, changes: dict[str, Tensor | None]) -> None:
    decode_update(written(code), SHAPE, 4, code, masked=False)
    with pytest.raises(ValueError):
        decode_update(written(code, **changes), SHAPE, 4, code, masked=False)


@given(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5), st.binary(max_size=20), st.binary(max_size=80))
def test_arbitrary_tensors_raise_value_error_or_give_an_update(indices: list[int], sent: bytes, values: bytes) -> None:
    for code in (FEW, HALF):
        places = (
            {"indices": torch.tensor(indices, dtype=INT)}
            if code is FEW
            else {"sent": torch.tensor(list(sent), dtype=torch.uint8)}
        )
        own = torch.tensor(list(values), dtype=torch.uint8).view(torch.int8)
        try:
            update, _ = decode_update(written(code) | places | {"values": own}, SHAPE, 4, code, masked=False)
        except ValueError:
            continue
        assert update.shape == (3, 3, 4, 4) and torch.isfinite(update).all()


def test_bits_or_indices_whichever_is_shorter() -> None:
    assert "indices" in written(FEW) and "sent" in written(HALF)
    assert int(unpack_bits(written(HALF)["sent"], (144,)).sum()) == 72
