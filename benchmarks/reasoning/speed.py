"""How long a round of LaDa takes and what of it is generation: zoo models, slices of 128 questions.

Run as: python benchmarks/reasoning/speed.py
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from common import write

from h2tune.distill import reasoner
from h2tune.distill.demo import lada_demo
from h2tune.federation import run
from h2tune.utils.logging import quiet_libraries


class Meter:
    """Process time and tokens of all generation."""

    def __init__(self) -> None:
        self.seconds, self.tokens, self.write = 0.0, 0, reasoner.write_paths

    def __call__(self, model: Any, tokenizer: Any, prompts: Any, **rest: Any) -> list[str]:
        begin = time.process_time()
        texts = self.write(model, tokenizer, prompts, **rest)
        self.seconds += time.process_time() - begin
        self.tokens += sum(len(ids) + 1 for ids in tokenizer(texts, add_special_tokens=False)["input_ids"])
        return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    quiet_libraries()
    meter = Meter()
    reasoner.write_paths = meter  # type: ignore[assignment]
    marks: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        experiment = lada_demo(0, {"slice": 128}, rounds=args.rounds, evaluation={"every": 99})

        class Watch:
            def round_done(self, round: int, seconds: float) -> None:
                marks.append(time.process_time())

            def message(self, text: str, level: str = "info") -> None:
                if "set up" in text:
                    marks.append(time.process_time())

            def __getattr__(self, name: str) -> Any:
                return lambda *args, **kwargs: None

        run(experiment, Path(folder) / "run", watcher=Watch())
    whole = marks[-1] - marks[0]
    # Three clients write in a round; the scores before and after the rounds are not counted.
    share = meter.seconds / whole
    print(f"a round takes {whole / args.rounds:.1f} s of processor time, generation is {share:.0%} of it,"
          f" {meter.tokens / meter.seconds:.0f} tokens a second")  # fmt: skip
    write("reasoning-speed", {"seconds_a_round": whole / args.rounds, "generation_share": share,
                              "tokens_per_second": meter.tokens / meter.seconds, "threads": torch.get_num_threads()})  # fmt: skip


if __name__ == "__main__":
    main()
