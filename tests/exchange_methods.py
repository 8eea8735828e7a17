"""Two methods for the tests: one with three exchanges of texts in a round, one with fifty small tensor exchanges."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from h2tune.methods.base import ClientMethod, Method, Sent, ServerMethod, Settings
from h2tune.protocol.codec import Payload
from h2tune.protocol.exchange import Ask, Reply

STEPS = 50


class TextClient(ClientMethod):
    """Proposes a sentence, judges all proposals, and remembers what was settled."""

    actions = ("propose", "judge", "settle")
    ends = "settle"

    def join(self, fresh: bool = True) -> Payload:
        self.heard: list[str] = []
        self.draft = ""
        return Payload()

    @classmethod
    def leaves(cls, experiment: Any, settings: Any) -> list[Sent]:
        return [
            Sent("propose", ("proposals",), "a sentence"),
            Sent("judge", ("verdicts",), "a verdict on each sentence"),
        ]

    def propose(self, round: int, payload: Payload) -> Payload:
        self.draft = (
            f"{self.context.name} in round {round} draws {float(torch.rand(())):.9f}, having heard {len(self.heard)}"
        )
        return Payload(texts={"proposals": [self.draft]})

    def judge(self, round: int, payload: Payload) -> Payload:
        assert self.draft in payload.texts["proposals"]  # what was said in the first exchange is still known
        return Payload(
            texts={"verdicts": [f"{self.context.name} read: {text}" for text in payload.texts["proposals"]]}
        )

    def settle(self, round: int, payload: Payload) -> Payload:
        self.heard += payload.texts["verdicts"]
        return Payload()

    def state(self) -> dict[str, Tensor]:
        return {"heard": torch.frombuffer(bytearray(json.dumps(self.heard).encode()), dtype=torch.uint8)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.heard, self.draft = json.loads(state["heard"].numpy().tobytes()), ""


class TextServer(ServerMethod):
    def __init__(self, experiment: Any, settings: Any) -> None:
        super().__init__(experiment, settings)
        self.settled: list[str] = []

    def run_round(self, ask: Ask, number: int, selected: list[str]) -> None:
        proposals = ask("propose", dict.fromkeys(selected, Payload()), read_texts("proposals"))
        told = Payload(texts={"proposals": [text for name in sorted(proposals) for text in proposals[name]]})
        verdicts = ask("judge", dict.fromkeys(proposals, told), read_texts("verdicts"))
        self.settled = [text for name in sorted(verdicts) for text in verdicts[name]]
        ask("settle", dict.fromkeys(verdicts, Payload(texts={"verdicts": self.settled})))

    def download(self, client: str) -> Payload:
        return Payload(texts={"verdicts": self.settled})

    def state(self) -> dict[str, Tensor]:
        return {}

    def plain_state(self) -> dict[str, Any]:
        return {"settled": self.settled}

    def load(self, tensors: dict[str, Tensor], plain: dict[str, Any], fixed: dict[str, Tensor]) -> None:
        self.settled = plain["settled"]


def read_texts(name: str) -> Any:
    def read(reply: Reply) -> list[str]:
        return reply.payload.texts[name]

    return read


class StepClient(ClientMethod):
    """Holds three numbers and moves them towards the mean, with noise of its own, in many small steps."""

    actions = ("step", "close")
    ends = "close"

    def join(self, fresh: bool = True) -> Payload:
        self.numbers, self.count = torch.zeros(3), 0
        return Payload()

    @classmethod
    def leaves(cls, experiment: Any, settings: Any) -> list[Sent]:
        return [Sent("step", ("numbers",), "three numbers")]

    def step(self, round: int, payload: Payload) -> Payload:
        self.count += 1
        generator = torch.Generator().manual_seed(self.context.seed + 1000 * round + self.count)
        mean = payload.tensors.get("mean", self.numbers)
        self.numbers = self.numbers + 0.1 * (mean - self.numbers) + torch.randn(3, generator=generator)
        return Payload({"numbers": self.numbers})

    def close(self, round: int, payload: Payload) -> Payload:
        return Payload()

    def state(self) -> dict[str, Tensor]:
        return {"numbers": self.numbers, "count": torch.tensor(self.count)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.numbers, self.count = state["numbers"].clone(), int(state["count"])


class StepServer(ServerMethod):
    def __init__(self, experiment: Any, settings: Any) -> None:
        super().__init__(experiment, settings)
        self.mean = torch.zeros(3)

    def run_round(self, ask: Ask, number: int, selected: list[str]) -> None:
        for _ in range(STEPS):
            sent = ask(
                "step", {name: self.download(name) for name in selected}, lambda r: r.payload.tensors["numbers"]
            )
            self.mean = torch.stack([sent[name] for name in sorted(sent)]).mean(0)
        ask("close", dict.fromkeys(selected, Payload()))

    def download(self, client: str) -> Payload:
        return Payload({"mean": self.mean})

    def state(self) -> dict[str, Tensor]:
        return {"mean": self.mean}

    def load(self, tensors: dict[str, Tensor], plain: dict[str, Any], fixed: dict[str, Tensor]) -> None:
        self.mean = tensors["mean"].clone()


TEXTS = Method("toy-texts", Settings, TextClient, TextServer, "three exchanges of texts in a round")
STEPPED = Method("toy-steps", Settings, StepClient, StepServer, "fifty exchanges of three numbers in a round")
