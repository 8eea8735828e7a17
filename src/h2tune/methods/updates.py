"""The way of a core's update, between a client's S and the server's sum: what H2Tune itself need not know.

The server reads an update, judges it, and folds it into the round's mean: the exact streaming sum
(`h2tune.core.shared.CoreSum`), or a robust rule that keeps them all (`h2tune.core.robust`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from h2tune.core.packing import unpack_core
from h2tune.core.robust import RobustMean, Rule, rule_of
from h2tune.core.shared import CoreShape, CoreSum
from h2tune.methods.base import MethodError
from h2tune.wire import WireError

if TYPE_CHECKING:
    from h2tune.config import Experiment
    from h2tune.methods.h2tune_settings import H2TuneSettings


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


class ServerUpdates:
    """The server's half: a round's updates on their way into the mean."""

    def __init__(self, experiment: Experiment, settings: H2TuneSettings) -> None:
        self.rule = robust_rule(experiment, settings)
        self.told: list[str] = []

    def start(self, shape: CoreShape, before: Tensor) -> None:
        """Forget the updates of the last round; ``before`` is S as the round's clients got it."""
        self.shape, self.before = shape, before
        self.robust = RobustMean(shape, self.rule) if self.rule else None
        self.sum = CoreSum(shape)

    def add(self, client: str, tensors: dict[str, Tensor], rank: int, masked: bool, weight: int) -> None:
        """Fold one update in; raises WireError, and changes nothing, if it is not what the client may send."""
        core, coverage = self._read(client, tensors, rank, masked)
        if self.robust:
            self.robust.add(client, core, coverage)
        else:
            self.sum.add(core, coverage, weight)

    def _read(self, client: str, tensors: dict[str, Tensor], rank: int, masked: bool) -> tuple[Tensor, Tensor]:
        if tensors.keys() != {"values", "pairs"} | ({"mask"} if masked else set()):
            raise WireError(f"the update of {client} holds other tensors than it may send")
        try:
            return unpack_core(tensors, self.shape, rank)
        except (ValueError, RuntimeError) as error:
            raise WireError(f"the update of {client} is malformed: {error}") from None

    def mean(self) -> Tensor:
        """The round's result."""
        if not self.robust:
            return self.sum.mean(self.before)
        result, instead = self.robust.mean(self.before)
        if instead:
            self.told.append(instead)
        return result

    def notices(self) -> list[str]:
        """What the last round did otherwise than asked for; told once."""
        told, self.told = self.told, []
        return told

    def report(self) -> dict[str, Any]:
        return {"aggregate": self.rule.name if self.rule else "mean"}
