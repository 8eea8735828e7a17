"""How long a person waits: for `h2tune --help`, and for `make test` after installing.

Run as: python benchmarks/startup.py            # --help, median of nine
        python benchmarks/startup.py --tests    # also the whole test suite, two processes
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from common import write


def seconds(command: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[1])
    return time.perf_counter() - begin


def processor_seconds(command: list[str]) -> float:
    """What a process used of a core: other programs on the machine matter little."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds(command)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", action="store_true")
    args = parser.parse_args()
    command = str(Path(sys.executable).with_name("h2tune"))
    times = [seconds([command, "--help"]) for _ in range(10)][1:]  # the first fills the disk cache
    used = statistics.median(processor_seconds([command, "--help"]) for _ in range(9))
    result = {"help_seconds": statistics.median(times), "help_processor_seconds": used, "help_all": times}
    result["load"] = os.getloadavg()[0]  # processes that wanted a core; the machine has as many as "cores" says
    print(f"h2tune --help   {result['help_seconds']:.2f} s, of a core {used:.2f} s (bar 0.5 s)")
    if args.tests:
        result["tests_seconds"] = seconds([sys.executable, "-m", "pytest", "-n", "2"])
        print(f"make test       {result['tests_seconds'] / 60:.1f} min (bar 12 min)")
    write("startup", result)


if __name__ == "__main__":
    main()
