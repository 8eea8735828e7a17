"""The way of a core's update, between a client's S and the server's sum: what H2Tune itself need not know.

A client sends S itself, or, where `wire` asks for smaller messages, the update S_i - S in the code of
`h2tune.core.compress`, with what the code lost in earlier rounds added. The server reads an update, judges it, and folds it into the round's mean: the exact streaming sum
(`h2tune.core.shared.CoreSum`), or a robust rule that keeps them all (`h2tune.core.robust`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from h2tune.core.compress import Code, decode_update, encode_update
from h2tune.core.packing import pack_core, unpack_core
from h2tune.core.robust import RobustMean, Rule, rule_of
from h2tune.core.shared import CoreShape, CoreSum
from h2tune.methods.base import MethodError, ServerMethod
from h2tune.wire import Payload, WireError

if TYPE_CHECKING:
    from h2tune.config import Experiment, Wire
    from h2tune.methods.h2tune_settings import H2TuneSettings

DOWNLOADS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def code_of(wire: Wire) -> Code | None:
    """The code of uploads; None where S itself travels."""
    code = Code(wire.dtype, wire.top_k)
    # A download that was rounded makes S_i itself wrong by as much: then only the update says what was learnt.
    return None if code.lossless and wire.download == "float32" else code


def clients_of_a_round(experiment: Experiment) -> int:
    """How many clients a round selects, if all take part."""
    return max(1, round(experiment.participation * len(experiment.clients)))


def robust_rule(experiment: Experiment, settings: H2TuneSettings) -> Rule | None:
    """The robust rule that the settings ask for; None is the mean."""
    if settings.aggregate == "mean":
        return None
    count = clients_of_a_round(experiment)
    return rule_of(settings.aggregate, settings.trim, settings.faulty, settings.radius, count)


def check_updates(experiment: Experiment, settings: H2TuneSettings) -> None:
    """Raise MethodError if the experiment's options exclude each other; needs no client."""
    problems: list[str] = []
    rule, count = robust_rule(experiment, settings), clients_of_a_round(experiment)
    if settings.share and rule is not None and count < rule.needs:
        survives = f" to survive {rule.faulty} bad ones (2f + 3)" if "krum" in rule.name else ""
        problems.append(
            f"method.aggregate: {rule.name} needs {rule.needs} clients in a round{survives}; there are {count}"
        )
    if problems:
        raise MethodError("\n".join(problems))


class ClientUpdates:
    """The client's half: what is sent for a trained S."""

    def __init__(self, experiment: Experiment, core: Tensor) -> None:
        self.code = code_of(experiment.wire)
        self.received, self.lost = torch.zeros(core.shape), torch.zeros(core.shape)

    def receive(self, core: Tensor) -> None:
        """Remember the server's S as it arrived: updates start there."""
        self.received = core.detach().cpu().clone()

    def pack(self, core: Tensor, coverage: Tensor, *, masked: bool) -> dict[str, Tensor]:
        """Tensors to send; once per round, since what the code loses is remembered."""
        if self.code is None:
            return pack_core(core, coverage, masked=masked)
        update = core.detach().cpu() - self.received + self.lost
        tensors, decoded = encode_update(update, coverage, self.code, masked=masked)
        self.lost = torch.where(coverage, update - decoded, self.lost)
        return tensors

    def state(self) -> dict[str, Tensor]:
        """What a restart needs: private, as S is before it is sent."""
        return {} if self.code is None or self.code.lossless else {"wire.lost": self.lost.clone()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.lost = state.get("wire.lost", self.lost).clone()


class CoreServer(ServerMethod):
    """The server's half, for methods that share one core: a round's updates on their way into it.

    A method adds how the core is set up and sent: ``shape``, ``S``, and by client ``ranks`` and ``masked``.
    """

    shape: CoreShape
    S: Tensor
    ranks: dict[str, int]
    masked: dict[str, bool]

    def __init__(self, experiment: Experiment, settings: H2TuneSettings) -> None:
        super().__init__(experiment, settings)
        self.rule, self.code = robust_rule(experiment, settings), code_of(experiment.wire)
        self.told: list[str] = []

    @classmethod
    def allows(cls, experiment: Experiment, settings: H2TuneSettings) -> None:
        check_updates(experiment, settings)

    def packed(self, core: Tensor, coverage: Tensor) -> Payload:
        """What of a core is sent to a client."""
        width = DOWNLOADS[self.experiment.wire.download]
        return Payload(pack_core(core, coverage, masked=False, dtype=width))

    def start_round(self) -> None:
        self.robust = RobustMean(self.shape, self.rule) if self.rule else None
        self.sum = CoreSum(self.shape)

    def add(self, client: str, payload: Payload, weight: int) -> None:
        if not self.settings.share:
            return
        core, coverage = self._read(client, payload.tensors)
        if self.robust:
            self.robust.add(client, core, coverage)
        else:
            self.sum.add(core, coverage, weight)

    def _read(self, client: str, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """S_i and its coverage; raises WireError if it is not what this client may send."""
        rank, masked = self.ranks[client], self.masked[client]
        try:
            if self.code is not None:
                update, coverage = decode_update(tensors, self.shape, rank, self.code, masked=masked)
                return self.S[..., :rank, :rank].double() + update.double(), coverage
            if tensors.keys() != {"values", "pairs"} | ({"mask"} if masked else set()):
                raise ValueError("it holds other tensors than it may send")
            return unpack_core(tensors, self.shape, rank)
        except (ValueError, RuntimeError) as error:
            raise WireError(f"the update of {client} is malformed: {error}") from None

    def finish_round(self) -> None:
        if not self.settings.share:
            return
        if self.robust:
            self.S, instead = self.robust.mean(self.S)
            self.told += [instead] if instead else []
        else:
            self.S = self.sum.mean(self.S)

    def notices(self) -> list[str]:
        told, self.told = self.told, []
        return told
