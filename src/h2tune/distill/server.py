"""The server's half of LaDa: it asks everybody, allocates to each student what it can learn, and lets the host go on.

    ask("answer")  ->  G of every pair, thresholds, budgets (`h2tune.distill.flows`)  ->  the host's round, paths added

It sees texts and scores, no model.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

from torch import Tensor

from h2tune.config import Experiment
from h2tune.distill.flows import UNANSWERED, Flows
from h2tune.distill.packing import PREFIX, Answers, pack_given, split_off, unpack_answers
from h2tune.distill.said import Learnt, read_learnt
from h2tune.distill.settings import LadaSettings
from h2tune.errors import MethodError, ProtocolError
from h2tune.methods.base import ServerMethod
from h2tune.methods.registry import resolve_method
from h2tune.protocol.codec import Payload
from h2tune.protocol.exchange import Ask, Reply, payload_of
from h2tune.tasks.custom import build_task
from h2tune.tasks.example import TaskError, called
from h2tune.tasks.public import Questions, load_questions


class LadaServer(ServerMethod):
    """Wraps a host's server.

    Attributes:
        host: the host's half. flows: what flows between whom, and what came of it.
    """

    settings: LadaSettings

    def __init__(self, experiment: Experiment, settings: LadaSettings) -> None:
        super().__init__(experiment, settings)
        kind, host_settings = settings.host_method
        self.host: ServerMethod = kind.server(experiment, host_settings)
        self.needs, self.least = self.host.needs, self.host.least  # type: ignore[misc]
        self.flows = Flows(settings, experiment.seed)

    @cached_property
    def questions(self) -> Questions:
        """The public questions, which the server reads, too: their lengths weigh scores, and the report shows some."""
        assert self.experiment.public is not None  # `allows` has seen to it
        return load_questions(self.experiment.public)

    @property
    def flowing(self) -> bool:
        return self.settings.directions != "none"

    # ---- what may not be

    @classmethod
    def allows(cls, experiment: Experiment, settings: Any) -> None:
        kind, host_settings = settings.host_method
        if settings.directions == "none":
            kind.server.allows(experiment, host_settings)
        for key, does in (("privacy", "noise on a sum protects no single text"),
                          ("secure_aggregation", "a sum hides no single text")):  # fmt: skip
            if getattr(experiment, key) is not None and settings.directions != "none":
                raise MethodError(f"{key}: lada sends single texts to the server, and {does}; leave {key} out")
        kind.server.allows(experiment, host_settings)
        if experiment.training.steps < 2:
            raise MethodError("lada learns from own data and from paths: it needs training.steps of 2 or more")
        names = [client.name for client in experiment.clients]
        if not settings.teacher:
            raise MethodError("method.teacher is missing: name the client with the large model")
        # A client's own copy of the experiment names that client alone.
        if settings.teacher not in names and len(names) > 1:
            raise MethodError(
                f"method.teacher: there is no client {settings.teacher!r}; there are: {', '.join(names)}"
            )
        if settings.directions == "none":
            return
        if experiment.public is None:
            raise MethodError("lada needs public questions: public: {source: ..., task: ...} (docs/lada.md)")
        check_tasks(experiment, settings)
        check_answers(settings, load_questions(experiment.public))

    @classmethod
    def suits(cls, experiment: Experiment, introductions: Mapping[str, Mapping[str, Any]]) -> None:
        settings: Any = resolve_method(experiment.method)[1]
        settings.host_method[0].server.suits(experiment, introductions)
        if len(introductions) < cls.fewest(settings):
            raise MethodError("it needs a teacher and at least one student")

    @classmethod
    def fewest(cls, settings: Any) -> int:
        return 1 if settings.directions == "none" else 2

    def check_introduction(self, name: str, payload: Payload) -> None:
        self.host.check_introduction(name, payload)
        if self.flowing and payload.meta.get("public") != self.questions.digest:
            raise ProtocolError(
                "its public questions are others than the server's: the same file, task and limit are needed on both sides"
            )

    # ---- set-up: the host's

    def setup(self, ask: Ask, joined: dict[str, Payload]) -> None:
        self.host.setup(ask, joined)

    def rejoin(self, client: str) -> Payload:
        return self.host.rejoin(client)

    # ---- a round

    def run_round(self, ask: Ask, number: int, selected: list[str]) -> None:
        if not self.flowing:
            self.host.run_round(ask, number, selected)
            return
        items = self.questions.slice(number, self.settings.slice, self.experiment.seed)

        def read(reply: Reply) -> Answers:
            return unpack_answers(reply.payload, len(items), self.settings.samples, self.settings.paths)

        answers = ask("answer", dict.fromkeys(selected, Payload()), read)
        self.flows.allocate(number, self.questions, items, answers)
        listening = _Listening(ask, self.flows)
        self.host.run_round(listening, number, [name for name in selected if name in answers])
        self.flows.close(number, listening.learnt)

    def download(self, client: str) -> Payload:
        return self.host.download(client)

    def refuses_round(self) -> str | None:
        return self.host.refuses_round()

    def notices(self) -> list[str]:
        return [*self.host.notices(), *self.flows.notices]

    def privacy(self) -> dict[str, Any]:
        return self.host.privacy()

    # ---- what is kept

    def state(self) -> dict[str, Tensor]:
        return self.host.state() | {f"{PREFIX}{k}": t for k, t in self.flows.tensors().items()}

    def plain_state(self) -> dict[str, Any]:
        return {"host": self.host.plain_state(), "flows": self.flows.plain()}

    def fixed(self) -> dict[str, Tensor]:
        return self.host.fixed()

    def load(self, tensors: dict[str, Tensor], plain: dict[str, Any], fixed: dict[str, Tensor]) -> None:
        own = {k.removeprefix(PREFIX): t for k, t in tensors.items() if k.startswith(PREFIX)}
        rest = {k: t for k, t in tensors.items() if not k.startswith(PREFIX)}
        self.host.load(rest, plain["host"], fixed)
        self.flows.load(own, plain["flows"])

    def rank_of(self, client: str) -> int:
        return self.host.rank_of(client)

    def report(self) -> dict[str, Any]:
        return self.host.report() | ({"flows": self.flows.report()} if self.flowing else {})


def check_tasks(experiment: Experiment, settings: LadaSettings) -> None:
    """Raise MethodError for a client whose model writes nothing, and for a teacher that is not asked to."""
    for client in experiment.clients:
        try:
            task = build_task(client.task)
        except TaskError:
            continue  # whoever builds the client says what is wrong with its task
        if task.kind == "classify":
            raise MethodError(
                f"{client.name}: its model has a classification head and writes nothing, so it can give and learn no"
                " reasoning paths; leave it out, or give it a task of kind generate"
            )
        if client.name == settings.teacher and task.kind != "generate":
            raise MethodError(
                f"{client.name} is the teacher, but {called(task.name)} is of kind {task.kind}; a teacher needs a task"
                " of kind generate"
            )


def check_answers(settings: LadaSettings, questions: Questions) -> None:
    """Raise MethodError where a filter needs right answers that the public questions do not have; warn of what else follows."""
    if questions.answered:
        return
    if settings.filter in ("band", "gold"):
        raise MethodError(f"filter: {settings.filter} needs public questions with right answers; these have none")
    if settings.samples < 2 and settings.filter not in ("bandit", "all"):
        raise MethodError(
            "the public questions have no right answers, so only samples that agree can say which path to trust: set"
            " method.samples to 4 or so; if their answers stand in a column that the task does not know, name it:"
            " public.columns: {answer: NAME}"
        )
    if settings.directions == "both":
        warnings.warn(UNANSWERED.format(settings.teacher), stacklevel=2)


class _Listening:
    """The host's ``ask``, with the round's paths in what students are sent, and what they learnt taken from answers.

    Attributes:
        learnt: by client, what it says of the phase.
    """

    def __init__(self, ask: Ask, flows: Flows) -> None:
        self.ask, self.flows = ask, flows
        self.run, self.round = ask.run, ask.round
        self.learnt: dict[str, Learnt] = {}

    def __call__(self, kind: str, payloads: dict[str, Payload], read: Any = payload_of, *, again: bool = True) -> Any:
        if kind != "train":
            return self.ask(kind, payloads, read, again=again)
        added = {
            name: Payload(payload.tensors | pack_given(self.flows.given(name)), payload.meta, payload.texts)
            for name, payload in payloads.items()
        }

        def both(reply: Reply) -> Any:
            rest, ours = split_off(reply.payload)
            learnt = read_learnt(ours.meta.get("learnt"))
            found = read(replace(reply, payload=rest))
            self.learnt[reply.client] = learnt
            return found

        return self.ask(kind, added, both, again=again)

    def hold_once(self) -> None:
        self.ask.hold_once()

    def exclude(self, name: str, reason: str) -> None:
        self.ask.exclude(name, reason)

    def takes_part(self, name: str) -> bool:
        return self.ask.takes_part(name)

    def excluded(self) -> list[str]:
        return self.ask.excluded()
