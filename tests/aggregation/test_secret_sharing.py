"""Secure aggregation: the sum is right whoever drops out, and nothing less than the protocol's share reveals anything."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("Crypto", reason="PyCryptodome is not installed: pip install -e '.[secure]'")

from h2tune.aggregation.secret_sharing import (
    ClientSecrets,
    MaskedSum,
    Publics,
    SecureError,
    Shares,
    from_steps,
    stream,
    to_steps,
)
from h2tune.aggregation.secure_mean import SecureClient, SecureMean

LENGTH, CONTEXT = 50, b"run 1"


def clients(names: list[str], threshold: int) -> dict[str, ClientSecrets]:
    return {name: ClientSecrets(name, threshold, CONTEXT) for name in names}


def publics_of(held: dict[str, ClientSecrets]) -> dict[str, Publics]:
    return {name: client.publics() for name, client in held.items()}


def relay(shares: dict[str, dict[str, str]], to: str) -> dict[str, str]:
    return {sender: found[to] for sender, found in shares.items() if sender != to}


@given(st.data())
def test_the_sum_is_that_of_who_answered(data: st.DataObject) -> None:
    count = data.draw(st.integers(3, 7))
    threshold = data.draw(st.integers(count // 2 + 1, count))
    names = [f"client-{i}" for i in range(count)]
    drops_after = data.draw(
        st.lists(st.sampled_from(["keys", "shares", "round", "never"]), min_size=count, max_size=count)
    )
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    values = {name: torch.from_numpy(rng.normal(size=LENGTH)) for name in names}
    weights = {name: int(rng.integers(1, 500)) for name in names}
    left = {"keys": [n for n, d in zip(names, drops_after, strict=True) if d != "keys"]}
    left["shares"] = [n for n in left["keys"] if drops_after[names.index(n)] != "shares"]
    left["round"] = [n for n in left["shares"] if drops_after[names.index(n)] != "round"]
    if len(left["round"]) < threshold:
        return
    held = clients(names, threshold)
    publics = publics_of(held)
    shares = {n: held[n].share_out(publics) for n in left["keys"]}
    total = MaskedSum(LENGTH, publics, shares, CONTEXT)
    for n in left["shares"]:
        total.add(n, held[n].mask(to_steps(values[n], weights[n]), relay(shares, n)))
    revealed = {n: held[n].reveal(total.answered) for n in left["round"]}
    found = from_steps(total.unmask(revealed, threshold), values[names[0]].shape)
    wanted = sum(weights[n] * values[n] for n in left["shares"])
    assert torch.allclose(found, wanted, atol=count * 2.0**-32, rtol=0)


def whole_round(
    count: int = 4, threshold: int = 3
) -> tuple[dict[str, ClientSecrets], MaskedSum, dict[str, np.ndarray]]:
    names = [f"c{i}" for i in range(count)]
    held = clients(names, threshold)
    publics = publics_of(held)
    shares = {n: held[n].share_out(publics) for n in names}
    sent = {n: held[n].mask(np.zeros(LENGTH, np.uint64), relay(shares, n)) for n in names}
    total = MaskedSum(LENGTH, publics, shares, CONTEXT)
    for name, masked in sent.items():
        total.add(name, masked)
    return held, total, sent


def test_what_a_client_sends_looks_like_noise_though_it_is_zero() -> None:
    _, total, sent = whole_round()
    bits = np.unpackbits(np.concatenate(list(sent.values())).view(np.uint8))
    assert abs(bits.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(bits))
    assert len({masked.tobytes() for masked in sent.values()}) == 4
    assert total.total.any()  # the clients' own masks are still in it


def test_fewer_than_the_threshold_reveal_nothing() -> None:
    held, total, _ = whole_round()
    revealed = {n: held[n].reveal(total.answered) for n in ("c0", "c1")}
    with pytest.raises(SecureError, match="only 2 clients helped"):
        total.unmask(revealed, 3)
    with pytest.raises(SecureError, match="the secrets of c0, c1, c2, c3 cannot be recovered"):
        total.unmask(revealed, 2)  # what a server that does not care would compute
    total.liars.clear()
    revealed["c2"] = held["c2"].reveal(total.answered)
    assert not total.unmask(revealed, 3).any() and not total.liars


@pytest.mark.parametrize("about", ["c0", "c3"])
@pytest.mark.parametrize("gone", [False, True])
def test_a_helper_that_gives_another_share_is_named_and_the_sum_is_right_without_it(about: str, gone: bool) -> None:
    held, total, sent = whole_round(5)
    if gone:  # c3 has dealt shares, and then nothing came of it
        total.answered.remove("c3")
        total.total = total.total - sent["c3"]
    revealed = {n: held[n].reveal(total.answered) for n in total.answered}
    revealed["c1"][about] = bytes(16).hex()
    assert not total.unmask(revealed, 3).any()
    assert total.liars == {"c1": f"its share of a secret of {about} is another than {about} gave it"}


def test_a_dealer_whose_shares_give_another_secret_than_it_promised_is_named() -> None:
    held = clients([f"c{i}" for i in range(4)], 3)
    held["c2"]._own, promised = bytes(16), held["c2"].publics()
    publics = publics_of(held) | {"c2": (*promised[:2], "00" * 16)}
    shares = {n: held[n].share_out(publics) for n in held}
    total = MaskedSum(LENGTH, publics, shares, CONTEXT)
    for name, client in held.items():
        total.add(name, client.mask(np.zeros(LENGTH, np.uint64), relay(shares, name)))
    with pytest.raises(SecureError, match="the secrets of c2 cannot be recovered"):
        total.unmask({n: held[n].reveal(total.answered) for n in held}, 3)
    assert list(total.liars) == ["c2"] and "do not give the secret that it promised" in total.liars["c2"]


def test_what_a_dealer_says_of_its_own_secret_is_not_needed() -> None:
    held, total, _ = whole_round()
    revealed = {n: held[n].reveal(total.answered) for n in held}
    revealed["c0"]["c0"] = bytes(16).hex()
    assert not total.unmask(revealed, 3).any() and not total.liars


def test_shares_that_are_not_those_that_were_promised_are_refused() -> None:
    held = clients(["a", "b", "c"], 3)
    publics = publics_of(held)
    first: Shares = relay({n: held[n].share_out(publics) for n in held}, "a")
    other = first["b"][:96] + first["c"][96:]
    with pytest.raises(SecureError, match="the shares of b for a are others than b promised"):
        held["a"].mask(np.zeros(LENGTH, np.uint64), first | {"b": other})


def test_a_client_refuses_what_would_give_somebody_away() -> None:
    held, _, _ = whole_round()
    with pytest.raises(SecureError, match="reveal a sum of 2"):
        held["c0"].reveal(["c0", "c1"])
    with pytest.raises(SecureError, match="reveal a sum"):
        held["c0"].reveal(["c0", "c0", "c0"])  # one client, said three times
    held["c0"].reveal(["c0", "c1", "c2", "c3"])
    with pytest.raises(SecureError, match="a second time"):
        held["c0"].reveal(["c0", "c1", "c2"])
    with pytest.raises(SecureError, match="or twice"):
        held["c0"].share_out(publics_of(held))
    lonely = ClientSecrets("a", 3, CONTEXT)
    with pytest.raises(SecureError, match="with 2 clients"):
        lonely.share_out({"a": lonely.publics(), "b": ClientSecrets("b", 3, CONTEXT).publics()})


def test_shares_that_were_tampered_with_or_are_of_another_round_are_refused() -> None:
    held = clients(["a", "b", "c"], 2)
    publics = publics_of(held)
    shares = {n: held[n].share_out(publics) for n in held}
    first = relay(shares, "a")
    broken = first | {"b": ("00" if first["b"][:2] != "00" else "11") + first["b"][2:]}
    with pytest.raises(SecureError, match="the shares of b for a were tampered with"):
        held["a"].mask(np.zeros(LENGTH, np.uint64), broken)
    swapped = first | {"b": first["c"]}
    with pytest.raises(SecureError, match="the shares of b"):
        held["a"].mask(np.zeros(LENGTH, np.uint64), swapped)


@pytest.mark.parametrize("key", ["", "zz", "00" * 31, "00" * 32])
def test_public_keys_that_are_none_are_refused(key: str) -> None:
    publics = publics_of(clients(["a", "b", "c"], 2))
    none = "invalid public key"
    mask, channel, own = publics["b"]
    with pytest.raises(SecureError, match=none):
        clients(["a"], 2)["a"].share_out(publics | {"b": (mask, key, own)})
    fresh = clients(["a"], 2)["a"]
    with pytest.raises(SecureError, match=none):
        fresh.share_out(publics | {"b": (key, channel, own)})
        fresh._pair("b")


def test_a_client_may_add_only_once() -> None:
    _, total, sent = whole_round()
    with pytest.raises(SecureError, match="c0 sends"):
        total.add("c0", sent["c0"])


@given(st.binary(min_size=16, max_size=16))
def test_streams_repeat_and_differ(seed: bytes) -> None:
    assert np.array_equal(stream(seed, 20), stream(seed, 20)) and np.array_equal(stream(seed, 20)[:5], stream(seed, 5))
    assert not np.array_equal(stream(seed, 20), stream(bytes(16) if seed != bytes(16) else b"\1" * 16, 20))


@pytest.mark.parametrize("examples", [5, 10_000, 1_000_000])
def test_a_sum_under_masks_that_stayed_is_refused_whatever_the_weight(examples: int) -> None:
    mean = SecureMean(lambda name, tensors: None, 3)
    mean.start(torch.zeros(1, 1, 8, 8), {})
    mean.weight += 3 * examples
    honest = to_steps(torch.randn(64), 3 * examples)
    for total, refused in ((stream(b"k" * 16, 64), True), (honest, False)):
        mean.sum = SimpleNamespace(unmask=lambda *args, total=total: total)
        if refused:
            with pytest.raises(ValueError, match="implausible sum"):
                mean.reveal({})
        else:
            mean.reveal({})


def test_a_sum_is_asked_for_only_where_three_clients_cover_every_entry_of_it() -> None:
    mean = SecureMean(lambda name, tensors: None, 3)
    covers = {n: torch.tensor([[[[True]]], [[[n != "d"]]]]) for n in "abcd"}
    mean.start(torch.zeros(2, 1, 1, 1), covers)
    mean.check_company("abc")
    mean.check_company("abcd")
    for missing in ("abd", "ab"):
        with pytest.raises(ValueError, match="fewer than 3 clients are left that cover some entries"):
            mean.check_company(missing)


def test_a_client_has_part_in_one_sum_of_a_round() -> None:
    client = SecureClient("a", 3, 4)
    client.keys("run", 1)
    client.keys("run", 1)  # nothing was revealed
    client.helped = 1
    with pytest.raises(SecureError, match="the sum of round 1 has been revealed"):
        client.keys("run", 1)
    client.keys("run", 2)
