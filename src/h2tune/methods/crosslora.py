"""Cross-LoRA: an update moves to another model by the singular vectors of both models' weights (Xia et al., arXiv 2508.05232).

    W_s ~ U_s Sigma_s V_s^T,   W_t ~ U_t Sigma_t V_t^T,   each cut to its leading directions
    P_U = argmin ||P U_s - U_t|| = U_t U_s^T,   P_V = argmin ||P V_s - V_t|| = V_t V_s^T   (of least Frobenius norm)
    delta W_t = P_U delta W_s P_V^T = U_t (U_s^T B_s) (A_s V_s) V_t^T

One exchange in the whole run: every client trains a LoRA alone, sends ``U_s^T B_s`` and ``A_s V_s`` of each map, takes the
mean of the others' updates into the adapter's frozen offset, and trains on. No data and no base weight leaves a client.

**Reconstruction**, from summaries of the paper. Its equation 7 multiplies ``P_U U_s = U_t`` with delta W_s, which only fits
where both models have equal sizes; here the update is read in the source's directions and written in the target's. Which blocks
belong together is open (here: those at the same relative depth), and so are the signs of singular vectors (here: the
largest entry of each column of U is positive). The paper's target does not train: that is ``after: 1`` without rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad
from transformers.pytorch_utils import Conv1D

from h2tune.adapter import TriLoraLayer
from h2tune.config import Experiment
from h2tune.errors import ProtocolError
from h2tune.methods.base import Method, ModelShape, OneExchange, PlannedBytes, Sent, Settings
from h2tune.methods.factors import FactorClient, stack
from h2tune.protocol.codec import Payload
from h2tune.protocol.exchange import Reply


class CrossLoraSettings(Settings):
    directions: int = Field(
        320, ge=1, description="singular directions of each base weight (the paper's truncated rank)"
    )
    after: float = Field(0.5, gt=0, le=1, description="share of the rounds after which updates are exchanged, once")

    def turn(self, rounds: int) -> int:
        """The round at whose end the updates are sent."""
        return max(1, round(self.after * rounds))


def directions(weight: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Leading left and right singular vectors of a weight (d_out x d_in): d_out x r and d_in x r."""
    w = weight.double()
    wide = w.shape[1] > w.shape[0]
    values, vectors = torch.linalg.eigh(w @ w.T if wide else w.T @ w)  # several times faster than the SVD
    side = vectors.flip(1)[:, :most]
    s = values.flip(0)[:most].clamp_min(0).sqrt()
    inverse = torch.where(s > 1e-9 * s[0].clamp_min(1e-30), 1 / s.clamp_min(1e-30), 0.0)
    u, v = (side, w.T @ side * inverse) if wide else (w @ side * inverse, side)
    sign = u.gather(0, u.abs().argmax(0, keepdim=True)).sign()
    return (u * sign).float(), (v * sign).float()


class CrossLoraClient(FactorClient):
    settings: CrossLoraSettings
    offset = True
    hosts = False

    @classmethod
    def planned_bytes(cls, experiment: Experiment, settings: Any, shape: ModelShape) -> PlannedBytes:
        """The mean over the rounds of what travels in one of them."""
        sizes = (2 * parts * min(settings.directions, d_in, d_out // parts) for d_in, d_out, parts in shape.maps)
        size = 4 * shape.rank * sum(sizes)
        others = len(experiment.clients) - 1
        return PlannedBytes(size // experiment.rounds, others * size // experiment.rounds)

    @classmethod
    def leaves(cls, experiment: Experiment | None, settings: Any) -> list[Sent]:
        says = (
            "the LoRA factors A and B of every adapted map, in the coordinates of the base weights' singular vectors"
        )
        return [Sent("train", ("*.A", "*.B"), says, "once")]

    def welcome(self, payload: Payload, fresh: bool = True) -> Payload:
        return Payload()

    def _maps(self) -> Iterator[tuple[TriLoraLayer, list[tuple[str, Tensor]]]]:
        """Every adapted map; of each of its parts ``block.slot`` and the rows of the base weight."""
        layout = self.context.layout
        for index, layer in enumerate(self.layers):
            block, place = divmod(index, len(layout.modules))
            weight = layer.get_base_weight().detach()
            weight = weight.T if isinstance(layer.get_base_layer(), Conv1D) else weight
            module = layout.modules[place]
            slots = sorted((ref.part, slot) for slot, ref in layout.slots.items() if ref.module == module)
            parts = layer.trilora_rows[self.context.adapter].split(weight)
            yield layer, [(f"{block}.{slot}", part) for (_, slot), part in zip(slots, parts, strict=True)]

    def pack(self) -> dict[str, Tensor]:
        """``A V`` and ``U^T B`` of every part of every map, in the round of the exchange."""
        if self.context.round != self.settings.turn(self.context.rounds):
            return {}
        sent, name = {}, self.context.adapter
        for layer, parts in self._maps():
            a = layer.trilora_A[name].detach().float()
            written = layer.trilora_rows[name].split(layer.left_factor(name).detach().float())
            for (key, weight), b in zip(parts, written, strict=True):
                u, v = directions(weight, self.settings.directions)
                sent[f"{key}.A"], sent[f"{key}.B"] = a @ v, u.T @ b
        return sent

    def receive(self, payload: Payload) -> None:
        """Write the mean of the others' updates in this model's directions; again is the same as once."""
        left = dict(payload.tensors)
        if not left:
            return
        with torch.no_grad():
            for layer, parts in self._maps():
                rows = layer.trilora_rows[self.context.adapter]
                moved = [
                    self._moved(weight, left.pop(f"{k}.A", None), left.pop(f"{k}.B", None)) for k, weight in parts
                ]
                layer.trilora_offset[self.context.adapter].copy_(rows.join(moved))
        if left:
            raise ProtocolError(f"the server sent {min(left)!r}, which this model has no map for")

    def _moved(self, weight: Tensor, a: Tensor | None, b: Tensor | None) -> Tensor:
        """``U B A V^T``, d_out x d_in; 0 where nobody else has the slot."""
        if a is None or b is None:
            return torch.zeros(weight.shape, device=weight.device)
        if a.ndim != 2 or b.shape != a.shape[::-1]:
            raise ProtocolError(f"the server sent factors of shapes {tuple(a.shape)} and {tuple(b.shape)}")
        u, v = directions(weight, min(self.settings.directions, a.shape[1]))
        a, b = a.to(u)[:, : v.shape[1]], b.to(u)[: u.shape[1]]
        return (u @ b) @ (a @ v.T)


class CrossLoraServer(OneExchange):
    """Keeps what clients send, in coordinates of singular directions, and passes each the mean of the others'.

    Attributes:
        known: introductions. sent: by client. weights: of the clients in a mean. told: who has the others' mean.
    """

    settings: CrossLoraSettings
    needs = ("depth", "slots")

    def __init__(self, experiment: Experiment, settings: CrossLoraSettings) -> None:
        super().__init__(experiment, settings)
        self.known: dict[str, dict[str, Any]] = {}
        self.sent: dict[str, dict[str, Tensor]] = {}
        self.weights: dict[str, int] = {}
        self.told: list[str] = []

    def open(self, joined: dict[str, Payload], described: dict[str, Payload]) -> dict[str, Payload]:
        self.known |= {name: dict(payload.meta) for name, payload in joined.items()}
        return {name: Payload() for name in joined}

    def start_round(self, number: int, selected: list[str]) -> None:
        self.exchanges = number == self.settings.turn(self.experiment.rounds)
        self.updates: dict[str, dict[str, Tensor]] = {}

    def add(self, reply: Reply) -> None:
        client, tensors, known = reply.client, reply.payload.tensors, self.known[reply.client]
        keys = [f"{block}.{slot}" for block in range(known["depth"]) for slot in known["slots"]]
        if tensors.keys() != ({f"{key}.{kind}" for key in keys for kind in "AB"} if self.exchanges else set()):
            raise ProtocolError(f"the update of {client} holds other tensors than it may send")
        for a, b in ((tensors[f"{key}.A"], tensors[f"{key}.B"]) for key in keys if self.exchanges):
            fits = a.ndim == 2 and b.shape == a.shape[::-1] and a.shape[0] == self.experiment.rank
            if (
                not fits
                or a.shape[1] > self.settings.directions
                or not (a.is_floating_point() and b.is_floating_point())
            ):
                raise ProtocolError(f"the update of {client} has factors of another shape than it may send")
        self.updates[client] = tensors
        self.weights[client] = self.weight(reply)

    def finish_round(self) -> None:
        if self.exchanges:
            self.sent, self.told = self.updates, []
        elif self.sent:
            self.told = sorted({*self.told, *self.updates})

    def download(self, client: str) -> Payload:
        """The mean of the others' updates for every slot that the client has, from blocks at the same relative depth."""
        own, found = self.known[client], dict[str, Tensor]()
        if client in self.told:
            return Payload()
        for block in range(own["depth"]):
            for slot in own["slots"]:
                others = [n for n in sorted(self.sent) if n != client and slot in self.known[n]["slots"]]
                if others:
                    keys = [f"{_matching(block, own['depth'], self.known[n]['depth'])}.{slot}" for n in others]
                    found |= self._mean(f"{block}.{slot}", others, keys)
        return Payload(found)

    def _mean(self, key: str, others: list[str], theirs: list[str]) -> dict[str, Tensor]:
        """One pair whose product is the mean of the others' products; who has fewer directions has zeros there."""
        pairs = [(self.sent[n][f"{k}.A"], self.sent[n][f"{k}.B"]) for n, k in zip(others, theirs, strict=True)]
        most, total = max(a.shape[1] for a, _ in pairs), sum(self.weights[n] for n in others)
        padded = [(pad(a, (0, most - a.shape[1])), pad(b, (0, 0, 0, most - len(b)))) for a, b in pairs]
        a, b = stack(padded, [self.weights[n] / total for n in others])
        return {f"{key}.A": a, f"{key}.B": b}

    def state(self) -> dict[str, Tensor]:
        return {f"{n}/{key}": tensor for n, tensors in self.sent.items() for key, tensor in tensors.items()}

    def plain_state(self) -> dict[str, Any]:
        return {"known": self.known, "told": self.told, "weights": self.weights}

    def load(self, tensors: dict[str, Tensor], plain: dict[str, Any], fixed: dict[str, Tensor]) -> None:
        self.known, self.told, self.weights, self.sent = plain["known"], plain["told"], plain["weights"], {}
        for key, tensor in tensors.items():
            name, _, part = key.rpartition("/")
            self.sent.setdefault(name, {})[part] = tensor.clone()


def _matching(block: int, depth: int, other: int) -> int:
    """The block of a model of another depth at the same relative depth."""
    return round(block / (depth - 1) * (other - 1)) if depth > 1 else (other - 1) // 2


Method(
    "crosslora",
    CrossLoraSettings,
    CrossLoraClient,
    CrossLoraServer,
    "updates moved once, by singular vectors of the base weights",
    source="Xia et al., arXiv 2508.05232 (reconstruction)",
)
