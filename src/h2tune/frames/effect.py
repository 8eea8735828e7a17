"""Frames by effect: one unit of a coordinate moves every model's prediction of common words alike.

    A_l   ridge regression on the inputs' common coordinates, as in `h2tune.frames.anchor`
    B_l   = J_l^T (J_l J_l^T + ridge)^-1        J_l: how an output of block l moves z, the prediction in common coordinates

What a block *writes* is aligned by what it does to the prediction and not by its activations: two models may represent a
thing alike and still act on it differently. See `h2tune.frames.predictions` for z and J. Only maps that write into the
residual stream (o, down) have such an effect; the core acts on them. Whatever leaves is a function of public text and
base weights: factors of activations and of the output embedding, once for each base model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from h2tune.config import ClientConfig, Experiment
from h2tune.core.client_core import CoreShape
from h2tune.core.slots import Layout, input_kind
from h2tune.declared import ModelShape, Sent
from h2tune.errors import MethodError, ProtocolError
from h2tune.frames import consensus as fr
from h2tune.frames.anchor import AnchorClient, AnchorServer
from h2tune.frames.base import FrameKind, FrameSettings
from h2tune.frames.bases import Frames
from h2tune.frames.predictions import Predictions, common_words
from h2tune.protocol.codec import Payload
from h2tune.tasks.example import Task

WRITING = ("o", "down")
RIDGE = 1.0  # in multiples of the mean eigenvalue of J J^T: weakly moved coordinates are not blown up
_FACTORS, _KNOWN, _COMMON, _SHARED = "words.factors", "words.known", "words.common", "words.shared"


def _without_words(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t for name, t in tensors.items() if not name.startswith("words.")}


class EffectClient(AnchorClient):
    @property
    def layout(self) -> Layout:
        return self.context.layout.only(self.settings.slots or WRITING)

    predictions: Predictions | None = None

    @classmethod
    def suits(cls, settings: Any, client: ClientConfig, task: Task) -> None:
        super().suits(settings, client, task)
        if strange := set(settings.slots or ()) - set(WRITING):
            raise MethodError(
                f"method.slots: frames: effect act on {' and '.join(WRITING)}, not on {min(strange)}; frames: anchor act on"
                " all slots"
            )

    def introduction(self, fresh: bool) -> dict[str, Any]:
        """With the words that its model knows: they say whether it fits, and so which entries of the core it covers."""
        if not fresh:
            return {"slots": self.core_slots}
        self.predictions = Predictions(self.context)
        known = self.predictions.known
        # A model that predicts no words has nothing in common to read either: its anchors would cost and say nothing.
        said = super().introduction(fresh) if known.any() else {"digest": ""}
        return said | {"slots": self.core_slots, "words": _packed(known)}

    def describe(self) -> Payload:
        """Left factors of what the blocks read and write on the anchors, and of the output embedding over words."""
        said, predictions = super().describe().tensors, self._predictions()
        said[_KNOWN] = predictions.known.to(torch.uint8)
        most = self.settings.directions * self.context.rank
        factors = torch.zeros(len(predictions.known), 0)
        if predictions.known.any():
            u = self._once("words", most, make=lambda: fr.factorise(predictions.scaled_rows(), most).u)
            factors = torch.zeros(len(predictions.known), u.shape[1])
            factors[predictions.known] = u * len(u) ** 0.5
        said[_FACTORS] = factors.half()
        return Payload(said)

    def _once(self, *what: Any, make: Callable[[], Any]) -> Any:
        """What follows from the base model and the anchors alone; clients on one base share it."""
        key = ("effect", *what, self.layout.first, tuple(self.layout.targets), hash(tuple(self.context.anchors)))
        kept = self.context.base.cache
        if key not in kept:
            kept[key] = make()
        return kept[key]

    def _predictions(self) -> Predictions:
        if self.predictions is None:
            raise ProtocolError("the server asks for predictions that this client has not described")
        return self.predictions

    def set_up(self, payload: Payload, shape: CoreShape, relation: Tensor) -> Tensor:
        if payload.meta.get("fits") is False or not self._predictions().known.any():
            return torch.zeros_like(relation)
        common, shared = payload.tensors.get(_COMMON), payload.tensors.get(_SHARED)
        if common is None or shared is None or common.shape != (int(shared.sum()), shape.rank):
            raise ProtocolError("the server's frames lack the words' coordinates")
        relation = super().set_up(Payload(_without_words(payload.tensors), payload.meta), shape, relation)
        predictions, places = self._predictions(), shared.bool()
        if places.shape != predictions.known.shape:
            raise ProtocolError("the server's words are not this client's: install the same version on both sides")
        self.predictions = None
        if not _fits(predictions.known, places, shape.rank):
            return torch.zeros_like(relation)  # it covers nothing: it neither takes from the core nor gives to it
        self._write(self.effects(predictions, common.float(), places))
        return relation

    def effects(self, predictions: Predictions, common: Tensor, shared: Tensor) -> list[Tensor]:
        """J of every map: how what it writes moves the coordinates, R x d_out."""
        digest = hashlib.sha256(common.numpy().tobytes() + shared.numpy().tobytes()).hexdigest()
        found: list[Tensor] = self._once(digest, make=lambda: predictions.effect(self.layout, common, shared))
        return found

    def _write(self, effects: Sequence[Tensor]) -> None:
        """The leading r_i coordinates of B, for the maps on which the core acts."""
        name, rank = self.context.adapter, self.adapter.shared_rank
        with torch.no_grad():
            for layer, effect in zip(self.layers, effects, strict=True):
                own = layer.trilora_B[name]
                own[:, :rank] = _writing(effect)[:rank].T.to(own)


def _writing(effect: Tensor) -> Tensor:
    """B^T, R x d_out: what to add to a map's output for one unit of each coordinate, by ridge regression."""
    gram = (effect @ effect.T).double()
    ridge = RIDGE * gram.diagonal().mean().clamp_min(1e-30) * torch.eye(len(gram), dtype=gram.dtype)
    written: Tensor = torch.linalg.solve(gram + ridge, effect.double())
    return written.float()


class EffectServer(AnchorServer):
    """Attributes:
    common: coordinates of the common words. shared: which words these are. silent: clients whose models predict none.
    """

    common: Tensor | None = None
    shared: Tensor
    silent: Sequence[str] = ()

    def check_introduction(self, payload: Payload) -> None:
        super().check_introduction(payload)
        _unpacked(payload.said("words", str))

    def describers(self, joined: dict[str, Payload]) -> list[str]:
        """Those whose models predict words: an encoder with a head must not bend what the others read alike.

        Nobody where fewer than two can share: frames are the most that is ever sent, and would be of no use.
        """
        speaking = {name: payload for name, payload in joined.items() if _unpacked(payload.meta["words"]).any()}
        self.silent = sorted(joined.keys() - speaking)
        to_come = len(self.experiment.clients) - len(joined)
        return super().describers(speaking) if len(speaking) + to_come >= 2 else []

    def fits(self, payload: Payload) -> bool:
        """Follows from vocabularies, which are public: a model has enough of the words that are common."""
        return _fits(_unpacked(payload.meta["words"]), self.shared, self.experiment.rank)

    def misfits(self, joined: dict[str, Payload], described: dict[str, Payload]) -> dict[str, str]:
        plain = {name: Payload(_without_words(payload.tensors)) for name, payload in described.items()}
        found = super().misfits(joined, plain)
        most, words = self.settings.directions * self.experiment.rank, len(common_words())
        widths: dict[str, int] = {}
        for name, payload in described.items():
            factors, known = payload.tensors.get(_FACTORS), payload.tensors.get(_KNOWN)
            if factors is None or known is None or factors.ndim != 2 or known.shape != (words,):
                found[name] = "its factors of words cannot be read, or belong to other words"
            elif factors.shape[0] != words or factors.shape[1] > most or not torch.isfinite(factors).all():
                found[name] = "its factors of words have another shape than they may have"
            else:
                widths[name] = factors.shape[1]
        if widths and max(widths.values()) < self.experiment.rank:
            found |= dict.fromkeys(widths, f"its factors of words have fewer columns than {self.experiment.rank}")
        return found

    def agree(self, described: dict[str, Payload], shape: CoreShape) -> None:
        if described:
            super().agree({n: Payload(_without_words(p.tensors)) for n, p in described.items()}, shape)
        else:
            self.frames, self.agreement = Frames({}, {}), {"in": [], "out": [], "inputs": [], "slots": []}
        rank = shape.rank
        speakers = _speakers([payload.tensors for payload in described.values()], 2 * rank)
        self.shared = _in_common(speakers)
        if (count := int(self.shared.sum())) < 2 * rank:
            self.shared, self.common, agreement = torch.zeros_like(self.shared), torch.zeros(0, rank), 0.0
        else:
            factors = [torch.linalg.qr(_centred(t[_FACTORS].float()[self.shared]))[0] for t in speakers]
            self.common, agreement = fr.consensus(factors, rank), fr.agreement(factors, rank)
        assert self.agreement is not None
        self.agreement["words"] = {"common": count, "agreement": agreement}

    def found(self) -> str:
        if self.agreement is None:
            return ""
        if not self.agreement["in"]:
            return "fewer than two clients have models that predict words, so nobody shares a core; all stay private"
        said, reads = self.agreement["words"], [value for depth in self.agreement["in"] for value in depth]
        if not len(self.common if self.common is not None else ()):
            return (
                f"the vocabularies have {said['common']:,} words in common, too few to share a core; all stay private"
            )
        alone = (
            "; models that predict no words (with a classification head, or without the common ones among their tokens)"
            f" share nothing: {', '.join(self.silent)}"
            if self.silent
            else ""
        )
        return (
            f"{said['common']:,} common words, whose predictions agree by {said['agreement']:.2f}; what the blocks read"
            f" agrees by {sum(reads) / len(reads):.2f}{alone}"
        )

    def tensors(self) -> dict[str, Tensor]:
        if self.common is None:
            return super().tensors()
        return super().tensors() | {_COMMON: self.common.half(), _SHARED: self.shared.to(torch.uint8)}

    def tensors_for(self, payload: Payload) -> dict[str, Tensor]:
        return self.tensors() if self.fits(payload) else {}

    def load(self, tensors: dict[str, Tensor], shape: CoreShape, agreement: dict[str, Any] | None) -> None:
        super().load(_without_words(tensors), shape, agreement)
        self.common, self.shared = tensors[_COMMON].float(), tensors[_SHARED].bool()


def _packed(known: Tensor) -> str:
    """Booleans as hexadecimal digits, eight in a byte."""
    return np.packbits(known.numpy()).tobytes().hex()


def _unpacked(text: str) -> Tensor:
    """Inverse of `_packed`, for one bit a common word.

    Raises:
        ProtocolError: it is something else.
    """
    count = len(common_words())
    if len(text) != 2 * -(-count // 8) or set(text) - set("0123456789abcdef"):
        raise ProtocolError("its introduction does not say which of the common words its model has")
    return torch.from_numpy(np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=count)).bool()


def _fits(known: Tensor, shared: Tensor, rank: int) -> bool:
    return int((known & shared).sum()) >= rank


def _in_common(speakers: Sequence[dict[str, Tensor]]) -> Tensor:
    known = [tensors[_KNOWN].bool() for tensors in speakers]
    return torch.stack(known).all(0) if known else torch.zeros(len(common_words())).bool()


def _speakers(described: list[dict[str, Tensor]], enough: int) -> list[dict[str, Tensor]]:
    """The models on whose words the others agree: without those that leave too few words in common."""
    speakers = [tensors for tensors in described if bool(tensors[_KNOWN].any())]
    while len(speakers) > 2 and int(_in_common(speakers).sum()) < enough:
        without = [speakers[:i] + speakers[i + 1 :] for i in range(len(speakers))]
        speakers = max(without, key=lambda rest: int(_in_common(rest).sum()))
    return speakers


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(0)


class EffectKind(FrameKind):
    def adapter_slots(self, settings: FrameSettings) -> Sequence[str] | None:
        return settings.slots or WRITING if settings.private == 0 else None

    def core_slots(self, settings: FrameSettings, slots: Collection[str]) -> list[str]:
        return [slot for slot in settings.slots or WRITING if slot in slots]

    def fits(self, shape: ModelShape) -> bool:
        return not shape.head

    def leaves(self, settings: FrameSettings) -> list[Sent]:
        says = (
            "left factors of the base model's activations on the public anchor text and of its output embedding over"
            " common words; they depend on no private row"
        )
        digest = Sent(
            "join", ("digest", "words"), "a digest of them, and which common words its tokenizer has", "once"
        )
        return [
            Sent("describe", ("in.*", "out.*", "words.*"), says, "once, from one client of each base model"),
            digest,
        ]

    def setup_bytes(self, experiment: Experiment, settings: FrameSettings, shape: ModelShape) -> tuple[int, int]:
        """As of anchor frames for the maps that write, and the words' factors; how many words are common is not known yet."""
        if not (self.fits(shape) and self.shares(experiment, shape)):
            return 0, 0
        slots = self.core_slots(settings, shape.slots)
        widths = dict(zip(dict.fromkeys(input_kind(slot) for slot in shape.slots), shape.inputs, strict=True))
        sizes = [widths[input_kind(slot)] for slot in slots]
        sizes += [size for slot, size in zip(shape.slots, shape.parts, strict=True) if slot in slots]
        most, words = settings.directions * experiment.rank, len(common_words())
        up = 2 * shape.anchor_words * shape.blocks * sum(min(most, size) for size in sizes) + words * (2 * most + 1)
        down = 2 * shape.anchor_words * experiment.rank * shape.depth * len(sizes)
        return up, down + words * (2 * experiment.rank + 1)

    def shares(self, experiment: Experiment, shape: ModelShape) -> bool:
        """Late clients may share, too, for all that the server knows when frames are made."""
        first = [c.name for c in experiment.clients if c.joins <= 1 and c.name in shape.company]
        speaking = sum(self.fits(shape.company[name]) for name in first)
        return speaking + len(experiment.clients) - len(first) >= 2


EFFECT = EffectKind(
    "effect",
    "aligned by what a block's output does to predictions of common words",
    EffectClient,
    EffectServer,
    reads_anchors=True,
    suited={
        "private": None,
        "alternation": "rounds",
        "shared_part": 0.25,
        "core_rule": "gradient",
        "accept": "validation",
        "train_factors": False,
        "train_relation": False,
    },  # fmt: skip
)
