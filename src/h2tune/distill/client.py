"""The participant's half of LaDa: it answers public questions, learns from the paths it is given, and is a host's client."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from h2tune.config import Experiment
from h2tune.distill.packing import PREFIX, Answers, pack_answers, split_off, unpack_given
from h2tune.distill.phase import Phase, gate, learn
from h2tune.distill.planned import with_paths
from h2tune.distill.reasoner import Reasoner
from h2tune.distill.settings import LadaSettings
from h2tune.errors import ProtocolError
from h2tune.methods.adapter_client import AdapterClient
from h2tune.methods.base import ClientMethod, Method, ModelShape, PlannedBytes, Sent, Settings
from h2tune.participant.context import ClientContext
from h2tune.protocol.codec import Payload
from h2tune.tasks.public import load_questions

FIXED = 64  # public questions
TAKEN = f"{PREFIX}taken"


class LadaClient(ClientMethod):
    """A host's client with two exchanges in a round.

    Attributes:
        host: the host's half. reasoner: the own model on public questions; None where nothing flows.
        own: by question, the own path of this round. answered: the round that they belong to.
    """

    actions = ("answer", "train")
    settings: LadaSettings
    level = 0.0  # mean 1/n on fixed questions before the phase

    def __init__(self, context: ClientContext, settings: LadaSettings) -> None:
        super().__init__(context, settings)
        kind, host_settings = settings.host_method
        host = kind.client(context, host_settings)
        assert isinstance(host, AdapterClient)  # the settings refuse other hosts
        self.host = host
        self.reasoner: Reasoner | None = None
        self.own: dict[int, str] = {}
        self.answered = 0
        # For a host that reads public texts: a round, and places of the questions whose paths came in it.
        self.taken: tuple[int, list[int]] = (0, [])

    @classmethod
    def stands_on(cls, settings: Any) -> tuple[Method, Settings]:
        found: tuple[Method, Settings] = settings.host_method
        return found

    @classmethod
    def planned_bytes(cls, experiment: Experiment, settings: Any, shape: ModelShape) -> PlannedBytes:
        """The host's, with paths as long as the reference answers (`h2tune.distill.planned`)."""
        kind, host_settings = settings.host_method
        host: PlannedBytes = kind.client.planned_bytes(experiment, host_settings, shape)
        if settings.directions == "none":
            return host
        return with_paths(host, experiment, settings, teacher=shape.client == settings.teacher)

    @classmethod
    def leaves(cls, experiment: Experiment | None, settings: Any) -> list[Sent]:
        kind, host_settings = settings.host_method
        host: list[Sent] = kind.client.leaves(experiment, host_settings)
        if settings.directions == "none":
            return host
        paths = "the model's reasoning paths on public questions, as text, with their log-likelihoods; they depend on private data"
        scores = (
            "for each public question how likely the model finds the reference answer, how fast it would learn it, and"
            " whether it is right; they depend on private data"
        )
        if settings.domain:
            scores += "; how much likelier the question became by the private data"
        learnt = (
            "how many of the paths that it was given it learnt from, why not from others, and whether it kept that"
        )
        if settings.filter == "bandit":
            learnt += "; rewards of its batches"
        return [
            *host,
            Sent("join", ("public",), "a digest of the public questions", "once"),
            Sent("answer", ("text", "ends", "logp"), paths),
            Sent("answer", ("right", "scores"), scores),
            Sent("train", (f"{PREFIX}*",), learnt),
        ]

    # ---- before round 1

    def check(self) -> None:
        self.host.check()
        context, settings = self.context, self.settings
        if settings.directions == "none" or context.experiment.public is None:
            return
        self.reasoner = Reasoner(context, load_questions(context.experiment.public), settings)
        if self.host.reads_public:
            self.host.public_texts = self._texts

    def introduction(self) -> dict[str, Any]:
        public = {"public": self.reasoner.questions.digest} if self.reasoner else {}
        return self.host.introduction() | public

    def join(self, fresh: bool = True) -> Payload:
        payload = self.host.join(fresh)
        if self.reasoner:
            payload.meta["public"] = self.reasoner.questions.digest
        return payload

    def describe(self, payload: Payload) -> Payload:
        return self.host.describe(payload)

    def welcome(self, payload: Payload, fresh: bool = True) -> Payload:
        return self.host.welcome(payload, fresh)

    # ---- a round

    @property
    def is_teacher(self) -> bool:
        return self.context.name == self.settings.teacher

    def items(self, round: int) -> list[int]:
        """Numbers of a round's questions."""
        reasoner = self._reasoner()
        return reasoner.questions.slice(round, self.settings.slice, self.context.seed)

    def _texts(self, round: int) -> list[str]:
        """The round's questions with their reference answers, for a host that learns from public texts."""
        examples = self._reasoner().questions.examples
        return [examples[i].prompt + examples[i].answer for i in self.items(round)]

    def _reasoner(self) -> Reasoner:
        if self.reasoner is None:
            raise ProtocolError(f"{self.context.name}: nothing flows in this run, but the server asks for answers")
        return self.reasoner

    def answer(self, round: int, payload: Payload) -> Payload:
        """Answer the round's questions: paths, their log-likelihoods, scores on the reference answers."""
        items, settings = self.items(round), self.settings
        domain = settings.domain and settings.flows(False) and not self.is_teacher
        found = self._reasoner().answer(items, domain)
        self.own = dict(zip(items, found.paths[:: settings.paths], strict=True))
        self.answered = round
        if not settings.flows(not self.is_teacher) or settings.filter == "gold":  # nobody is given its paths
            found = Answers([""] * len(found.paths), [0.0] * len(found.paths), found.right, found.scores)
        return Payload(pack_answers(found))

    def train(self, round: int, payload: Payload) -> Payload:
        """The host's round, with a phase of distillation where paths passed the gate."""
        payload, ours = split_off(payload)
        if self.reasoner is None:
            return self.host.train(round, payload)
        if self.answered != round:
            raise ProtocolError(f"{self.context.name} was not asked the questions of round {round}")
        given = unpack_given(ours, self.items(round), self.settings.paths)
        phase, host = self._gate(given, round), self.host
        if host.reads_public:
            of, places = self.taken
            host.public_rows = places if of == round - 1 else []  # the texts are those of the round before
            self.taken = round, sorted({self.items(round).index(entry.item) for entry in given})
        if self.settings.filter == "bandit":
            self.level = reasoner_level(self._reasoner())
        host.left_out, host.addition = 0, None
        if phase.lessons:
            wanted = max(1, round_half(self.settings.part * host.steps))
            steps = host.leave_out(self.settings.phase, wanted)
            host.addition = lambda: learn(self._reasoner(), host, phase, round, steps)
        try:
            reply = host.train(round, payload)
        finally:
            host.left_out, host.addition = 0, None
        reply.meta[f"{PREFIX}learnt"] = self._learnt(phase)
        return reply

    def _gate(self, given: list[Any], round: int) -> Phase:
        reasoner = self._reasoner()
        if self.settings.filter == "gold":  # the server names questions only; their reference answers are at hand
            given = [type(e)(e.item, reasoner.questions.examples[e.item].answer, 0.0) for e in given]
        return gate(reasoner, given, self.own, round)

    def _learnt(self, phase: Phase) -> dict[str, Any]:
        """What the server is told of the phase."""
        found: dict[str, Any] = {
            "learnt": sum(lesson.positives for lesson in phase.lessons),
            "refused": phase.refused,
            "kept": phase.kept,
        }
        if self.settings.filter == "bandit":
            found |= {"moves": phase.moves or [], "level": [reasoner_level(self._reasoner()), self.level]}
        return found

    def receive(self, payload: Payload) -> None:
        self.host.receive(payload)

    def state(self) -> dict[str, Tensor]:
        kept = (
            {TAKEN: torch.tensor([self.taken[0], *self.taken[1]], dtype=torch.int32)} if self.host.public_texts else {}
        )
        return self.host.state() | kept

    def load_state(self, state: dict[str, Tensor]) -> None:
        if TAKEN in state:
            of, *places = state[TAKEN].tolist()
            self.taken = of, places
        self.host.load_state({k: t for k, t in state.items() if k != TAKEN})

    def report(self) -> dict[str, Any]:
        dropped = {k: n for k, n in (self.reasoner.dropped if self.reasoner else {}).items() if n}
        return self.host.report() | ({"dropped": dropped} if dropped else {})


def reasoner_level(reasoner: Reasoner) -> float:
    """Mean of 1/n on the first public questions: what the rewards of `bandit` compare between rounds."""
    items = range(min(FIXED, len(reasoner.questions)))
    scores = reasoner.scores(list(items), domain=False)[:, 0]
    known = scores[scores > 0]
    return float((1 / known).mean()) if len(known) else 0.0


def round_half(value: float) -> int:
    """Whole number next to a positive one, halves up: Python's own rule takes the even one."""
    return int(value + 0.5)
