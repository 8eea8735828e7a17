"""A TriLoRA adapter on a participant's model: attaching it, its parameters in groups, its training and its state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from h2tune.adapter import TriLoraConfig, TriLoraLayer
from h2tune.core.slots import SLOTS
from h2tune.errors import MethodError
from h2tune.participant.context import ClientContext
from h2tune.participant.trainer import Batches, Group, LocalTraining, Loss, Update, answer_loss


class AdapterTrainer:
    """Holds and trains the adapter of one participant.

    Attributes:
        layers: the adapted maps, block by block. middles: their T. factors: their A and B, in turns.
        groups: what is trained together, by name.
    """

    context: ClientContext
    groups: dict[str, Group]

    def attach(self, rank: int, residual: bool, framed: int = 0, shift: bool = False, offset: bool = False) -> None:
        """Put the adapter on the model; equal seeds give equal adapters, whatever was attached before.

        See `TriLoraConfig` for the arguments.
        """
        context, layout = self.context, self.context.layout
        config = TriLoraConfig(
            r=rank,
            residual=residual,
            framed=framed,
            shift=shift,
            offset=offset,
            dropout=context.training.dropout,
            target_modules=layout.targets,
            parts=layout.parts or None,
            task_type=context.task_type,
            base_model_name_or_path=context.config.model,
            revision=context.config.revision,
        )
        with context.generator("adapter"):
            context.base.attach(context.adapter, config)
            context.base.renew_head(context.adapter)
        if context.training.checkpointing:
            context.base.model.gradient_checkpointing_enable({"use_reentrant": False})
            context.base.model.enable_input_require_grads()
        blocks = layout.blocks_of(context.base.model)
        self.layers: list[TriLoraLayer] = [_adapted(block, m) for block in blocks for m in layout.modules]
        self.middles: list[nn.Parameter] = [layer.trilora_T[context.adapter] for layer in self.layers]
        self.factors: list[nn.Parameter] = [
            p for layer in self.layers for p in (layer.trilora_A[context.adapter], layer.trilora_B[context.adapter])
        ]

    @property
    def adapter_rank(self) -> int:
        """Rank of this client's adapter."""
        return self.context.rank

    @property
    def shared_rank(self) -> int:
        """How much of it is shared."""
        return self.adapter_rank

    def check_rank(self) -> None:
        """Raise MethodError if the adapter's rank is larger than a map allows."""
        context, rank = self.context, max(self.shared_rank, self.adapter_rank - self.shared_rank)
        maps = context.base.maps(context.layout)
        for name, (d_in, d_out, _) in zip(context.layout.targets, maps, strict=True):
            if rank > min(d_in, d_out):
                raise MethodError(
                    f"{context.name}: rank {rank} is larger than {name} allows ({d_in} x {d_out});"
                    " use a smaller `rank`, or a smaller `keep` for this client."
                )

    @property
    def head(self) -> list[nn.Parameter]:
        """Parameters of the client's own copy of the modules that PEFT saves whole."""
        name, modules = self.context.adapter, self.context.base.model.modules()
        kept = [m.modules_to_save for m in modules if isinstance(m, ModulesToSaveWrapper)]
        return [p for copies in kept if name in copies for p in copies[name].parameters()]

    def group(self, parameters: Sequence[nn.Parameter], rate: float, updates: int, rule: str = "adamw") -> Group:
        """Parameters to train together, with a schedule for so many updates; only a head has weight decay."""
        for parameter in parameters:
            parameter.requires_grad_(True)
        return Group(parameters, rate, updates, self.context.training, decayed=self.head, rule=rule)

    def activate(self) -> nn.Module:
        """The model with this client's adapter, ready for training."""
        return self.context.base.activate(self.context.adapter).train()

    def select(self, groups: Sequence[Group]) -> None:
        """Let gradients flow to these groups only (PEFT lets them flow to all of an adapter that it activates)."""
        for parameter in (*self.middles, *self.factors, *self.head):
            parameter.requires_grad_(False)
        for group in groups:
            group.trainable(True)

    def train_groups(
        self, groups: Sequence[Group], batches: Batches, phase: str, loss: Loss = answer_loss, steps: int | None = None
    ) -> None:
        """A round's updates of some groups (or the first ``steps`` of them)."""
        model, steps = self.activate(), self.context.training.steps if steps is None else steps
        self.select(groups)
        update = Update(groups, loss)
        self.context.train(LocalTraining.of_one_kind(model, phase, steps, update, batches))

    def warm_head(self) -> None:
        """Train the new head alone before round 1, so that the first shared phase has something to listen to."""
        steps, head = self.context.training.head_steps, self.head
        if not head or not steps:
            return
        model = self.activate()
        group = self.group(head, self.context.learning_rate, steps)
        self.select([group])
        batches = self.context.batches("head")
        training = LocalTraining.of_one_kind(model, "head", steps, Update([group]), batches)
        self.context.trainer.run(replace(training, passes=self.context.passes))

    def state(self) -> dict[str, Tensor]:
        """Adapter, head and optimisers, as tensors to keep over a restart."""
        tensors = {f"adapter.{k}": v.detach().clone() for k, v in self._adapter_tensors()}
        for name, group in self.groups.items():
            tensors |= {f"optimiser.{name}.{k}": v for k, v in group.state().items()}
        return tensors

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Inverse of `state`."""
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
                if self.context.adapter in held:
                    yield f"{index}.{kind}", held[self.context.adapter]
        for index, parameter in enumerate(self.head):
            yield f"head.{index}", parameter

    def introduction(self) -> dict[str, Any]:
        """Sizes and identity of the model; nothing of it depends on private data."""
        layout, base = self.context.layout, self.context.base
        return {
            "depth": layout.depth,
            "slots": [s for s in SLOTS if s in layout.slots],
            "rank": self.shared_rank,
            "family": base.family,
            "fingerprint": base.fingerprint,
            "maps": [[d_in, d_out] for d_in, d_out, _ in base.maps(layout, whole=True)],
        }


def _adapted(block: nn.Module, name: str) -> TriLoraLayer:
    layer = block.get_submodule(name)
    assert isinstance(layer, TriLoraLayer)  # `attach` has put the adapter on all maps of the layout
    return layer
