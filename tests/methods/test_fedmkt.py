"""FedMKT: how tokens are translated, and what it does with public sentences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from federations import build, small
from methods.three_models import spec
from torch import Tensor

from h2tune import federation
from h2tune.methods.fedmkt import Target, _divergence, _merged
from h2tune.methods.nearest_tokens import NearestTokens
from h2tune.methods.registry import MethodError

SEEDS = pytest.mark.parametrize("seed", range(3))


def edit_distance(a: str, b: str) -> int:
    """Levenshtein's, cell by cell."""
    before = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        now = [i]
        for j, y in enumerate(b, 1):
            now.append(min(before[j] + 1, now[-1] + 1, before[j - 1] + (x != y)))
        before = now
    return before[-1]


def test_fedmkt_translates_tokens_by_edit_distance() -> None:
    assert [edit_distance(*pair) for pair in (("", "ab"), ("kitten", "sitting"), ("same", "same"))] == [2, 3, 0]
    known = NearestTokens({" the": 5, " then": 3, "a": 1})
    assert known.nearest(" the") == 5  # an exact one is taken
    assert known.nearest(" thenn") == 3
    assert known.nearest("b") == 1


@SEEDS
def test_fedmkt_finds_the_same_token_as_distance_by_distance(seed: int) -> None:
    """All spellings of a few letters collide often, so ties are met; ids are not in the order of the spellings."""
    rng = np.random.default_rng(seed)
    words = {"".join(rng.choice(list("abü 中"), rng.integers(0, 6))) for _ in range(120)}
    known = dict(zip(sorted(words), rng.permutation(len(words)).tolist(), strict=True))
    tokens = NearestTokens(known)
    for _ in range(60):
        asked = "".join(rng.choice(list("abcü 中"), rng.integers(0, 9)))
        want = min(known.items(), key=lambda item: (asked != item[0], edit_distance(asked, item[0]), item[1]))[1]
        assert tokens.nearest(asked) == want


def test_fedmkt_target_of_an_equal_tokenizer_is_the_teachers_distribution(tmp_path: Path) -> None:
    experiment = small(clients=2, same_model=True, method=spec("fedmkt"), rounds=1)
    server, clients = build(experiment, tmp_path / "run")
    server.open()
    method = clients["c0"].method
    sent = method._predictions(1)
    received = {f"c1/{k}": t for k, t in sent.items()}
    sentence = method.public(1)[0]
    target = method._target("c1", 0, sentence, received)
    assert target.positions.tolist() == [i for i, end in enumerate(sentence["ends"]) if end]
    logits = clients["c0"].context.base.peft(input_ids=torch.tensor([sentence["ids"]])).logits[0]
    for position, ids, shares in zip(*target, strict=True):
        top = logits[position].topk(32)
        found, want = dense(ids, shares, logits.shape[-1]), torch.zeros(logits.shape[-1])
        # Tokens with the same spelling share an id after translation; compare by spelling.
        for i, share in zip(top.indices.tolist(), top.values.softmax(-1).tolist(), strict=True):
            want[method._own.known[method._spelling(i)]] += share
        torch.testing.assert_close(found, want, atol=2e-3, rtol=0)


def dense(ids: Tensor, shares: Tensor, width: int) -> Tensor:
    """A distribution over so many tokens."""
    return torch.zeros(width).index_add_(0, ids, shares)


def test_fedmkt_loss_is_that_of_distributions_over_the_whole_vocabulary() -> None:
    """With tokens of the teacher that become one of the own, and one that the own model cannot predict."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(9, 50, generator=generator, requires_grad=True)
    positions = torch.tensor([0, 3, 8])
    ids = torch.randint(0, 51, (3, 32), generator=generator)
    ids[0, :3], ids[1, 0] = 7, 50
    shares = torch.randn(3, 32, generator=generator).mul(3).softmax(-1)

    wanted = torch.stack([dense(*row, 51) for row in zip(ids, shares, strict=True)])[:, :50]
    said = logits[positions].log_softmax(-1)
    want = (wanted * (wanted.clamp_min(1e-12).log() - said)).sum(-1).mean()
    found = _divergence(Target(positions, *_merged(ids, shares)), logits)
    torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-7)
    (gradient,), (wanted_gradient,) = (torch.autograd.grad(loss, logits) for loss in (found, want))
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-5, atol=1e-7)


def test_fedmkt_target_takes_no_more_room_where_the_vocabulary_is_large(tmp_path: Path) -> None:
    server, clients = build(small(clients=2, method=spec("fedmkt"), rounds=1), tmp_path / "run")
    server.open()
    sent, method = clients["c1"].method._predictions(1), clients["c0"].method
    sentence = method.public(1)[0]
    target = method._target("c1", 0, sentence, {f"c1/{k}": t for k, t in sent.items()})
    assert target.ids.shape == target.shares.shape == (len(target.positions), 32)
    torch.testing.assert_close(target.shares.sum(-1), torch.ones(len(target.positions)))
    assert method.mapped  # by spelling: clients of one tokenizer share what was found


def test_fedmkt_leaves_out_logits_that_no_token_has(tmp_path: Path) -> None:
    """As of models whose output is wider than their tokenizer, so that its size is a round number."""
    _, clients = build(small(clients=2, same_model=True, method=spec("fedmkt"), rounds=1), tmp_path / "run")
    client = clients["c0"]
    client.method.join()
    method, count = client.method, len(client.context.tokenizer)
    sentence = method.public(1)[0]
    model = client.context.base.activate(client.context.adapter)
    target = Target(torch.tensor([1]), torch.arange(count)[None], torch.full((1, count), 1 / count))

    class Wide:
        def __init__(self, logits: Tensor) -> None:
            self.logits = torch.cat([logits, torch.full((*logits.shape[:2], 7), 1e3)], dim=-1)

    plain, wide = (
        method._public_loss(lambda batch, kind=kind: kind(model(**batch).logits), sentence, target)
        for kind in (lambda logits: type("Plain", (), {"logits": logits}), Wide)
    )
    assert torch.equal(plain, wide)


def test_fedmkt_has_no_words_to_exchange_where_there_is_a_head(tmp_path: Path) -> None:
    for part in ("train", "test"):
        rows_of = "".join(f"{part} was {'good' if i % 2 else 'bad'} {i}\t{i % 2}\n" for i in range(60))
        (tmp_path / f"{part}.tsv").write_text("sentence\tlabel\n" + rows_of)
    experiment = small(clients=2, method="fedmkt")
    rows = [experiment.clients[0], experiment.clients[1].model_copy(
        update={"task": "sst2", "train": str(tmp_path / "train.tsv"), "test": str(tmp_path / "test.tsv"), "validation": None})]  # fmt: skip
    with pytest.raises(MethodError, match="c1: fedmkt exchanges predictions of words"):
        federation.run(experiment.model_copy(update={"clients": rows}), tmp_path / "run")


def test_fedmkt_reads_public_sentences_of_a_single_token(tmp_path: Path) -> None:
    """There is no next token to predict in them."""
    experiment = small(clients=2, same_model=True, method={"name": "fedmkt", "sentences": 4}, rounds=2)
    server, clients = build(experiment, tmp_path / "run", anchors=["a", "b", "a", "b"] * 10)
    assert {len(s["ids"]) for s in clients["c0"].method.public(1)} == {1}
    server.run()
    assert {member.standing for member in server.members.values()} == {"ok"}
    assert all(member.final for member in server.members.values())
