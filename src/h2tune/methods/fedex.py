"""FedEx-LoRA: the means of the factors, and what they miss goes into the base (Singhal et al., arXiv 2410.09432).

    A <- sum_k p_k A_k,   B <- sum_k p_k B_k,   W_0 <- W_0 + (sum_k p_k B_k A_k - B A)

so that every client has exactly the mean of the products. The remainder travels as factors:
[p_1 B_1, ..., p_K B_K, -B] [A_1; ...; A_K; A].
"""

from __future__ import annotations

import torch

from h2tune.methods.base import Method, Settings
from h2tune.methods.factors import FactorClient, FactorServer, Pair, mean, stack
from h2tune.wire import Payload, WireError


def remainder(pairs: list[Pair], weights: list[float], shared: Pair) -> Pair:
    """Factors of ``sum_k p_k B_k A_k - B A``."""
    return stack([*pairs, shared], [*weights, -1.0])


class FedExClient(FactorClient):
    offset = True

    def receive(self, payload: Payload) -> None:
        super().receive(Payload({k: t for k, t in payload.tensors.items() if not k.startswith("rest.")}))
        if not any(k.startswith("rest.") for k in payload.tensors):
            return
        with torch.no_grad():
            for index, layer in enumerate(self.layers):
                a, b = payload.tensors[f"rest.{index}.A"], payload.tensors[f"rest.{index}.B"]
                offset = layer.trilora_offset[self.client.name]
                if (b.shape[0], a.shape[1]) != offset.shape or a.shape[0] != b.shape[1]:
                    raise WireError(f"the server sent a remainder that does not fit map {index}")
                offset += (b @ a).to(offset)


class FedExServer(FactorServer):
    client = FedExClient
    whole_rounds = True

    def combine_group(self, base: str, names: list[str], weights: list[float]) -> None:
        for index in range(len(self.known[names[0]]["maps"])):
            pairs: list[Pair] = [(self.updates[n][f"{index}.A"], self.updates[n][f"{index}.B"]) for n in names]
            shared = mean([a for a, _ in pairs], weights), mean([b for _, b in pairs], weights)
            rest = remainder(pairs, weights, shared)
            for prefix, (a, b) in (("", shared), ("rest.", rest)):
                self.factors[f"{base}/{prefix}{index}.A"] = a
                self.factors[f"{base}/{prefix}{index}.B"] = b

    def download(self, client: str) -> Payload:
        base = self.group_of.get(client)
        return Payload({k.removeprefix(f"{base}/"): t for k, t in self.factors.items() if k.startswith(f"{base}/")})


Method(
    "fedex", Settings, FedExClient, FedExServer, "means of A and B, the remainder goes into the base",
    sends="A and B", source="Singhal et al., arXiv 2410.09432", one_architecture=True,
)  # fmt: skip
