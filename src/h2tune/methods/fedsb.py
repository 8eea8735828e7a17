"""Fed-SB: frozen bases from the first gradients, only R between them is trained and averaged (arXiv 2502.15436, 2411.19557).

    G = sum of weight gradients over a few of a client's examples,   -eta sign(G) ~ U Sigma V^T  (its leading part)
    delta W = B R A,   B = U,  A = V^T  frozen,   R_0 = Sigma,   R <- sum_k p_k R_k  (exact)

The paper's clients share one model, and its released code takes the gradient of everybody's pooled data. Here the first
client of each base model (by name) takes it from its own data and hands A, B and R_0 to the others on that base: with two
or more clients on a base, a function of one client's private gradients leaves it, once. For different
models R is read along depth as H2Tune's core is, each block its nearest depth; the bases are then unrelated, which
is the point of having it in a comparison.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from h2tune.adapter import TriLoraLayer
from h2tune.config import Experiment
from h2tune.errors import ProtocolError
from h2tune.methods.base import Method, MethodError, ModelShape, PlannedBytes, Sent
from h2tune.methods.core_updates import leaves
from h2tune.methods.h2tune import H2TuneClient, H2TuneServer
from h2tune.methods.h2tune_settings import AlternatingSettings
from h2tune.protocol.codec import Payload


class FedSbSettings(AlternatingSettings):
    frames: Literal["random"] = Field("random", description="A and B come from gradients")
    alternation: Literal["joint"] = Field("joint", description="only R is trained")
    relation: Literal["nearest"] = Field("nearest", description="each block reads its nearest depth")
    train_relation: bool = Field(False, description="P is fixed")
    train_factors: bool = Field(False, description="A and B are frozen")
    private: Literal[0] = Field(0, description="the whole adapter lies between the bases")
    examples: int = Field(64, ge=1, description="examples behind the first gradient")
    eta: float = Field(1e-3, gt=0, description="size of the first step that R_0 approximates")


def sign_step(gradient: Tensor, rank: int, eta: float) -> tuple[Tensor, Tensor, Tensor]:
    """A (r x d_in), B (d_out x r) and R_0 (r x r) whose product is the best rank-r part of ``-eta sign(G)``."""
    u, s, vh = torch.linalg.svd(-eta * gradient.float().sign(), full_matrices=False)
    return vh[:rank], u[:, :rank], torch.diag(s[:rank])


def _base_weight(layer: TriLoraLayer) -> Tensor:
    weight = layer.get_base_layer().weight
    assert isinstance(weight, Tensor)
    return weight


class FedSbClient(H2TuneClient):
    hosts = False
    protects_rows = False  # the bases are made from gradients of rows
    settings: FedSbSettings

    @classmethod
    def planned_bytes(cls, experiment: Experiment, settings: Any, shape: ModelShape) -> PlannedBytes:
        """As of a core; and once A, B and R_0 of every map, which the first client of a base sends and all receive."""
        first = min((c.joins, c.name) for c in experiment.clients if c.name in shape.peers)[1]
        rank = experiment.rank
        bases = 4 * sum(rank * (d_in + d_out + rank) for d_in, d_out, _ in shape.maps)
        planned = super().planned_bytes(experiment, settings, shape)
        return replace(planned, setup_up=bases if shape.client == first else 0, setup_down=bases)

    @classmethod
    def leaves(cls, experiment: Experiment | None, settings: Any) -> list[Sent]:
        says = "A, B and R_0 of every map, made from gradients on this client's private rows"
        once = Sent("describe", ("*.A", "*.B", "*.R"), says, "once, from one client of each base model")
        return [once, *leaves(experiment, "the covered entries of R, and which they are")]

    def describe(self, payload: Payload) -> Payload:
        """A, B and R_0 of every map, from gradients on this client's first examples.

        They have the federation's rank, whatever this client keeps of it: others on its base may keep more.
        """
        tensors: dict[str, Tensor] = {}
        start: dict[int, Tensor] = {}
        for index, gradient in enumerate(self._gradients()):
            a, b, start[index] = sign_step(gradient, self.context.rank, self.settings.eta)
            tensors |= {f"{index}.A": a, f"{index}.B": b, f"{index}.R": start[index]}
        return Payload(tensors)

    def _gradients(self) -> list[Tensor]:
        """``dL/dW`` of every adapted map, d_out x d_in, summed over a few batches."""
        weights = [_base_weight(layer) for layer in self.layers]
        if not all(w.is_floating_point() for w in weights):
            raise ProtocolError(
                f"{self.context.name}: Fed-SB needs gradients of the base weights, a quantised base has none"
            )
        model = self.activate()
        for weight in weights:
            weight.requires_grad_(True)
        seen, batches = 0, self.context.batches("first gradient")
        while seen < min(self.settings.examples, len(self.context.data.train)):
            batch, rows = next(batches)
            again = iter([(batch, rows)] * self.context.training.accumulation)
            self.context.trainer.gradients(model, again, passes=self.context.passes)
            seen += len(rows)
        found = []
        for layer, weight in zip(self.layers, weights, strict=True):
            assert weight.grad is not None
            grad = weight.grad.detach().clone()
            found.append(grad.T if isinstance(layer.get_base_layer(), Conv1D) else grad)
            weight.requires_grad_(False)
            weight.grad = None
        model.zero_grad()
        return found

    def set_up(self, payload: Payload, relation: Tensor) -> Tensor:
        with torch.no_grad():
            for index, layer in enumerate(self.layers):
                self._copy_base(layer, "A", payload.tensors[f"{index}.A"])
                self._copy_base(layer, "B", payload.tensors[f"{index}.B"])
        self.first = [payload.tensors[f"{index}.R"] for index in range(len(self.layers))]
        return relation

    def _copy_base(self, layer: TriLoraLayer, kind: str, tensor: Tensor) -> None:
        """The leading r_i directions."""
        own, rank = getattr(layer, f"trilora_{kind}")[self.context.adapter], self.adapter_rank
        leading = tensor[:rank] if kind == "A" else tensor[..., :rank]
        if own.shape != leading.shape:
            raise ProtocolError(f"the server sent bases of shape {tuple(tensor.shape)} for {tuple(own.shape)}")
        own.copy_(leading)

    first: list[Tensor] | None = None

    def train(self, round: int, payload: Payload) -> Payload:
        if round == 1 and self.first is not None:
            self._start_from_first_step(payload)
        self.first = None
        return super().train(round, payload)

    def _start_from_first_step(self, payload: Payload) -> None:
        """R starts at R_0: put it where the (still empty) core would be received."""
        core, rank = torch.zeros_like(self.core.S), self.core.rank
        for first, (block, columns) in zip(self.first or [], self.core._places(), strict=True):
            depth = int(self.core.relation().argmax(0)[block])
            core[depth, [self.core.columns[c] for c in columns]] = first[..., :rank, :rank].to(core)
        self.core.S.data.copy_(core)
        payload.tensors.clear()

    def receive(self, payload: Payload) -> None:
        if payload.tensors:
            super().receive(payload)

    def state(self) -> dict[str, Tensor]:
        return super().state() | {f"first.{i}": tensor.clone() for i, tensor in enumerate(self.first or [])}

    def load_state(self, state: dict[str, Tensor]) -> None:
        super().load_state({k: v for k, v in state.items() if not k.startswith("first.")})
        count = sum(k.startswith("first.") for k in state)
        self.first = [state[f"first.{i}"] for i in range(count)] or None


class FedSbServer(H2TuneServer):
    """Attributes:
    bases: A, B and R_0 by base model. base_of: the base model of each client.
    """

    needs: ClassVar[tuple[str, ...]] = (*H2TuneServer.needs, "fingerprint", "maps")

    def __init__(self, experiment: Experiment, settings: FedSbSettings) -> None:
        super().__init__(experiment, settings)
        self.bases: dict[str, dict[str, Tensor]] = {}
        self.base_of: dict[str, str] = {}

    @classmethod
    def allows(cls, experiment: Experiment, settings: Any) -> None:
        super().allows(experiment, settings)
        if experiment.privacy:
            raise MethodError("privacy: the bases of fedsb are made from private gradients, which nothing protects")
        if experiment.secure_aggregation:
            raise MethodError(
                "secure_aggregation: the bases of fedsb are made from private gradients, which are sent open"
            )

    def describers(self, joined: dict[str, Payload]) -> list[str]:
        """The first client of each base, unless its bases are known from clients that joined before."""
        first: dict[str, str] = {}
        for name in sorted(joined):
            first.setdefault(joined[name].meta["fingerprint"], name)
        return [name for base, name in first.items() if base not in self.bases]

    def misfits(self, joined: dict[str, Payload], described: dict[str, Payload]) -> dict[str, str]:
        rank, found = self.experiment.rank, {}
        for name, payload in described.items():
            for index, (d_in, d_out) in enumerate(joined[name].meta["maps"]):
                a, b, first = (payload.tensors.get(f"{index}.{kind}", torch.zeros(0)) for kind in "ABR")
                if a.shape != (rank, d_in) or b.shape != (d_out, rank) or first.shape[-2:] != (rank, rank):
                    found[name] = f"its bases of map {index} are missing or of another shape"
                    break
        return found

    def open(self, joined: dict[str, Payload], described: dict[str, Payload]) -> dict[str, Payload]:
        self.base_of |= {name: payload.meta["fingerprint"] for name, payload in joined.items()}
        self.bases |= {self.base_of[name]: payload.tensors for name, payload in described.items()}
        welcomes = super().open(joined, {})
        return {name: Payload(dict(self.bases[self.base_of[name]]), p.meta) for name, p in welcomes.items()}

    def fixed(self) -> dict[str, Tensor]:
        return {f"{base}/{key}": t for base, tensors in self.bases.items() for key, t in tensors.items()}

    def plain_state(self) -> dict[str, Any]:
        return super().plain_state() | {"base_of": self.base_of}

    def load(self, tensors: dict[str, Tensor], plain: dict[str, Any], fixed: dict[str, Tensor]) -> None:
        super().load(tensors, plain, {})
        self.base_of, self.bases = plain["base_of"], {}
        for key, tensor in fixed.items():
            base, _, name = key.partition("/")
            self.bases.setdefault(base, {})[name] = tensor


Method(
    "fedsb",
    FedSbSettings,
    FedSbClient,
    FedSbServer,
    "frozen bases from first gradients, mean of R",
    source="Singhal et al., arXiv 2502.15436; Ponkshe et al., arXiv 2411.19557",
)
