"""What a federated method may see of its participant: model, data, seeds, a trainer, and its own validation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers

from h2tune import tasks
from h2tune.config import ClientConfig, ConfigError, Experiment
from h2tune.core.slots import Layout
from h2tune.declared import Settings
from h2tune.participant.affordable import affordable_keep, step_milliseconds
from h2tune.participant.base_models import ModelPool, adapter_name
from h2tune.participant.batches import stream
from h2tune.participant.devices import check_device
from h2tune.participant.label_bias import LABEL_BIAS, LabelBias, fitted_to, label_tokens, telling_tokens
from h2tune.participant.passes import Passes
from h2tune.participant.prefix import Prefix, prefix_of
from h2tune.participant.prepare import Split, client_base, load_data, max_length
from h2tune.participant.row_privacy import trainer_of
from h2tune.participant.scoring import Score, heard, score
from h2tune.participant.trainer import Batches, LocalTraining, NanLossError, Trainer
from h2tune.store import ClientStore
from h2tune.tasks.example import Example
from h2tune.utils.launcher import no_launcher
from h2tune.utils.seeds import derive

Watch = Callable[[str, int, str, int, int, float], None]
"""Told of every update: client, round, phase, step, steps, loss."""


BUDGET = "budget.json"  # the file in which `keep: auto` is kept


class ClientContext:
    """A participant as its method sees it.

    Args:
        config: the participant's own part of the experiment.
        experiment: what all participants agree on.
        models: the base models of this process.
        slots: slots that the method adapts; None is all that the model has.
        anchors: public sentences, the same for everyone.
        store: where what was measured once is kept; None keeps nothing.
        trainer: carries out local training; by default one update after the other.

    Attributes:
        base: the model, with the adapters of all clients on it. adapter: the name of this client's. layout: the maps that are adapted.
        data: training, validation and test rows. keep: share of the core that the budget allows.
        data_seed: stands for the participant in everything random.
        run, round: identity of the run, and the round that is under way.
    """

    def __init__(
        self,
        config: ClientConfig,
        experiment: Experiment,
        models: ModelPool,
        *,
        settings: Settings | None = None,
        anchors: Sequence[str] = (),
        store: ClientStore | None = None,
        watch: Watch | None = None,
        accelerator: Accelerator | None = None,
        trainer: Trainer | None = None,
    ) -> None:
        self.config, self.experiment, self.models, self.anchors, self.watch = (
            config,
            experiment,
            models,
            anchors,
            watch,
        )
        settings = settings or Settings()
        self.name, self.seed, self.data_seed = config.name, experiment.seed, config.name
        self.training, self.rank, self.rounds = experiment.training, experiment.rank, experiment.rounds
        self.task = tasks.build_task(config.task)
        self.base = client_base(config, self.task, models)
        self.adapter = adapter_name(config.name)
        self.layout: Layout = self.base.layout.only(settings.adapter_slots).top(experiment.blocks)
        self.tokenizer = self.base.tokenizer
        self.accelerator = accelerator or make_accelerator(experiment, models.device)
        seed, n_validation = derive(self.seed, self.data_seed, "data"), experiment.evaluation.n_validation
        try:
            self.data = load_data(config, self.task, self.base, seed=seed, n_validation=n_validation)
        except tasks.TaskError as error:
            raise tasks.TaskError("\n".join(f"{self.name}: {line}" for line in str(error).splitlines())) from None
        plan = (self.data.train.examples, store, self.rounds, self.task.kind == "classify")
        self.trainer = trainer or trainer_of(config.row_privacy, self.training, self.accelerator, *plan)
        self._store = store
        self.keep = self._affordable(settings.inner) if config.keep == "auto" else float(config.keep)
        self.run, self.round = "", 0
        self._losses: dict[str, float] = {}

    @property
    def has_adapter(self) -> bool:
        """Whether the method has put an adapter on the model; it need not."""
        return self.base.peft is not None and self.adapter in self.base.peft.peft_config

    @property
    def task_type(self) -> str:
        """PEFT's word for the kind of task."""
        return "SEQ_CLS" if self.task.kind == "classify" else "CAUSAL_LM"

    def _affordable(self, settings: Settings) -> float:
        """``keep: auto``, as `keep_share` kept it or found anew."""
        known = self._store.read_json(BUDGET) if self._store else None
        if known is not None:
            return float(known["keep"])
        about = (self.config, self.experiment, self.base, self.layout)
        return affordable_keep(*about, settings, self.step_milliseconds)

    def keep_share(self) -> None:
        """Write down what ``keep: auto`` found, so that a resumed run has the same shapes; not before the run has a folder."""
        if self._store and self.config.keep == "auto":
            self._store.write_json(BUDGET, {"keep": self.keep})

    def step_milliseconds(self, rank: int | None = None) -> float:
        """Measured milliseconds of a training step with an adapter of this rank (by default the experiment's)."""
        batches, run = self.batches("probe"), Passes(self.prefix)
        return step_milliseconds(self.base, self.layout, self.task_type, rank or self.rank, self.trainer, batches, run)

    @property
    def max_length(self) -> int:
        """Longest example in tokens."""
        return max_length(self.config, self.base)

    @property
    def learning_rate(self) -> float:
        """For A, B and a head; the core has ``training.core_learning_rate``."""
        return self.training.rate_of(self.config)

    @contextmanager
    def generator(self, *purpose: object) -> Iterator[None]:
        """Torch's generators seeded for one purpose of this client, and restored afterwards."""
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(derive(self.seed, self.data_seed, *purpose))
            yield

    def batches(self, *purpose: object) -> Batches:
        """Endless batches of the training rows, in an order that the purpose fixes."""
        seed = derive(self.seed, self.data_seed, *purpose)
        return stream(self.data.train.encoded, self.training.batch_size, self.tokenizer.pad_token_id, seed)

    def train(self, training: LocalTraining) -> None:
        """Carry out local training; the losses go into the client's report of the round.

        Raises:
            NanLossError: the loss is not a number.
        """
        self._losses |= self.trainer.run(replace(training, passes=self.passes), self.on_step)

    def on_step(self, phase: str, step: int, steps: int, loss: float) -> None:
        """Tell whoever watches of an update."""
        if self.watch:
            self.watch(self.name, self.round, phase, step, steps, loss)

    def take_losses(self) -> dict[str, float]:
        """Mean loss of each phase since it was last asked for."""
        losses, self._losses = self._losses, {}
        return losses

    @cached_property
    def passes(self) -> Passes:
        """How the client's model is run: from its prefix, and with its label bias."""
        return Passes(self.prefix, self._label_bias())

    @cached_property
    def prefix(self) -> Prefix | None:
        """What the blocks below the adapted ones say; None where all are adapted."""
        return prefix_of(self.base, self.layout, self.models.states) if self.layout.first else None

    def _label_bias(self) -> LabelBias | None:
        """Fitted on the training rows to what the untouched model says; found once and kept."""
        fits = self.training.label_bias and not self.config.row_privacy  # it would be fitted to the rows without noise
        tokens = label_tokens(self._chosen_from, self.tokenizer) if fits else []
        if not tokens:
            return None
        known = self._store.read_json(LABEL_BIAS) if self._store else None
        if known is not None:
            return LabelBias.read(known)
        run, size = Passes(self.prefix), self.experiment.evaluation.batch_size
        rows = fitted_to(self.data.train.encoded, derive(self.seed, self.data_seed, "label bias"))
        with self.base.untouched() as model:
            said = heard(model, rows, self.tokenizer.pad_token_id, size, run, tokens)
        found = LabelBias.fitted(tokens, said)
        if self._store:
            self._store.write_json(LABEL_BIAS, asdict(found))
        return found

    @cached_property
    def telling(self) -> list[int]:
        """Tokens that tell the options apart, where answers are chosen and all rows offer the same; none otherwise."""
        return telling_tokens(self._chosen_from, self.tokenizer)

    @property
    def _chosen_from(self) -> Sequence[Example]:
        """Training rows whose answers are chosen among options; none where the model writes its answers.

        Rows may have options there too (`aqua` as ``generate``), but what is written hears no bias and may be any word.
        """
        return self.data.train.examples if self.task.kind == "choice" else ()

    def validation_loss(self, among: Sequence[int] = ()) -> float:
        """Nats per answer token (or of the choice among some) of the client's model, as it stands, on validation rows."""
        return self.score(self.data.validation, loss_only=True, among=among).nats

    def score(
        self, part: Split, *, untouched: bool = False, loss_only: bool = False, among: Sequence[int] = ()
    ) -> Score:
        """Score the client's model on some rows, or with ``untouched`` the base model without an adapter.

        Raises:
            NanLossError: the loss is not a number.
        """
        size = self.experiment.evaluation.batch_size
        rows, length = (part.examples, part.encoded), self.config.max_length
        arguments = (self.tokenizer, self.task, *rows, size, loss_only, length)
        if untouched:
            with self.base.untouched() as model:
                found = score(model, *arguments, Passes(self.prefix))
        elif self.has_adapter:
            own = self.base.activate(self.adapter)
            found = score(own, *arguments, self.trainer.scoring(own, self.passes), among)
        else:
            with self.base.untouched() as model:
                found = score(model, *arguments, self.passes, among)
        if not math.isfinite(found.nats):
            raise NanLossError("the loss on held-out rows is not a number")
        return found


def check_tracking(experiment: Experiment) -> None:
    """Accelerate leaves out a tracker without its package, and no metrics would arrive there.

    Raises:
        ConfigError: naming the packages to install.
    """
    there = {str(tracker.value) for tracker in get_available_trackers()}
    install = {"tensorboard": "'h2tune[tracking]'"}
    missing = [name for name in experiment.tracking if name not in there]
    if missing:
        raise ConfigError(
            [f"tracking: {name} needs a package: pip install {install.get(name, name)}" for name in missing]
        )


def make_accelerator(experiment: Experiment, device: str, folder: Path | None = None) -> Accelerator:
    """One Accelerator for all clients of a process; its trackers, if any are asked for, write under ``folder``.

    Raises:
        ModelError: PyTorch does not know the device, since the package is missing that brings it.
    """
    precision = {"fp32": "no"}.get(experiment.training.precision, experiment.training.precision)
    trackers = list(experiment.tracking) if folder else None
    state = AcceleratorState._shared_state
    if state and (state.get("_mixed_precision"), str(state.get("device"))) != (precision, device):
        # Accelerate keeps one precision and one device per process; a second run with others is nothing unusual for us.
        AcceleratorState._reset_state(reset_partial_state=True)
    with no_launcher(ACCELERATE_TORCH_DEVICE=device):  # by itself it takes the first GPU that it finds
        try:
            return Accelerator(
                mixed_precision=precision, cpu=device == "cpu", log_with=trackers or None, project_dir=folder
            )
        except RuntimeError:  # nothing is checked before: workers on other machines may have what this one lacks
            AcceleratorState._reset_state(reset_partial_state=True)
            check_device(device)
            raise
