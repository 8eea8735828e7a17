"""Write requirements/lock.txt: every package that `make demo`, `make test` and CI install, with its version and hashes.

    python scripts/lock.py              # add what pyproject.toml asks for, keep all other versions
    python scripts/lock.py --upgrade    # take the newest versions that pyproject.toml allows

One file serves Linux, macOS and Windows on the Pythons of PYTHONS: markers say which line is for whom. It names no package
index, so that any mirror serves. PyTorch is not in it: its builds for CPU and for CUDA differ by index, so their hashes
do, too. requirements/torch.txt has its version, and PyTorch itself pins the CUDA libraries that it needs.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LOCK, TORCH = ROOT / "requirements" / "lock.txt", ROOT / "requirements" / "torch.txt"
PYTHONS = ("3.11", "3.12", "3.13")
HEAD = f"# Made by scripts/lock.py from pyproject.toml; do not edit by hand.\n# Pythons: {' '.join(PYTHONS)}\n"
WITH_TORCH = re.compile(r"(torch|triton|cuda-[a-z0-9-]+|nvidia-[a-z0-9-]+)==")  # installed by PyTorch's own step


def packages(text: str) -> list[str]:
    """The lock's entries: a package's line and the lines of its hashes."""
    return re.split(r"\n(?=[a-z0-9])", text.strip(), flags=re.IGNORECASE)


def main() -> None:
    kept = packages(LOCK.read_text()) if LOCK.is_file() else []
    found = ROOT / "requirements" / ".resolved.txt"
    found.write_text("\n".join(entry for entry in kept if not entry.startswith("#")))
    command = [
        "uv", "pip", "compile", "pyproject.toml", "--extra", "dev", "--universal", "--python-version", PYTHONS[0],
        "--constraint", str(TORCH), "--generate-hashes", "--no-header", "--no-annotate", "--no-emit-index-url",
        "--no-emit-find-links", "--quiet", "--output-file", str(found), *sys.argv[1:],
    ]  # fmt: skip
    try:
        subprocess.run(command, cwd=ROOT, check=True)
        entries = [entry for entry in packages(found.read_text()) if not WITH_TORCH.match(entry)]
    finally:
        found.unlink()
    LOCK.write_text(HEAD + "\n".join(entries) + "\n")
    print(f"{LOCK.relative_to(ROOT)}: {len(entries)} packages")


if __name__ == "__main__":
    main()
