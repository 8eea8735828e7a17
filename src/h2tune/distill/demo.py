"""The demo of LaDa: a teacher with many word problems and two students with few, and public questions between them.

All use the same eighteen trade words, which no base model has met. The teacher has 600 rows, each student 24. The public
questions are other stories with the same words, with right answers and without rationales. A student alone cannot see most
words often enough; what it is given by the teacher, and whether choosing matters, shows beside three other runs.
"""

from __future__ import annotations

from typing import Any

from h2tune.config import Experiment, parse_config

TEACHER, STUDENTS = "teacher", {"clinic": "zoo:gpt2", "shop": "zoo:qwen"}
# What runs beside it: heading and changes of the method.
BESIDE: dict[str, tuple[str, dict[str, Any]]] = {
    "alone": ("alone", {"directions": "none"}),
    "all": ("all samples", {"filter": "all"}),
    "random": ("random, equal bytes", {"filter": "random"}),
}


def lada_demo(seed: int = 0, method: dict[str, Any] | None = None, **changes: Any) -> Experiment:
    """The demo as an experiment; ``method`` and ``changes`` override keys of its method and of the experiment."""

    def rows(name: str, model: str, n: int, own: int) -> dict[str, Any]:
        parts = {"train": n, "validation": 60, "test": 200}
        return {"name": name, "model": model, "task": "demo-fill"} | {
            part: f"demo:fill?split={part}&n={count}&seed={1000 * own + seed}" for part, count in parts.items()
        }

    students = [rows(name, model, 24, own) for own, (name, model) in enumerate(STUDENTS.items(), 2)]
    data: dict[str, Any] = {
        "name": "lada-demo",
        "seed": seed,
        "rounds": 6,
        "rank": 16,
        "anchors": "demo",
        "public": {"source": f"demo:fill?split=anchors&n=300&seed={seed}", "task": "demo-fill"},
        "method": {"name": "lada", "teacher": TEACHER, "slice": 100, "budget": "600B"} | (method or {}),
        "clients": [rows(TEACHER, "zoo:llama", 600, 1), *students],
        "training": {"steps": 16, "batch_size": 16, "learning_rate": 2e-3},
        "evaluation": {"every": 6, "n_validation": 60},
        "device": "cpu",
    }
    return parse_config(data | changes)
