"""CE-LoRA: a small middle matrix is shared, and every client gets a mixture of its own (Li et al., arXiv 2503.23869).

    delta W = B C A,   only C travels
    C_k <- sum_j w_kj C_j,   w_k = softmax_j( cos(C_k, C_j) / tau )

**Reconstruction.** The abstract says that the mixture weighs by similarity of data and of parameters; the measures could not
be read. Here it is the cosine of the C's alone, and nothing about the data leaves a client. The paper's clients have
equal models; for different ones C is read along depth as H2Tune's core is, and A and B start from anchor frames, so
that the only difference to H2Tune with `frames: anchor, alternation: joint` is the aggregation.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from h2tune.config import Experiment
from h2tune.frames.registry import kind_of
from h2tune.methods.base import Method, Sent, ServerMethod
from h2tune.methods.core_updates import leaves
from h2tune.methods.h2tune import H2TuneClient, H2TuneServer
from h2tune.methods.h2tune_settings import AlternatingSettings
from h2tune.protocol.codec import Payload
from h2tune.protocol.exchange import Reply


class CeLoraSettings(AlternatingSettings):
    alternation: Literal["joint"] = Field("joint", description="A, B and C in every update")
    aggregate: Literal["mean"] = Field("mean", description="the rule is the mixture")
    temperature: float = Field(0.5, gt=0, description="tau of the mixture's softmax")


def mixture_weights(cores: Tensor, coverage: Tensor, temperature: float) -> Tensor:
    """``softmax_j(cos(C_k, C_j) / tau)``, clients x clients, the cosine over the entries that both cover."""
    n = len(cores)
    flat, held = (cores * coverage).reshape(n, -1).double(), coverage.reshape(n, -1).double()
    inner = flat @ flat.T
    norms = (flat.square() @ held.T).sqrt()  # [k, j]: norm of C_k on what j covers
    cosine = inner / (norms * norms.T).clamp_min(1e-30)
    return torch.softmax(cosine / temperature, dim=1)


def mix(cores: Tensor, coverage: Tensor, weights: Tensor) -> Tensor:
    """``sum_j w_kj C_j / sum_j w_kj`` over the clients that cover an entry; clients x core."""
    shape = cores.shape
    flat, held = (cores * coverage).reshape(len(cores), -1).double(), coverage.reshape(len(cores), -1).double()
    total = weights @ held
    return (weights @ flat / total.clamp_min(1e-30)).reshape(shape).to(cores.dtype)


class CeLoraClient(H2TuneClient):
    hosts = False

    @classmethod
    def leaves(cls, experiment: Experiment | None, settings: Any) -> list[Sent]:
        core = leaves(experiment, "the entries of the middle matrix C that the client keeps, and which they are")
        return [*kind_of(settings.frames).leaves(settings), *core]


class CeLoraServer(H2TuneServer):
    """Keeps every client's last core: its memory grows with their number.

    Attributes:
        cores: every client's last C and its coverage. mixed: what each client gets.
    """

    settings: CeLoraSettings

    def __init__(self, experiment: Experiment, settings: CeLoraSettings) -> None:
        super().__init__(experiment, settings)
        self.cores: dict[str, tuple[Tensor, Tensor]] = {}
        self.mixed: dict[str, Tensor] = {}
        self.weights: dict[str, list[float]] = {}

    @classmethod
    def allows(cls, experiment: Experiment, settings: Any) -> None:
        ServerMethod.allows(experiment, settings)  # what clients get here is no core of the server's

    def add(self, reply: Reply) -> None:
        super().add(reply)
        client, rank = reply.client, self.ranks[reply.client]
        core, coverage = self.read(client, reply.payload.tensors)
        whole, held = self.shape.zeros(), self.shape.zeros().bool()
        whole[..., :rank, :rank], held[..., :rank, :rank] = core, coverage
        self.cores[client] = whole, held

    def finish_round(self) -> None:
        super().finish_round()
        names = sorted(self.cores)
        cores, held = (torch.stack([self.cores[n][part] for n in names]) for part in (0, 1))
        weights = mixture_weights(cores, held, self.settings.temperature)
        self.mixed = dict(zip(names, mix(cores, held, weights), strict=True))
        self.weights = {n: row.tolist() for n, row in zip(names, weights, strict=True)}

    def download(self, client: str) -> Payload:
        return Payload(self.pack(self.mixed.get(client, self.S), client))

    def state(self) -> dict[str, Tensor]:
        kept = {f"core/{n}": core for n, (core, _) in self.cores.items()}
        kept |= {f"held/{n}": held for n, (_, held) in self.cores.items()}
        return super().state() | kept | {f"mixed/{n}": m for n, m in self.mixed.items()}

    def load(self, tensors: dict[str, Tensor], plain: dict[str, Any], fixed: dict[str, Tensor]) -> None:
        super().load(tensors, plain, fixed)
        parts: dict[str, dict[str, Tensor]] = {"core": {}, "held": {}, "mixed": {}}
        for key, tensor in tensors.items():
            kind, _, name = key.partition("/")
            if kind in parts:
                parts[kind][name] = tensor.clone()
        self.cores = {name: (core, parts["held"][name]) for name, core in parts["core"].items()}
        self.mixed = parts["mixed"]

    def report(self) -> dict[str, Any]:
        return super().report() | {"mixture": self.weights}


Method(
    "celora",
    CeLoraSettings,
    CeLoraClient,
    CeLoraServer,
    "a middle matrix, mixed for every client by similarity",
    source="Li et al., arXiv 2503.23869 (reconstruction)",
)
