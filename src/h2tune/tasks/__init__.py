"""Tasks: where examples come from, what a model reads, and when its answer is right."""

from h2tune.tasks.custom import build_task
from h2tune.tasks.dataset import load_examples, overlap, sample, split_validation
from h2tune.tasks.example import Example, RowError, Task, TaskError
from h2tune.tasks.presets import PRESETS

__all__ = [
    "PRESETS",
    "Example",
    "RowError",
    "Task",
    "TaskError",
    "build_task",
    "load_examples",
    "overlap",
    "sample",
    "split_validation",
]
