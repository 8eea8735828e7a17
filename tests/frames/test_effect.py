"""Frames by effect: a coordinate of the core moves every model's predictions alike, or the model does not take part."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from federations import build, equal, outcome, small
from model_folders import ROWS, TASKS, model_folder, write_rows
from tokenizers import Tokenizer, normalizers
from tokenizers.models import BPE
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from h2tune import federation
from h2tune.client import Client
from h2tune.config import Training
from h2tune.errors import MethodError, ProtocolError
from h2tune.frames import effect
from h2tune.frames.anchor_text import words as spans
from h2tune.frames.effect import EffectServer
from h2tune.frames.predictions import Predictions, common_words, single_tokens
from h2tune.methods.registry import resolve_method
from h2tune.participant.trainer import Group, NormalisedGradient
from h2tune.plan import make_plan
from h2tune.protocol.codec import Payload
from h2tune.tasks.demo_problems import demo_anchors

METHOD: dict[str, Any] = {
    "name": "h2tune", "frames": "effect", "private": 2, "alternation": "rounds", "core_rule": "gradient",
    "accept": "validation", "train_factors": False, "train_relation": False,
}  # fmt: skip


def joined(folder: Path, **changes: Any) -> tuple[Any, dict[str, Client]]:
    server, clients = build(small(**({"rounds": 2, "method": METHOD} | changes)), folder)
    server.run()
    return server, clients


def coordinates(predictions: Predictions, layer: Any, matrix: Tensor, step: Tensor | None) -> Tensor:
    """z of some anchors, with a step added to what a map gives."""
    hook = layer.register_forward_hook(lambda _, __, out: out if step is None else out + step)
    with torch.no_grad():
        found = torch.cat(list(predictions._read()))
    hook.remove()
    return found @ matrix.T


def test_one_unit_of_a_coordinate_moves_the_prediction_by_one_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(effect, "RIDGE", 1e-6)
    server, clients = build(small(rounds=1, method=METHOD), tmp_path)
    server.run()
    frames = server.method.frames
    for client in clients.values():
        method, predictions = client.method, Predictions(client.context)
        of = frames.shared & predictions.known
        matrix = frames.common.half().float()[of[frames.shared]].T @ predictions.rows(of) / int(of.sum())
        modules = client.context.layout.modules
        place = [i for i in range(len(method.layers)) if modules[i % len(modules)] in method.frames.layout.modules][-1]
        layer = method.layers[place]
        b = layer.trilora_B[client.context.adapter][:, : method.shared_rank]
        read = partial(coordinates, predictions, layer, matrix)
        start, size = read(None), 1e-3
        for r in range(method.shared_rank):
            moved = (read(size * b[:, r]) - start).mean(0) / size
            wanted = torch.eye(method.shared_rank)[r]
            assert (moved - wanted).norm() < 0.35, (client.name, r, moved)


def test_the_output_embedding_is_given_one_token_of_each_anchor_in_one_piece(tmp_path: Path) -> None:
    """By a part of a tensor PyTorch multiplies frozen weights with a copy of them for each row."""
    context = joined(tmp_path)[1]["c0"].context
    read: list[tuple[int, bool]] = []
    head = context.base.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda _, args, out: read.append((args[0].shape[1], args[0].is_contiguous())))
    try:
        Predictions(context).scaled_rows()
    finally:
        hook.remove()
    assert read and set(read) == {(1, True)}


def test_a_run_is_resumed_bit_for_bit_and_the_core_moves(tmp_path: Path) -> None:
    config = small(rounds=3, method=METHOD)
    federation.run(config, tmp_path / "whole")
    stopped = []

    class Stop(Exception):
        pass

    class Watch:
        def __getattr__(self, name: str) -> Any:
            def told(*args: Any) -> None:
                if name == "round_done":
                    stopped.append(args)
                    if len(stopped) == 1:
                        raise Stop

            return told

    with pytest.raises(Stop):
        federation.run(config, tmp_path / "stopped", watcher=Watch())  # type: ignore[arg-type]
    federation.run(config, tmp_path / "stopped", resume=True)
    assert equal(outcome(tmp_path / "whole"), outcome(tmp_path / "stopped"))
    assert outcome(tmp_path / "whole")["core.S"].abs().max() > 0


def test_models_without_common_words_keep_to_their_private_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from h2tune.frames import predictions

    monkeypatch.setattr(predictions, "single_tokens", lambda tokenizer, words: torch.full((len(words),), -1))
    server, clients = joined(tmp_path)
    assert server.method.frames.agreement["words"]["common"] == 0
    assert not server.method.S.any()
    assert all(not c.method.core.coverage.any() for c in clients.values())
    assert all(len(m.rounds) == 2 and m.final for m in server.members.values())


def described(rank: int = 4) -> Payload:
    words = len(common_words())
    return Payload({"words.factors": torch.randn(words, 8).half(), "words.known": torch.ones(words).to(torch.uint8)})


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("words.factors", torch.zeros(3, 8)),
        ("words.factors", torch.full((len(common_words()), 8), float("nan"))),
        ("words.factors", torch.zeros(len(common_words()), 400)),
        ("words.factors", torch.zeros(len(common_words()), 3)),  # fewer than the core's rank: there would be no z
        ("words.known", torch.zeros(7)),
    ],
)
def test_malformed_factors_are_refused(name: str, tensor: Tensor) -> None:
    config = small(method=METHOD)
    server = EffectServer(config, resolve_method(config.method)[1])
    payload = described()
    assert "words" not in str(server.misfits({}, {}))
    payload.tensors[name] = tensor
    server_misfits = _misfits(server, payload)
    assert "words" in server_misfits["c0"]


def _misfits(server: EffectServer, payload: Payload) -> dict[str, str]:
    introduction = Payload(meta={"depth": 1, "slots": ["down"], "rank": 4, "keep": 1.0})
    return server.misfits({"c0": introduction}, {"c0": payload})


def test_a_step_has_its_length_at_each_depth() -> None:
    core = torch.nn.Parameter(torch.zeros(2, 1, 3, 3))
    optimiser = NormalisedGradient([core], lr=0.1, momentum=0.5)
    gradient = torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    unit = gradient / gradient.flatten(1).norm(dim=1).view(2, 1, 1, 1)
    core.grad = gradient.clone()
    optimiser.step()
    torch.testing.assert_close(core.detach(), -0.1 * unit)
    core.grad = 5 * gradient
    optimiser.step()
    torch.testing.assert_close(core.detach(), -0.1 * unit - 0.1 * 1.5 * unit)


def test_its_state_is_kept() -> None:
    def group() -> Group:
        torch.manual_seed(0)
        return Group([torch.nn.Parameter(torch.randn(2, 3))], 0.1, 10, Training(), rule="gradient")

    one, other = group(), group()
    for step in range(4):
        if step == 2:
            other.load_state(one.state())
            other.parameters[0].data.copy_(one.parameters[0])
        for g in (one, other) if step >= 2 else (one,):
            g.parameters[0].grad = torch.full((2, 3), float(step + 1))
            g.optimiser.step()
            g.scheduler.step()
    assert torch.equal(one.parameters[0], other.parameters[0])


def test_plan_says_what_is_sent_before_the_first_round(tmp_path: Path) -> None:
    config = small(rounds=1, method=METHOD)
    planned = {row.name: row for row in make_plan(config.model_copy(update={"anchors": "demo"})).clients}
    server, clients = joined(tmp_path, rounds=1)
    scale = sum(map(len, map(spans, clients["c0"].context.anchors))) / sum(map(len, map(spans, demo_anchors())))
    for name, member in server.members.items():
        up, down = planned[name].setup_bytes_up, planned[name].setup_bytes_down
        # The test's federation has fewer anchors; factors of words do not depend on them.
        assert up and down and member.setup_bytes["up"] < up and member.setup_bytes["down"] < down
        assert member.setup_bytes["up"] > 0.5 * scale * up


@pytest.mark.parametrize(
    "promise",
    [{"secure_aggregation": {"threshold": 3}}, {"weights": "uniform", "privacy": {"clip": 1, "noise": 1}}],
    ids=["secure aggregation", "privacy"],
)
def test_a_model_whose_words_do_not_fit_is_no_obstacle_to_promises(
    promise: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a client covers follows from its vocabulary, so the server knows it before the first round."""
    speechless(monkeypatch, "c1")
    server, clients = joined(tmp_path, clients=4, rounds=1, **promise)
    assert [c.method.core.coverage.any().item() for c in clients.values()] == [True, False, True, True]
    assert [server.method.covers(name).any().item() for name in clients] == [True, False, True, True]
    assert server.round == 1 and server.method.S.any()
    assert [c.method.report()["accepted"] is None for c in clients.values()] == [False, True, False, False]


def test_secure_aggregation_says_before_training_that_there_is_nothing_to_sum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speechless(monkeypatch, "c1")
    with pytest.raises(MethodError, match="no entry of the core is covered by 3 clients"):
        joined(tmp_path, clients=3, rounds=1, secure_aggregation={})


def beside_an_encoder(folder: Path, encoder: bool) -> Any:
    """Two families of decoders, and an encoder with a head."""
    config = small(2, method={"name": "h2tune", "frames": "effect"}, rounds=2)
    if not encoder:
        return config
    folder.mkdir()
    rows = str(write_rows(folder / "rows.jsonl", ROWS))
    model = str(model_folder(folder / "encoder", "bert-cls"))
    client = config.clients[0].model_copy(
        update={
            "name": "head",
            "model": model,
            "task": TASKS["classify"],
            "train": rows,
            "validation": rows,
            "test": rows,
        }
    )
    return config.model_copy(update={"clients": [*config.clients, client]})


def test_an_encoder_keeps_to_its_private_part_and_is_no_part_of_what_the_others_agree_on(tmp_path: Path) -> None:
    alone, _ = build(beside_an_encoder(tmp_path / "data", False), tmp_path / "two")
    alone.open()
    server, clients = build(beside_an_encoder(tmp_path / "data", True), tmp_path / "three")
    server.open()
    assert server.method.frames.agreement == alone.method.frames.agreement
    assert "among their tokens) share nothing: head" in server.method.found()
    setup = {name: member.setup_bytes["down"] for name, member in server.members.items()}
    assert setup["head"] < 4000 < min(setup["c0"], setup["c1"])  # it gets no frames, of which it has no use
    head = clients["head"].method
    before = {key: value for key, value in head.state().items() if key.startswith("adapter.")}
    server.one_round()
    assert not head.core.coverage.any() and not head.core.middle().any() and server.method.S.any()
    assert head.report()["accepted"] is None
    assert all(member.standing == "ok" for member in server.members.values())
    after = head.state()
    moved = [key for key, value in before.items() if key.endswith((".A", ".B")) and not torch.equal(value, after[key])]
    assert moved  # its private LoRA has learnt in every round


@pytest.mark.parametrize("late", [False, True])
def test_where_fewer_than_two_can_share_no_frames_are_sent(late: bool, tmp_path: Path) -> None:
    """A client that is still to come may be the second one, so then they are."""
    config = beside_an_encoder(tmp_path / "data", True)
    c0, c1, head = config.clients
    rows = [c0, head, c1.model_copy(update={"joins": 2})] if late else [c0, head]
    config = config.model_copy(update={"clients": rows})
    planned = {row.name: row for row in make_plan(config).clients}
    server, clients = build(config, tmp_path / "run")
    server.open()
    assert ("fewer than two clients" in server.method.found()) is not late
    sent = server.members["c0"].setup_bytes["up"]
    assert sent > 500_000 and planned["c0"].setup_bytes_up if late else sent < 10_000
    assert late or not (planned["c0"].setup_bytes_up or planned["c0"].setup_bytes_down)
    server.run()
    assert clients["c0"].method.core.coverage.any().item() is late and server.round == 2
    assert all(member.standing == "ok" and member.final for member in server.members.values())
    if not late:
        assert server.members["c0"].rounds[-1]["bytes_up"] < 3_000
        assert planned["c0"].bytes_up == planned["c0"].bytes_down == 0
    assert server.commits.last().method.found() == server.method.found()


@pytest.mark.parametrize("alternation", ["step", "rounds"])
def test_the_schedule_of_a_client_that_covers_nothing_is_the_same_after_a_restart(
    alternation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speechless(monkeypatch, "c1")
    training = {"steps": 4, "batch_size": 2, "schedule": "linear", "warmup": 0}
    method = {"name": "h2tune", "frames": "effect", "alternation": alternation}
    config = small(rounds=3, method=method, training=training)
    server, clients = build(config, tmp_path / "run")
    server.open()
    server.one_round()
    live = clients["c1"].method
    again = build(config, tmp_path / "again")[1]["c1"].method
    again.join(fresh=False)
    again.welcome(server.method.rejoin("c1"), fresh=False)
    again.load_state(live.state())
    rates = [m.groups["specific"].optimiser.param_groups[0]["lr"] for m in (live, again)]
    assert rates[0] == rates[1] > 0


@pytest.mark.parametrize("prepends", [False, True])
def test_a_word_is_one_token_also_where_a_tokenizer_writes_a_space_before_a_text(prepends: bool) -> None:
    """Tokenizers of Mistral and Phi-3 put a space before the text's own: at its start no word would be one token."""
    vocabulary = {"<unk>": 0, "▁": 1, "a": 2, "b": 3, "▁a": 4, "▁ab": 5}
    made = Tokenizer(BPE(vocabulary, [("▁", "a"), ("▁a", "b")], unk_token="<unk>"))
    steps = [normalizers.Prepend("▁")] if prepends else []
    made.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")
    assert single_tokens(tokenizer, ["ab", "ba", "a"]).tolist() == [5, -1, 4]


def speechless(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A client whose model has none of the common words as one token."""
    find = effect.Predictions

    def found(context: Any) -> Predictions:
        predictions = find(context)
        if context.name == name:
            predictions.known = torch.zeros_like(predictions.known)
        return predictions

    monkeypatch.setattr(effect, "Predictions", found)


def test_two_families_share_when_a_third_has_other_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = torch.zeros(3, 5900).bool()
    known[:2, :40], known[2, 38:80] = True, True
    speakers = [{"words.known": row.to(torch.uint8)} for row in known]
    assert [int(s["words.known"].sum()) for s in effect._speakers(speakers, 8)] == [40, 40]
    assert len(effect._speakers(speakers, 2)) == 3
    shared = effect._in_common(speakers[:2])
    assert effect._fits(known[0], shared, 4) and not effect._fits(known[2], shared, 4)


def test_words_are_packed_and_unpacked() -> None:
    known = torch.rand(len(common_words())) < 0.5
    assert torch.equal(effect._unpacked(effect._packed(known)), known)
    for text in ("", "zz", effect._packed(known)[:-2], effect._packed(known)[:-1] + "g"):
        with pytest.raises(ProtocolError, match="common words"):
            effect._unpacked(text)


def test_what_nobody_sets_suits_the_frames() -> None:
    plain, anchored = resolve_method("h2tune")[1], resolve_method({"name": "h2tune", "frames": "anchor"})[1]
    assert plain.frames == "effect" and plain.private is None
    assert (plain.accept, plain.core_rule, plain.alternation) == ("validation", "gradient", "rounds")
    assert (anchored.accept, anchored.core_rule, anchored.private, anchored.alternation) == (
        "always",
        "adamw",
        0,
        "step",
    )
    own = resolve_method({"name": "h2tune", "accept": "always", "private": 3})[1]
    assert (own.accept, own.private, own.core_rule) == ("always", 3, "gradient")
    assert resolve_method("h2tune-published")[1].alternation == "step"


def test_the_core_has_the_first_rounds_or_a_part_of_the_only_one() -> None:
    settings = resolve_method("h2tune")[1]
    assert [settings.phases(2, number, 8)[0] for number in range(1, 9)] == ["joint"] * 2 + ["specific"] * 6
    assert settings.phases(8, 1, 1) == ["joint"] * 2 + ["specific"] * 6
    assert settings.phases(8, 1, 2) == ["joint"] * 4 + ["specific"] * 4 and "joint" not in settings.phases(8, 2, 2)
