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

from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from h2tune.config import Experiment
from h2tune.errors import MethodError, ProtocolError
from h2tune.methods.adapter_client import AdapterClient
from h2tune.methods.base import Method, OneExchange, Sent, Settings
from h2tune.methods.nearest_tokens import NearestTokens
from h2tune.participant.batches import Batch
from h2tune.participant.trainer import Forward, LocalTraining, Update
from h2tune.protocol.codec import Payload
from h2tune.protocol.exchange import Reply
from h2tune.tasks.custom import build_task
from h2tune.tasks.example import TaskError
from h2tune.utils.digest import digest_of
from h2tune.utils.seeds import derive
from h2tune.utils.tensors import as_bytes, from_bytes

NO_WORDS = "{}: fedmkt exchanges predictions of words, a classification head has none"


class FedMktSettings(Settings):
    top: int = Field(32, ge=1, description="logits sent for each position")
    sentences: int = Field(48, ge=1, description="public sentences used in a round, the same for everyone")
    public_part: float = Field(0.25, gt=0, lt=1, description="share of a round's updates on public text")
    distill: float = Field(0.1, ge=0, le=1, description="weight of the distillation; the rest is the LM loss")


class Target(NamedTuple):
    """What the best other model predicts at n positions of a sentence, over k tokens of the own vocabulary each.

    Attributes:
        positions: (n). ids: (n, k); a token with a share is there once. shares: (n, k); rows sum to 1.
    """

    positions: Tensor
    ids: Tensor
    shares: Tensor


class FedMktClient(AdapterClient):
    settings: FedMktSettings
    hosts = True
    reads_public = True

    @classmethod
    def leaves(cls, experiment: Experiment | None, settings: Any) -> list[Sent]:
        logits = f"the {settings.top} largest logits at every position of public sentences, as the client's model predicts them"
        return [
            Sent("join", ("vocabulary",), "the tokenizer's vocabulary", "once"),
            Sent("train", ("values", "ids", "places"), logits),
            Sent("train", ("losses",), "the model's loss on each public sentence"),
        ]

    def check(self) -> None:
        super().check()
        if self.context.task.kind == "classify":
            raise MethodError(NO_WORDS.format(self.context.name))

    def join(self, fresh: bool = True) -> Payload:
        self.attach(self.adapter_rank, residual=True)
        for leaf in self.middles:
            leaf.requires_grad_(False)
        self.public_steps = min(max(1, round(self.settings.public_part * self.steps)), self.steps - 1)
        self.groups = {"adapter": self.group(self.factors, self.context.learning_rate, self.updates)}
        self.vocabularies: dict[str, list[str]] = {}
        self.mapped: dict[str, int] = {}  # spellings of others' tokens
        tokens = [self._spelling(i) for i in range(len(self.context.tokenizer))]
        return Payload(meta=self.introduction(), texts={"vocabulary": tokens})

    def _spelling(self, token: int) -> str:
        spelling = self.context.tokenizer.convert_ids_to_tokens(token)
        assert isinstance(spelling, str)  # one id, one token
        return spelling.replace("Ġ", " ").replace("▁", " ")

    @cached_property
    def _own(self) -> NearestTokens:
        return NearestTokens({self._spelling(i): i for i in reversed(range(len(self.context.tokenizer)))})

    def welcome(self, payload: Payload, fresh: bool = True) -> Payload:
        self._learn_vocabularies(payload)
        return Payload()

    def _learn_vocabularies(self, payload: Payload) -> None:
        self.vocabularies |= {name.removeprefix("vocabulary/"): tokens for name, tokens in payload.texts.items()}

    def public(self, round: int) -> list[dict[str, Any]]:
        """The round's sentences: token ids, and after which character each token ends."""
        context = self.context
        texts = self.public_texts(round) if self.public_texts else self._sampled(round)
        encoded = context.tokenizer(
            texts, return_offsets_mapping=True, truncation=True, max_length=context.base.context
        )
        return [
            {"ids": ids, "ends": [end for _, end in offsets]}
            for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        ]

    def _sampled(self, round: int) -> list[str]:
        generator = torch.Generator().manual_seed(derive(self.context.seed, "public", round))
        order = torch.randperm(len(self.context.anchors), generator=generator)[: self.settings.sentences].tolist()
        return [self.context.anchors[i] for i in order]

    def train(self, round: int, payload: Payload) -> Payload:
        self._learn_vocabularies(payload)
        steps = self.steps - self.left_out
        if payload.tensors:
            steps -= self._learn_from_others(round - 1, payload, min(self.public_steps, steps - 1))
        self.train_groups([self.groups["adapter"]], self.context.batches(round), "local", steps=steps)
        self.finish_training()
        return Payload(self._predictions(round))

    @torch.no_grad()
    def _predictions(self, round: int) -> dict[str, Tensor]:
        """Top-k logits for every position (values, ids), where it ends (sentence, character), loss per sentence."""
        model = self.context.base.activate(self.context.adapter).eval()
        values, ids, places, losses = [], [], [], []
        for number, sentence in enumerate(self.public(round)):
            tokens = torch.tensor([sentence["ids"]], device=self.context.accelerator.device)
            logits = self._of_tokens(model(input_ids=tokens).logits[0]).cpu()
            top = logits.topk(min(self.settings.top, logits.shape[-1]))
            values.append(top.values.half())
            ids.append(top.indices.int())
            places += [(number, end) for end in sentence["ends"]]
            losses.append(float(cross_entropy(logits[:-1], tokens[0, 1:].cpu())) if tokens.shape[1] > 1 else 1e4)
        found = {"values": torch.cat(values), "ids": torch.cat(ids), "places": torch.tensor(places).int()}
        return found | {"losses": torch.tensor(losses)}

    def _learn_from_others(self, round: int, payload: Payload, steps: int) -> int:
        """Updates on the public text of the last round, towards the best prediction of each sentence; returns how many."""
        sentences, targets = self.public(round), self._targets(round, payload)
        if self.public_rows is not None:
            rows = [row for row in sorted(self.public_rows) if row < len(sentences)]
            sentences, targets = [sentences[i] for i in rows], [targets[i] for i in rows]
        if steps < 1 or not sentences:
            return 0
        share = max(1, len(sentences) // steps)

        def batches() -> Iterator[tuple[Batch, list[int]]]:
            while True:
                for start in range(0, max(1, steps * share), share):
                    picked = list(range(start, min(len(sentences), start + share)) or range(share))
                    yield {"labels": torch.tensor(picked)}, []

        def loss(forward: Forward, batch: Batch) -> Tensor:
            picked = batch["labels"].tolist()
            return torch.stack([self._public_loss(forward, sentences[i], targets[i]) for i in picked]).mean()

        model, group = self.activate(), self.groups["adapter"]
        self.select([group])
        update = Update([group], loss)
        self.context.train(LocalTraining.of_one_kind(model, "public", steps, update, batches()))
        return steps

    def _targets(self, round: int, payload: Payload) -> list[Target | None]:
        """For each sentence the best other model's predictions; nothing where the own model does as well."""
        sentences, own = self.public(round), self._predictions(round)["losses"]
        names = {name.split("/")[0] for name in payload.tensors}
        # Reward 1 / exp(CE): the least loss. What other clients sent may be of no use.
        teachers = [n for n in names if len(payload.tensors.get(f"{n}/losses", ())) == len(sentences)]
        targets: list[Target | None] = []
        for number, sentence in enumerate(sentences):
            losses = {name: float(payload.tensors[f"{name}/losses"][number]) for name in teachers}
            best = min(losses, key=lambda name: (losses[name], name), default=None)
            better = best is not None and losses[best] < float(own[number])
            targets.append(self._target(str(best), number, sentence, payload.tensors) if better else None)
        return targets

    def _public_loss(self, forward: Forward, sentence: dict[str, Any], target: Target | None) -> Tensor:
        """0.9 LM + 0.1 KL(target || own) of one sentence; without the first where it is a single token."""
        tokens = torch.tensor([sentence["ids"]], device=self.context.accelerator.device)
        logits = self._of_tokens(forward({"input_ids": tokens}).logits[0])
        loss = 0 * logits.sum()  # a single token has no next one to predict: the mean of nothing would be NaN
        if tokens.shape[1] > 1:
            loss = (1 - self.settings.distill) * cross_entropy(logits[:-1], tokens[0, 1:])
        if target is not None:
            loss = loss + self.settings.distill * _divergence(target, logits)
        return loss

    def _of_tokens(self, logits: Tensor) -> Tensor:
        """Without columns that no token has; many models have some, so that their number is a round one."""
        return logits[:, : len(self.context.tokenizer)].float()

    def _target(
        self, teacher: str, number: int, sentence: dict[str, Any], tensors: dict[str, Tensor]
    ) -> Target | None:
        """The teacher's predictions where both tokenizers have a boundary; None if that is nowhere."""
        places = tensors[f"{teacher}/places"]
        theirs = {int(end): i for i, (s, end) in enumerate(places.tolist()) if s == number}
        pairs = [(i, theirs[end]) for i, end in enumerate(sentence["ends"]) if end and end in theirs]
        if not pairs:
            return None
        rows = [row for _, row in pairs]
        shares = tensors[f"{teacher}/values"][rows].float().softmax(-1)
        ids = torch.tensor(
            [[self._translate(teacher, i) for i in row] for row in tensors[f"{teacher}/ids"][rows].tolist()]
        )
        return Target(torch.tensor([i for i, _ in pairs]), *_merged(ids, shares))

    def _translate(self, teacher: str, token: int) -> int:
        spelling = self.vocabularies[teacher][token]
        if spelling not in self.mapped:
            self.mapped[spelling] = self._own.nearest(spelling)
        return self.mapped[spelling]


def _merged(ids: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Each row with its tokens once, their shares summed, and in the places that are left no share of token 0."""
    ids, order = ids.sort(dim=1, stable=True)
    place = torch.cat([torch.zeros_like(ids[:, :1]), (ids[:, 1:] != ids[:, :-1]).long().cumsum(1)], dim=1)
    summed = torch.zeros_like(shares).scatter_add_(1, place, shares.gather(1, order))
    return torch.zeros_like(ids).scatter_(1, place, ids), summed


def _divergence(target: Target, logits: Tensor) -> Tensor:
    """Mean of KL(target || softmax(logits)) over the target's positions.

    A token without a share adds nothing, so that nothing as wide as the vocabulary needs to be kept of a target.
    """
    positions, ids, wanted = target.positions.to(logits.device), target.ids.to(logits.device), target.shares.to(logits)
    wanted = wanted * (ids < logits.shape[-1])  # a tokenizer may have tokens that its model cannot predict
    said = logits[positions].log_softmax(-1).gather(1, ids.clamp(max=logits.shape[-1] - 1))
    return (wanted * (wanted.clamp_min(1e-12).log() - said)).sum(-1).mean()


class FedMktServer(OneExchange):
    """Passes every client's predictions on to the others.

    Attributes:
        vocabularies: by client. vocabulary_of: the digest of each client's. kept: by digest, as bytes. told: by client, whose vocabularies it has.
        held: by client, its predictions of the last round.
    """

    settings: FedMktSettings

    def __init__(self, experiment: Experiment, settings: FedMktSettings) -> None:
        super().__init__(experiment, settings)
        self.vocabularies: dict[str, list[str]] = {}
        self.vocabulary_of: dict[str, str] = {}
        self.kept: dict[str, Tensor] = {}
        self.told: dict[str, list[str]] = {}
        self.held: dict[str, dict[str, Tensor]] = {}

    @classmethod
    def allows(cls, experiment: Experiment, settings: Any) -> None:
        super().allows(experiment, settings)
        if experiment.training.steps < 2:
            raise MethodError("fedmkt learns from public and from own text: it needs training.steps of 2 or more")
        for client in experiment.clients:
            with suppress(TaskError):  # whoever builds the client says what is wrong with its task
                if build_task(client.task).kind == "classify":
                    raise MethodError(NO_WORDS.format(client.name))

    def check_introduction(self, name: str, payload: Payload) -> None:
        super().check_introduction(name, payload)
        if not payload.texts.get("vocabulary"):
            raise ProtocolError("its introduction lacks a vocabulary")

    def open(self, joined: dict[str, Payload], described: dict[str, Payload]) -> dict[str, Payload]:
        for name, payload in joined.items():
            self._know(name, as_bytes(payload.texts["vocabulary"]))
        self.told |= {name: sorted(self.vocabularies) for name in joined}
        return {name: self.rejoin(name) for name in joined}

    def _know(self, name: str, vocabulary: Tensor) -> None:
        """Keep a client's vocabulary; what several clients share is kept and written once."""
        digest = digest_of({"": vocabulary})
        same = next((other for other, known in self.vocabulary_of.items() if known == digest), None)
        self.vocabularies[name] = from_bytes(vocabulary) if same is None else self.vocabularies[same]
        self.vocabulary_of[name] = digest
        self.kept.setdefault(digest, vocabulary)

    def rejoin(self, client: str) -> Payload:
        return Payload(texts=self._vocabularies(self.vocabularies))

    def _vocabularies(self, names: Any) -> dict[str, list[str]]:
        return {f"vocabulary/{name}": self.vocabularies[name] for name in sorted(names)}

    def download(self, client: str) -> Payload:
        """The others' predictions, and the vocabularies of those that joined since the client was last told."""
        others = {name: tensors for name, tensors in self.held.items() if name != client}
        tensors = {f"{name}/{kind}": tensor for name, held in others.items() for kind, tensor in held.items()}
        return Payload(tensors, texts=self._vocabularies(self.vocabularies.keys() - set(self.told[client])))

    def start_round(self, number: int, selected: list[str]) -> None:
        self.updates: dict[str, dict[str, Tensor]] = {}

    def add(self, reply: Reply) -> None:
        client, tensors = reply.client, reply.payload.tensors
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
        self.told |= {name: sorted(self.vocabularies) for name in self.updates}

    def state(self) -> dict[str, Tensor]:
        return {f"{n}/{k}": t for n, tensors in self.held.items() for k, t in tensors.items()}

    def plain_state(self) -> dict[str, Any]:
        return {"told": self.told, "vocabulary_of": self.vocabulary_of}

    def fixed(self) -> dict[str, Tensor]:
        return self.kept

    def load(self, tensors: dict[str, Tensor], plain: dict[str, Any], fixed: dict[str, Tensor]) -> None:
        self.told, self.held = plain["told"], {}
        for name, tokens in plain.get("vocabularies", {}).items():  # in commits of earlier versions
            self._know(name, as_bytes(tokens))
        for name, digest in plain.get("vocabulary_of", {}).items():
            self._know(name, fixed[digest])
        for key, tensor in tensors.items():
            name, _, kind = key.rpartition("/")
            self.held.setdefault(name, {})[kind] = tensor.clone()


Method(
    "fedmkt",
    FedMktSettings,
    FedMktClient,
    FedMktServer,
    "top-k logits on public text, tokens aligned",
    source="Fan et al., arXiv 2406.02224",
)
