"""What every method that trains a TriLoRA adapter shares: attaching it, its groups of parameters, its private state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from h2tune.adapter import TriLoraConfig, TriLoraLayer
from h2tune.core.slots import SLOTS
from h2tune.methods.base import ClientMethod, MethodError, OnStep
from h2tune.participant.batches import Batch, stream
from h2tune.participant.optim import Group, Penalty, Updater
from h2tune.utils.seeds import derive


class AdapterClient(ClientMethod):
    """A client with a TriLoRA adapter on all slots of its model."""

    groups: dict[str, Group]

    def attach(self, rank: int, residual: bool, framed: int = 0, shift: bool = False, offset: bool = False) -> None:
        """Put the adapter on the model; equal seeds give equal adapters, whatever was attached before.

        See `TriLoraConfig` for the arguments.
        """
        client = self.client
        config = TriLoraConfig(
            r=rank,
            residual=residual,
            framed=framed,
            shift=shift,
            offset=offset,
            dropout=client.training.dropout,
            target_modules=client.layout.targets,
            parts=client.layout.parts or None,
            task_type="CAUSAL_LM" if client.task.kind != "classify" else "SEQ_CLS",
            base_model_name_or_path=client.config.model,
            revision=client.config.revision,
        )
        with client.generator("adapter"):
            client.base.attach(client.adapter, config)
            client.base.renew_head(client.adapter)
        if client.training.checkpointing:
            client.base.model.gradient_checkpointing_enable({"use_reentrant": False})
            client.base.model.enable_input_require_grads()
        blocks = client.base.model.get_submodule(client.layout.blocks)
        self.layers: list[TriLoraLayer] = [block.get_submodule(m) for block in blocks for m in client.layout.modules]
        self.leaves: list[nn.Parameter] = [layer.trilora_T[client.adapter] for layer in self.layers]
        self.factors: list[nn.Parameter] = [
            p for layer in self.layers for p in (layer.trilora_A[client.adapter], layer.trilora_B[client.adapter])
        ]
        self.updater = Updater(client.base.peft, client.training, client.accelerator)

    @property
    def adapter_rank(self) -> int:
        """Rank of this client's adapter."""
        return self.client.rank

    @property
    def shared_rank(self) -> int:
        """How much of it is shared."""
        return self.adapter_rank

    def check(self) -> None:
        rank = max(self.shared_rank, self.adapter_rank - self.shared_rank)
        for name, (d_in, d_out, _) in zip(
            self.client.layout.targets, self.client.base.maps(self.client.layout), strict=True
        ):
            if rank > min(d_in, d_out):
                raise MethodError(
                    f"{self.client.name}: rank {rank} is larger than {name} allows ({d_in} x {d_out});"
                    " use a smaller `rank`, or a smaller `keep` for this client."
                )

    @property
    def head(self) -> list[nn.Parameter]:
        """Parameters of the client's own copy of the modules that PEFT saves whole."""
        return [
            p for n, p in self.client.base.model.named_parameters() if f"modules_to_save.{self.client.adapter}." in n
        ]

    def group(self, parameters: list[nn.Parameter], rate: float, updates: int) -> Group:
        for parameter in parameters:
            parameter.requires_grad_(True)
        return Group(parameters, rate, updates, self.client.training, self.client.accelerator)

    @property
    def rate(self) -> float:
        return self.client.config.learning_rate or self.client.training.learning_rate

    def batches(self, *purpose: object) -> Iterator[tuple[Batch, list[int]]]:
        client = self.client
        seed = derive(client.seed, client.data_seed, *purpose)
        return stream(client.train_data, client.training.batch_size, client.tokenizer.pad_token_id, seed)

    def select(self, *groups: Group) -> None:
        """Let gradients flow to these groups only (PEFT lets them flow to all of an adapter that it activates)."""
        for parameter in (*self.leaves, *self.factors, *self.head):
            parameter.requires_grad_(False)
        for group in groups:
            group.trainable(True)

    def step(self, group: Group, batches: Iterator, penalty: Penalty | None = None) -> float:
        loss = self.updater.gradients(batches, penalty)
        self.updater.apply(group)
        return loss

    def steps(self, group: Group, batches: Iterator, phase: str, on_step: OnStep, penalty: Penalty | None = None,
              steps: int | None = None) -> float:  # fmt: skip
        """A round's updates of one group (or the first ``steps`` of them); returns their mean loss."""
        self.activate()
        self.select(group)
        total, steps = 0.0, steps or self.client.training.steps
        for step in range(steps):
            loss = self.step(group, batches, penalty)
            total += loss
            on_step(phase, step + 1, steps, loss)
        return total / steps

    def warm_head(self, on_step: OnStep | None = None) -> None:
        """Train the new head alone before round 0, so that the first shared phase has something to listen to."""
        steps = self.client.training.head_steps
        if not self.head or not steps:
            return
        self.activate()
        for leaf in (*self.leaves, *self.factors):
            leaf.requires_grad_(False)
        group = self.group(self.head, self.rate, steps)
        batches = self.batches("head")
        for step in range(steps):
            loss = self.step(group, batches)
            if on_step:
                on_step("head", step + 1, steps, loss)

    def activate(self) -> None:
        self.client.base.activate(self.client.adapter).train()

    def state(self) -> dict[str, Tensor]:
        tensors = {f"adapter.{k}": v.detach().clone() for k, v in self._adapter_tensors()}
        for name, group in self.groups.items():
            tensors |= {f"optimiser.{name}.{k}": v for k, v in group.state().items()}
        return tensors

    def load_state(self, state: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self._adapter_tensors():
                tensor.copy_(state[f"adapter.{name}"])
        for name, group in self.groups.items():
            prefix = f"optimiser.{name}."
            group.load_state({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})

    def _adapter_tensors(self) -> Iterator[tuple[str, Tensor]]:
        for index, layer in enumerate(self.layers):
            for kind in ("A", "B", "T", "q", "offset"):
                held = getattr(layer, f"trilora_{kind}")
                if self.client.adapter in held:
                    yield f"{index}.{kind}", held[self.client.adapter]
        for index, parameter in enumerate(self.head):
            yield f"head.{index}", parameter

    def introduction(self) -> dict[str, Any]:
        layout, base = self.client.layout, self.client.base
        return {
            "depth": layout.depth,
            "slots": [s for s in SLOTS if s in layout.slots],
            "rank": self.shared_rank,
            "family": base.family,
            "fingerprint": base.fingerprint,
            "maps": [[d_in, d_out] for d_in, d_out, _ in base.maps(layout, whole=True)],
        }
