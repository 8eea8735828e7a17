"""FedMKT: top-k logits on public text, tokens aligned between vocabularies (Fan et al., arXiv 2406.02224).

    a round    the client learns from others' predictions of the public text, then on its own data (SFT), then sends
               the top-k logits and the loss per sentence of its model on the public text
    choice     for every public sentence the prediction with the largest reward 1 / exp(CE); one's own means: nothing to
               learn there
    loss       0.9 LM + 0.1 KL(target || own)  on the public text ("kd_alpha" weighs LM)
    tokens     another vocabulary's token becomes the own token with the least edit distance (MinED), and its
               probability is added there

The paper has a server model as well, and aligns token sequences by dynamic programming. Here clients teach each other,
as in its client-to-client setting, and positions are matched where both tokenizers have a boundary after the same
character: there both models have read the same text. The public text is the anchors. Models with a classification head
predict no tokens and cannot take part.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from h2tune.methods.base import Method, MethodError, OnStep, ServerMethod, Settings
from h2tune.participant.adapter_client import AdapterClient
from h2tune.participant.optim import NanLossError
from h2tune.protocol.codec import Payload, ProtocolError
from h2tune.utils.seeds import derive


class FedMktSettings(Settings):
    top: int = Field(32, ge=1, description="logits sent for each position")
    sentences: int = Field(48, ge=1, description="public sentences used in a round, the same for everyone")
    public_part: float = Field(0.25, gt=0, lt=1, description="share of a round's updates on public text")
    distill: float = Field(0.1, ge=0, le=1, description="weight of the distillation; the rest is the LM loss")


def edit_distance(a: str, b: str) -> int:
    """Levenshtein's."""
    before = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        now = [i]
        for j, y in enumerate(b, 1):
            now.append(min(before[j] + 1, now[-1] + 1, before[j - 1] + (x != y)))
        before = now
    return before[-1]


def nearest_token(token: str, known: dict[str, int]) -> int:
    """Id of the own token with the least edit distance; equal distances in the order of the ids."""
    if token in known:
        return known[token]
    return min(known.items(), key=lambda item: (edit_distance(token, item[0]), item[1]))[1]


class FedMktClient(AdapterClient):
    settings: FedMktSettings

    @property
    def adapter_rank(self) -> int:
        return self.client.rank

    def check(self) -> None:
        super().check()
        if self.client.task.kind == "classify":
            raise MethodError(
                f"{self.client.name}: fedmkt exchanges predictions of words, a classification head has none"
            )
        if self.client.training.steps < 2:
            raise MethodError("fedmkt learns from public and from own text: it needs training.steps of 2 or more")

    def join(self, fresh: bool = True) -> Payload:
        self.attach(self.adapter_rank, residual=True)
        for leaf in self.leaves:
            leaf.requires_grad_(False)
        steps = self.client.training.steps
        self.public_steps = min(max(1, round(self.settings.public_part * steps)), steps - 1)
        self.groups = {"adapter": self.group(self.factors, self.rate, steps * self.client.rounds)}
        tokens = [self._spelling(i) for i in range(len(self.client.tokenizer))]
        self.mapped: dict[str, dict[int, int]] = {}
        return Payload(meta=self.introduction() | {"vocabulary": tokens})

    def _spelling(self, token: int) -> str:
        return self.client.tokenizer.convert_ids_to_tokens(token).replace("Ġ", " ").replace("▁", " ")

    @cached_property
    def _own(self) -> dict[str, int]:
        return {self._spelling(i): i for i in reversed(range(len(self.client.tokenizer)))}

    def welcome(self, payload: Payload, fresh: bool = True) -> None:
        self.vocabularies = payload.said("vocabularies", dict[str, list[str]])

    def public(self, round: int) -> list[dict[str, Any]]:
        """The round's sentences: token ids, and after which character each token ends."""
        generator = torch.Generator().manual_seed(derive(self.client.seed, "public", round))
        order = torch.randperm(len(self.client.anchors), generator=generator)[: self.settings.sentences].tolist()
        texts = [self.client.anchors[i] for i in order]
        encoded = self.client.tokenizer(texts, return_offsets_mapping=True, truncation=True,
                                        max_length=self.client.base.context)  # fmt: skip
        return [{"ids": ids, "ends": [end for _, end in offsets]}
                for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)]  # fmt: skip

    def train(self, round: int, payload: Payload, on_step: OnStep) -> tuple[Payload, dict[str, float]]:
        losses, steps = {}, self.client.training.steps
        if payload.tensors:
            losses["public"] = self._learn_from_others(round - 1, payload, on_step)
            steps -= self.public_steps
        losses["local"] = self.steps(self.groups["adapter"], self.batches(round), "local", on_step, steps=steps)
        return Payload(self._predictions(round)), losses

    @torch.no_grad()
    def _predictions(self, round: int) -> dict[str, Tensor]:
        """Top-k logits for every position (values, ids), where it ends (sentence, character), loss per sentence."""
        model = self.client.base.activate(self.client.adapter).eval()
        values, ids, places, losses = [], [], [], []
        for number, sentence in enumerate(self.public(round)):
            tokens = torch.tensor([sentence["ids"]], device=self.client.accelerator.device)
            logits = model(input_ids=tokens).logits[0].float().cpu()
            top = logits.topk(min(self.settings.top, logits.shape[-1]))
            values.append(top.values.half())
            ids.append(top.indices.int())
            places += [(number, end) for end in sentence["ends"]]
            losses.append(float(cross_entropy(logits[:-1], tokens[0, 1:].cpu())) if tokens.shape[1] > 1 else 1e4)
        return {"values": torch.cat(values), "ids": torch.cat(ids), "places": torch.tensor(places).int(),
                "losses": torch.tensor(losses)}  # fmt: skip

    def _learn_from_others(self, round: int, payload: Payload, on_step: OnStep) -> float:
        """Updates on the public text of the last round, towards the best prediction of each sentence."""
        sentences, own = self.public(round), self._predictions(round)["losses"]
        names = {n.split("/")[0] for n in payload.tensors}
        teachers = [n for n in names if len(payload.tensors.get(f"{n}/losses", ())) == len(sentences)]
        targets = []
        for number in range(len(sentences)):
            # Reward 1 / exp(CE): the least loss. Nobody better, nothing to learn.
            if not teachers:  # what the others sent is of no use
                targets.append({})
                continue
            best = min(teachers, key=lambda name: (float(payload.tensors[f"{name}/losses"][number]), name))
            better = float(payload.tensors[f"{best}/losses"][number]) < float(own[number])
            targets.append(self._target(best, number, sentences[number], payload.tensors) if better else {})
        self.activate()
        group, total = self.groups["adapter"], 0.0
        self.select(group)
        share = max(1, len(sentences) // self.public_steps)
        for step in range(self.public_steps):
            batch = range(step * share, min(len(sentences), (step + 1) * share)) or range(share)
            loss = torch.stack([self._public_loss(sentences[i], targets[i]) for i in batch]).mean()
            if not torch.isfinite(loss):
                raise NanLossError("the loss is not a number on the public text")
            self.client.accelerator.backward(loss)
            self.updater.apply(group)
            total += float(loss.detach())
            on_step("public", step + 1, self.public_steps, float(loss.detach()))
        return total / self.public_steps

    def _public_loss(self, sentence: dict[str, Any], target: dict[int, Tensor]) -> Tensor:
        """0.9 LM + 0.1 KL(target || own) of one sentence."""
        tokens = torch.tensor([sentence["ids"]], device=self.client.accelerator.device)
        logits = self.client.base.peft(input_ids=tokens).logits[0].float()
        loss = (1 - self.settings.distill) * cross_entropy(logits[:-1], tokens[0, 1:])
        if target:
            wanted = torch.stack(list(target.values())).to(logits)
            said = logits[list(target)].log_softmax(-1)
            kl = (wanted * (wanted.clamp_min(1e-12).log() - said)).sum(-1).mean()
            loss = loss + self.settings.distill * kl
        return loss

    def _target(
        self, teacher: str, number: int, sentence: dict[str, Any], tensors: dict[str, Tensor]
    ) -> dict[int, Tensor]:
        """Own position -> distribution over the own vocabulary, where both tokenizers have a boundary."""
        places = tensors[f"{teacher}/places"]
        theirs = {int(end): i for i, (s, end) in enumerate(places.tolist()) if s == number}
        found = {}
        for position, end in enumerate(sentence["ends"]):
            if end and end in theirs:
                row = theirs[end]
                shares = tensors[f"{teacher}/values"][row].float().softmax(-1)
                target = torch.zeros(len(self.client.tokenizer))
                mapped = [self._translate(teacher, int(i)) for i in tensors[f"{teacher}/ids"][row]]
                found[position] = target.index_add_(0, torch.tensor(mapped), shares)
        return found

    def _translate(self, teacher: str, token: int) -> int:
        memory = self.mapped.setdefault(teacher, {})
        if token not in memory:
            memory[token] = nearest_token(self.vocabularies[teacher][token], self._own)
        return memory[token]


class FedMktServer(ServerMethod):
    """Passes every client's predictions on to the others."""

    needs = ("vocabulary",)

    settings: FedMktSettings

    def open(self, joined: dict[str, Payload], described: dict[str, Payload]) -> dict[str, Payload]:
        self.vocabularies = getattr(self, "vocabularies", {}) | {n: p.meta["vocabulary"] for n, p in joined.items()}
        self.held: dict[str, dict[str, Tensor]] = getattr(self, "held", {})
        return {name: Payload(meta={"vocabularies": self.vocabularies}) for name in joined}

    def download(self, client: str) -> Payload:
        known = {n: t for n, t in self.held.items() if n != client}
        return Payload({f"{n}/{k}": t for n, tensors in known.items() for k, t in tensors.items()})

    def start_round(self) -> None:
        self.updates: dict[str, dict[str, Tensor]] = {}

    def add(self, client: str, payload: Payload, weight: int) -> None:
        tensors = payload.tensors
        if tensors.keys() != {"values", "ids", "places", "losses"}:
            raise ProtocolError(f"the update of {client} holds other tensors than it may send")
        n, top = len(tensors["places"]), min(self.settings.top, len(self.vocabularies[client]))
        sizes = {"values": (n, top), "ids": (n, top), "places": (n, 2)}
        whole = all(tuple(tensors[k].shape) == shape for k, shape in sizes.items()) and tensors["losses"].ndim == 1
        inside = whole and bool(((tensors["ids"] >= 0) & (tensors["ids"] < len(self.vocabularies[client]))).all())
        whole_numbers = not any(tensors[k].is_floating_point() for k in ("ids", "places"))
        if not inside or not whole_numbers or not 0 < len(tensors["losses"]) <= self.settings.sentences:
            raise ProtocolError(f"the update of {client} is malformed")
        self.updates[client] = tensors

    def finish_round(self) -> None:
        self.held = self.updates

    def state(self) -> dict[str, Tensor]:
        return {f"{n}/{k}": t for n, tensors in self.held.items() for k, t in tensors.items()}

    def plain_state(self) -> dict[str, Any]:
        return {"vocabularies": self.vocabularies}

    def resume(
        self, tensors: dict[str, Tensor], plain: dict[str, Any], fixed: dict[str, Tensor], names: list[str]
    ) -> dict[str, Payload]:
        self.vocabularies, self.held = plain["vocabularies"], {}
        for key, tensor in tensors.items():
            name, kind = key.split("/")
            self.held.setdefault(name, {})[kind] = tensor.clone()
        return {name: Payload(meta={"vocabularies": self.vocabularies}) for name in names}


Method(
    "fedmkt", FedMktSettings, FedMktClient, FedMktServer, "top-k logits on public text, tokens aligned",
    sends="top-k logits and losses on public sentences; once, the vocabulary",
    source="Fan et al., arXiv 2406.02224",
)  # fmt: skip
