"""What a round of LaDa sends, before a path is written.

    up      sum over the paths of (bytes + 8) + 7 m                  paths, log-likelihoods, right ones, scores
    down    sum over the paths given of (bytes + 12)                 at first at most the budget

m is the number of questions in a slice. A path is taken to be as long as a reference answer is on average: how long it will
be is known once it is written. With `paths` above 1, every question is taken to have as many. Where the questions have no
answers, nothing is said.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import lru_cache

from h2tune.config import Experiment, PublicQuestions
from h2tune.distill.learnability import EXTRA
from h2tune.distill.settings import LadaSettings
from h2tune.methods.base import PlannedBytes
from h2tune.tasks.example import TaskError
from h2tune.tasks.public import load_questions
from h2tune.tasks.sources import source_path

BESIDE, SCORES = 8, 7  # bytes of a path beside its text on the way up (end, log-likelihood); of a question's scores


def with_paths(host: PlannedBytes, experiment: Experiment, settings: LadaSettings, teacher: bool) -> PlannedBytes:
    """The host's bytes with those of paths and scores.

    Args:
        teacher: whether it is the large model's client.
    """
    public = experiment.public
    known = _questions(public.model_dump_json(), _changed(public.source)) if public else None
    if known is None or host.up is None or host.down is None:
        return replace(host, up=None, down=None)
    number, length = known
    asked = -(-number // -(-number // settings.slice))  # the largest slice of a pass
    teaches = settings.flows(not teacher) and settings.filter != "gold"
    up = asked * (settings.paths * ((length if teaches else 0) + BESIDE) + SCORES)
    return replace(host, up=host.up + round(up), down=host.down + round(_given(settings, asked, length, teacher)))


def _given(settings: LadaSettings, asked: int, length: float, teacher: bool) -> float:
    """Bytes of what a participant is given in the first round, at most."""
    if not settings.flows(teacher):
        return 0
    if settings.filter == "gold":  # numbers of questions only
        return asked * EXTRA
    whole = asked * settings.paths * (length + EXTRA)
    return whole if settings.filter == "all" else min(whole, settings.bytes)


def _changed(source: str) -> int:
    """When a file was changed last; 0 for what is no file."""
    path = source_path(source)[0]
    return path.stat().st_mtime_ns if path.is_file() else 0


@lru_cache(maxsize=4)  # a plan asks for every client
def _questions(public: str, changed: int) -> tuple[int, float] | None:
    """How many public questions there are, and mean bytes of a reference answer."""
    try:
        with warnings.catch_warnings(action="ignore"):  # `plan` has said what there is to say
            questions = load_questions(PublicQuestions.model_validate_json(public))
    except (TaskError, OSError):
        return None  # `plan` has said what is wrong with them
    sizes = [len(example.answer.encode()) for example in questions.examples]
    return (len(sizes), sum(sizes) / len(sizes)) if any(sizes) else None
