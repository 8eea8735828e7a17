"""Methods side by side over seeds and amounts of data: a grid of runs, restartable, then one table.

OUT/runs/METHOD[-nN]/[rate-X/]seed-S/   a run directory each; a finished one is never run again
OUT/tune/METHOD[-nN]/rate-X/seed-S/     the trials of `tune`; a list with more rates adds some
OUT/frames/                             frames that were practised once and hold for every run
OUT/tuned.json                          the rates that `tune` chose, by validation of what the table shows
OUT/compare.json, .csv                  the result (see `h2tune.comparison.result`)

What is held fixed: data, seeds, updates, evaluation, and `rank`, `depth` and `keep` unless the file says otherwise. What differs
between methods is written in the file under `methods:` and stands in the result.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from h2tune.caveats import about_rates
from h2tune.comparison.cells import TUNING_SEED, Cell, CompareError, Outcome, as_written, experiment_of
from h2tune.comparison.checks import check_data, check_numbers
from h2tune.comparison.grid import Report, run_grid, unfinished
from h2tune.comparison.result import Comparison, finals
from h2tune.comparison.statistics import TOO_FEW_RIGHT, summarise, to_csv
from h2tune.config import ConfigError
from h2tune.methods.registry import known_methods
from h2tune.utils.files import write_atomic
from h2tune.utils.processes import cores


def compare(
    file: str | Path,
    methods: Sequence[str],
    seeds: int,
    out: str | Path,
    *,
    n_train: Sequence[int] = (),
    tune: Sequence[float] = (),
    jobs: int = 0,
    say: Report = lambda text: None,
) -> Comparison:
    """Run the grid and return the result, as written to ``OUT/compare.json``.

    `h2tune.report.comparison_page.write_comparison_page` makes a page of it.

    Args:
        file: a federation's YAML (``{seed}`` in a source stands for the run's seed), or ``demo``.
        methods: names of methods; settings of their own stand in the file under ``methods:``.
        seeds: runs of each method, with seeds 0, 1, ...
        n_train: amounts of training data to sweep over; by default the file's own.
        tune: multiples of the file's learning rates; each method takes the best by validation, with `TUNING_SEED`.
        jobs: runs at a time; 0 means as many as there are cores.
        say: told what happens, a line each.

    Raises:
        ConfigError, MethodError, CompareError: before anything is trained.
    """
    out = Path(out)
    check_numbers(methods, n_train, tune)
    sizes: list[int | None] = list(dict.fromkeys(n_train)) or [None]
    jobs = jobs or cores()
    for name in methods:
        experiment_of(file, Cell(name, 0))  # every mistake in names and settings, before anything runs
    for warning in about_rates(as_written(file), methods):
        say(f"warning: {warning}")
    trials = [Cell(m, TUNING_SEED, n, r, tuning=True) for n in sizes for m in methods for r in dict.fromkeys(tune)]
    cells = [Cell(m, s, n) for n in sizes for m in methods for s in range(seeds)]
    rates = _rates(file, cells, trials, out, jobs, say)
    cells = [_at(cell, rates) for cell in cells]
    outcomes = run_grid(file, cells, out, jobs, say)
    result = summarise(experiment_of(file, cells[0]), outcomes, rates)
    _write(result, rates, out)
    return result


def _rates(
    file: str | Path, cells: Sequence[Cell], trials: Sequence[Cell], out: Path, jobs: int, say: Report
) -> dict[str, float]:
    """The rates that trials choose, after a look at what is needed for all that has yet to be run."""
    if open_trials := unfinished(trials, out):  # which rates they choose, so which runs are finished, is not known yet
        check_data(file, [*cells, *open_trials])
    rates = _tuned(file, trials, out, jobs, say) if trials else {}
    if not open_trials:
        check_data(file, unfinished([_at(cell, rates) for cell in cells], out))
    return rates


def _at(cell: Cell, rates: dict[str, float]) -> Cell:
    """The cell with the rate that was chosen for it."""
    return replace(cell, rate=rates.get(rate_key(cell.method, cell.n_train), 1.0))


def _tuned(
    file: str | Path, trials: Sequence[Cell], out: Path, jobs: int, say: Callable[[str], None]
) -> dict[str, float]:
    """The best multiple of the rates for each method."""
    outcomes = run_grid(file, trials, out, jobs, say)
    rates = best_rates(outcomes)
    if not rates:
        raise CompareError("--tune: no trial was finished; each one's reason stands above.")
    # A method that does not suit the federation has no runs either.
    tried = dict.fromkeys(rate_key(o.cell.method, o.cell.n_train) for o in outcomes if not o.skipped)
    if untuned := [key for key in tried if key not in rates]:
        say(f"warning: --tune: no trial of {', '.join(untuned)} has a result; runs have the file's own rates (x1)")
    say("rates chosen by validation: " + ", ".join(f"{m} x{r:g}" for m, r in rates.items()))
    return rates


def _write(result: Comparison, rates: dict[str, float], out: Path) -> None:
    """Write the result with the rates that were chosen for it; those of an earlier result go."""
    if rates:
        write_atomic(out / "tuned.json", (json.dumps(rates, indent=1) + "\n").encode())
    else:
        (out / "tuned.json").unlink(missing_ok=True)
    write_atomic(out / "compare.json", (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
    write_atomic(out / "compare.csv", to_csv(result).encode())


def compare_names(text: str) -> list[str]:
    """Names from ``a,b,c``, or all methods for ``all``."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    return list(known_methods()) if names == ["all"] else list(dict.fromkeys(names))


def rate_key(method: str, n_train: int | None) -> str:
    return method if n_train is None else f"{method}-n{n_train}"


def best_rates(outcomes: Iterable[Outcome]) -> dict[str, float]:
    """For each method (and amount of data) the multiple that is best on validation, in the quantity that the table will have.

    A rate at which a client is lost is worse than one at which none is: without its weakest client a mean looks better. Then
    the metric counts; between equals, and where some client never gets more than next to nothing right, nats. Chosen by
    nats alone, rates came out too low where answers must be exactly right: nats punish a confident model, the metric does not.
    """
    ran = [outcome for outcome in outcomes if outcome.metrics and _finals(outcome)]
    found: dict[str, float] = {}
    for size in dict.fromkeys(outcome.cell.n_train for outcome in ran):
        trials = [outcome for outcome in ran if outcome.cell.n_train == size]
        best: dict[str, float] = {}
        for outcome in trials:
            for name, final in _finals(outcome).items():
                best[name] = max(best.get(name, 0.0), final["validation"])
        nats_only = min(best.values()) < TOO_FEW_RIGHT

        def worth(outcome: Outcome, nats_only: bool = nats_only) -> tuple[int, float, float]:
            finals = list(_finals(outcome).values())
            metric, nats = (statistics.fmean(f[key] for f in finals) for key in ("validation", "validation_nats"))
            return (len(finals), 0.0 if nats_only else metric, -nats)

        for method in dict.fromkeys(outcome.cell.method for outcome in trials):
            chosen = max((o for o in trials if o.cell.method == method), key=worth)
            found[rate_key(method, size)] = chosen.cell.rate
    return found


def _finals(outcome: Outcome) -> dict[str, dict[str, float]]:
    return finals(outcome.metrics) if outcome.metrics else {}


__all__ = ["Cell", "CompareError", "ConfigError", "Outcome", "compare"]
