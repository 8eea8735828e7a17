"""Tensors that come over together are those that would come one by one."""

from __future__ import annotations

import torch

from h2tune.utils.tensors import on_cpu, together


def test_one_copy_gives_what_single_copies_give() -> None:
    tensors = [torch.arange(6.0).view(2, 3), torch.tensor(7.0), torch.zeros(0, 4), torch.arange(4.0).view(2, 2).T]
    found = together(list("abcd"), tensors)
    assert list(found) == list("abcd")
    for got, wanted in zip(found.values(), tensors, strict=True):
        assert got.shape == wanted.shape and torch.equal(got, wanted) and got.is_contiguous()
    assert len({t.untyped_storage().data_ptr() for t in found.values() if t.numel()}) == 3


def test_what_is_on_the_cpu_stays_where_it_is() -> None:
    own = torch.nn.Parameter(torch.ones(3))
    found = on_cpu({"own": own})["own"]
    assert not found.requires_grad and found.data_ptr() == own.data_ptr()
