"""The command line lists tasks without waiting for heavy imports."""

from __future__ import annotations

import subprocess
import sys


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, h2tune.tasks, h2tune.tasks.prompts, h2tune.tasks.demo_problems;"
        "print([m for m in ('torch', 'transformers', 'datasets', 'pandas', 'pyarrow', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
