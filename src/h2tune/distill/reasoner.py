"""What a participant's model says of public questions: paths, their log-likelihoods, and scores on reference answers."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from h2tune.distill.generation import tidy, write_paths
from h2tune.distill.guard import Guard
from h2tune.distill.packing import LONGEST, Answers
from h2tune.distill.paths import PathScore, score_paths
from h2tune.distill.settings import LadaSettings
from h2tune.participant.context import ClientContext
from h2tune.participant.passes import Passes
from h2tune.participant.scoring import evaluating
from h2tune.tasks.example import Example
from h2tune.tasks.prompts import Encoded, encode, encode_prompts
from h2tune.tasks.public import Questions
from h2tune.tasks.rows import question_key
from h2tune.tasks.scoring import final_number, own_part, score_all

SIZE = 32  # paths in a batch


@dataclass(frozen=True)
class Scored:
    """A path on a question: as tokens, and its score under the own model."""

    row: Encoded
    score: PathScore


class Reasoner:
    """The own model on public questions.

    Attributes:
        dropped: paths that could not be used so far, by reason.
    """

    def __init__(self, context: ClientContext, questions: Questions, settings: LadaSettings) -> None:
        self.context, self.questions, self.settings = context, questions, settings
        self.dropped: Counter[str] = Counter()
        self.base_nats: dict[int, float] = {}  # of questions under the untouched base, once measured

    # ---- what the task says of a path

    @property
    def one_line(self) -> bool:
        """Whether reference answers have one line, as bare results have."""
        return all("\n" not in example.answer.strip() for example in self.questions.examples[:200])

    def right(self, item: int, path: str) -> bool:
        """Whether a path ends on the right answer."""
        return self.rights([(item, path)])[0]

    def rights(self, paths: Sequence[tuple[int, str]]) -> list[bool]:
        """`right` of many; programs share a sandbox, and its patience with those that do not end."""
        asked = [(item, path) for item, path in paths if path]
        examples = [self.questions.examples[item] for item, _ in asked]
        found = dict(
            zip(asked, score_all(self.questions.task.score, examples, [path for _, path in asked]), strict=True)
        )
        return [found.get(entry, False) for entry in paths]

    @cached_property
    def guard(self) -> Guard:
        data = self.context.data
        rows = [*data.train.examples, *data.validation.examples, *data.test.examples]
        public = (text for e in self.questions.examples for text in (f"{e.prompt} {e.answer}",))
        return Guard((f"{row.prompt} {row.answer}" for row in rows), public)

    @cached_property
    def _held_out(self) -> dict[bytes, set[bytes]]:
        """By the keys of questions, the options that they stand with."""
        data, found = self.context.data, defaultdict[bytes, set[bytes]](set)
        for row in (*data.validation.examples, *data.test.examples):
            for key in _keys(row):
                found[key].add(row.offered)
        return found

    def is_held_out(self, item: int) -> bool:
        """Whether a question is one of the own validation or test rows, however either task words it: nothing is
        ever trained on them. Where both give options, another choice of them makes another question."""
        question = self.questions.examples[item]
        options = [self._held_out[key] for key in _keys(question) if key in self._held_out]
        return any(not question.offered or not known.isdisjoint({b"", question.offered}) for known in options)

    # ---- answering a round's questions

    def answer(self, items: Sequence[int], domain: bool) -> Answers:
        """Paths and scores for the questions of a round; the generator around the call seeds the sampling."""
        tries, each = self._tries(items), self.settings.paths
        settled = [self._settle(i, several) for i, several in zip(items, tries, strict=True)]
        paths = [path for several, _ in settled for path in (*several, *[""] * (each - len(several)))]
        scored = self.scored([i for i in items for _ in range(each)], paths)
        right = [
            count if any(scored[place * each : (place + 1) * each]) else 0 for place, (_, count) in enumerate(settled)
        ]
        safe = self._safe(paths, scored)
        logp = [found.score.logp if found and path else 0.0 for path, found in zip(safe, scored, strict=True)]
        return Answers(safe, logp, right, self.scores(items, domain))

    def _safe(self, paths: Sequence[str], scored: Sequence[Scored | None]) -> list[str]:
        """The paths that may leave; in the place of others nothing."""
        safe = []
        for path, found in zip(paths, scored, strict=True):
            recites = bool(path) and self.guard.recites(path)
            self.dropped["recites private text"] += recites
            safe.append(path if found is not None and not recites else "")
        return safe

    def _tries(self, items: Sequence[int]) -> list[list[str]]:
        """The paths that are tried on each question; none where the prompt leaves no room for an answer."""
        context, task, samples = self.context, self.questions.task, self.settings.samples
        prompts = encode_prompts([self.questions.examples[i] for i in items], context.tokenizer)
        room = context.base.context - task.max_new_tokens
        fits = [place for place, ids in enumerate(prompts) if len(ids) <= room]
        self.dropped["question leaves no room for an answer"] += len(prompts) - len(fits)
        found: list[list[str]] = [[] for _ in items]
        for _ in range(samples):
            texts = write_paths(
                self.model(), context.tokenizer, [prompts[i] for i in fits], new_tokens=task.max_new_tokens,
                size=SIZE, one_line=self.one_line, temperature=None if samples == 1 else self.settings.temperature,
            )  # fmt: skip
            for place, text in zip(fits, texts, strict=True):
                found[place].append(tidy(text, self.questions.examples[items[place]].lead, self.one_line))
        return found

    def _settle(self, item: int, tries: Sequence[str]) -> tuple[list[str], int]:
        """The paths that are sent, and how many of the samples are right, or agree with them where nobody knows.

        Several are sent only where they are right, or agree, and differ.
        """
        usable = [path for path in tries if path]
        if not usable:
            return [], 0
        if self.questions.answered:
            good = [
                path
                for path, right in zip(usable, self.rights([(item, path) for path in usable]), strict=True)
                if right
            ]
        else:
            ends = [_conclusion(path) for path in usable]
            most, _ = Counter(ends).most_common(1)[0]
            good = [path for path, end in zip(usable, ends, strict=True) if end == most]
        return list(dict.fromkeys(good or usable[:1]))[: self.settings.paths], len(good)

    def scores(self, items: Sequence[int], domain: bool) -> Tensor:
        """(n, rho, omega) of every question; -1 where there is none."""
        found = torch.full((len(items), 3), -1.0)
        references = [self.questions.examples[i].answer for i in items]
        for place, scored in enumerate(self.scored(items, references)):
            if scored is not None:
                found[place, 0] = -scored.score.logp / len(references[place].encode())
                found[place, 1] = scored.score.rho
        if domain:
            found[:, 2] = torch.tensor(self._domain(items))
        return found

    def _domain(self, items: Sequence[int]) -> list[float]:
        """omega = sigma(d / median|d|), d = n_0 - n_t of the questions themselves: what the own data made likelier."""
        if missing := [i for i in items if i not in self.base_nats]:
            with self.context.base.untouched() as model:
                self.base_nats |= dict(zip(missing, self._question_nats(model, missing), strict=True))
        now = self._question_nats(self.model(), items)
        falls = [self.base_nats[i] - value for i, value in zip(items, now, strict=True)]
        scale = sorted(map(abs, falls))[len(falls) // 2] or 1.0
        return [1 / (1 + math.exp(-max(-30.0, min(30.0, fall / scale)))) for fall in falls]

    def _question_nats(self, model: Any, items: Sequence[int]) -> list[float]:
        prompts = encode_prompts([self.questions.examples[i] for i in items], self.context.tokenizer)
        rows = [Encoded(ids, [-100, *ids[1:]]) for ids in (p[-self.context.base.context :] for p in prompts)]
        with evaluating(model):
            scores = score_paths(model, rows, self.context.tokenizer.pad_token_id, SIZE, self.passes)
        return [-score.logp / max(1, score.tokens) for score in scores]

    # ---- paths as tokens, and under the own model

    @property
    def passes(self) -> Passes:
        """How the own model reads paths: from its prefix, and without the bias of its own task's labels."""
        return Passes(self.context.prefix)

    def model(self) -> Any:
        return self.context.base.activate(self.context.adapter)

    def encoded(self, item: int, path: str) -> Encoded | None:
        """A question with a path as tokens; None, and a count, where the model cannot read or hold it."""
        if not path.strip() or len(path.encode()) > LONGEST:
            self.dropped["empty or too long"] += bool(path)
            return None
        tokenizer, example = self.context.tokenizer, replace(self.questions.examples[item], answer=path)
        row = encode([example], tokenizer, max_length=1 << 30)[0]
        if len(row.input_ids) > self.context.base.context:
            self.dropped["longer than the context"] += 1
            return None
        own = [token for token in row.labels if token != -100][:-1]
        written = str(tokenizer.decode(own, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        if "".join(written.split()) != "".join(path.split()):
            self.dropped["characters that the tokenizer cannot write"] += 1
            return None
        return row

    def scored(self, items: Sequence[int], paths: Sequence[str]) -> list[Scored | None]:
        """Each path under the own model, or None where it cannot be used."""
        rows = [self.encoded(item, path) for item, path in zip(items, paths, strict=True)]
        held = [row for row in rows if row is not None]
        model = self.model()
        with evaluating(model):
            scores = iter(score_paths(model, held, self.context.tokenizer.pad_token_id, SIZE, self.passes))
        found: list[Scored | None] = []
        for row in rows:
            score = next(scores) if row is not None else None
            # A path of log-likelihood 0 has nothing to teach; one that is not finite is of no use.
            good = score is not None and math.isfinite(score.logp) and math.isfinite(score.brier) and score.logp < 0
            found.append(Scored(row, score) if good and row is not None and score is not None else None)
        return found


def _keys(example: Example) -> set[bytes]:
    """What a question is known by: its prompt, and its own cells alone."""
    return {question_key(example.prompt), example.asked} - {b""}


def _conclusion(path: str) -> str:
    """What a path ends on, to see whether two agree."""
    number = final_number(own_part(path))
    return path.strip().split("\n")[-1] if number is None else f"{number:.10g}"
