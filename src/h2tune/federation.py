"""From a config to a finished run: build the clients and the server, run, keep the figures.

from h2tune import run
metrics = run("federation.yaml", out="runs/first")
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from h2tune.caveats import about_revision, about_sharing
from h2tune.config import Experiment, Wire, load_config
from h2tune.methods.leaving import STAYS, as_lines, what_leaves
from h2tune.methods.registry import MethodError, check_other_methods, method_of, resolve_method
from h2tune.participant.base_models import ModelPool
from h2tune.participant.context import check_tracking, make_accelerator
from h2tune.participant.prepare import check_known
from h2tune.participant.row_privacy import FILE as ROW_ACCOUNT
from h2tune.server import Server
from h2tune.simulation.clients import Simulated, in_process
from h2tune.simulation.workers import Remote, Workers
from h2tune.store import RunStore, differences
from h2tune.tasks.fingerprint import (
    check_fingerprint,
    data_fingerprint,
    differing,
    keep_fingerprint,
    kept_fingerprint,
)
from h2tune.transport.inprocess import InProcess
from h2tune.utils.files import Claim
from h2tune.utils.memory import give_back_memory
from h2tune.version import __version__

Gather = Callable[[Experiment, RunStore], "InProcess[Simulated] | Workers"]
"""Makes the clients of an experiment, and the way to them."""


class Watcher(Protocol):
    """Someone who shows progress; see `h2tune.report.live.Progress`."""

    def start(self, clients: list[dict[str, Any]], rounds: int) -> None: ...
    def step(self, client: str, round: int, phase: str, step: int, steps: int, loss: float) -> None: ...
    def client_done(
        self,
        client: str,
        round: int,
        metrics: dict[str, Any],
        bytes_up: int,
        bytes_down: int,
        loss: float | None = None,
    ) -> None: ...
    def round_done(self, round: int, seconds: float) -> None: ...
    def message(self, text: str, level: str = "info") -> None: ...


TOLD = {"client_excluded", "client_away", "quorum_missed", "round_passed_over", "warning", "run_stopped"}


class WatchedStore(RunStore):
    """A run store whose events the watcher also sees."""

    def __init__(self, folder: Path, watcher: Watcher | None) -> None:
        super().__init__(folder)
        self.watcher = watcher
        self.track: Callable[..., None] | None = None

    def event(self, event: str, text: str, **fields: Any) -> None:
        super().event(event, text, **fields)
        if self.track is not None and event == "client_finished":
            self.track(_flat(fields), step=fields["round"])
        if self.watcher is None:
            return
        if event == "client_finished":
            scores = fields.get("validation") or {}
            self.watcher.client_done(
                fields["client"],
                fields["round"],
                scores,
                fields["bytes_up"],
                fields["bytes_down"],
                next(reversed((fields.get("loss") or {"": None}).values())),
            )
        elif event == "round_committed":
            self.watcher.round_done(fields["round"], fields["seconds"])
            if spent := fields.get("privacy"):
                budget = f" of {spent['budget']:g}" if spent["budget"] else ""
                self.watcher.message(f"round {fields['round']}: epsilon {spent['epsilon']:.2f}{budget} is spent")
        elif event in TOLD:
            self.watcher.message(text, "warning")
        elif event == "set_up":
            self.watcher.message(text)
        elif event == "client_set_up":
            self.watcher.message(text, "detail")


# Over 45 lines: half of them are its parameters and what they mean.
def run(
    experiment: Experiment | str | Path,
    out: str | Path,
    *,
    resume: bool = False,
    changed: Sequence[str] = (),
    watcher: Watcher | None = None,
    models: ModelPool | None = None,
    workers: int = 0,
) -> dict[str, Any]:
    """Run a federation in this process and return its metrics (as in ``metrics.json``).

    Args:
        experiment: the experiment or a path to its YAML.
        out: run directory; must not hold another run.
        resume: go on with the run in ``out``, from its last committed round.
        changed: keys of the config that may differ from the run's when resuming.
        models: base models that are in memory already, without adapters (`ModelPool.release`).
        workers: spread the clients over so many processes, or over a cluster (`h2tune.simulation.workers`); 0 keeps them here.
    """
    begin = time.perf_counter()
    if not isinstance(experiment, Experiment):
        experiment = load_config(experiment)
    check_known(experiment)
    method_of(experiment)
    check_tracking(experiment)
    store = WatchedStore(Path(out), watcher)
    if models is None:  # not `or`: an empty collection is false
        models = ModelPool.of(experiment, Path(out) / "frames")
    if watcher:
        watcher.message("loading models and data")
    accelerator = make_accelerator(experiment, models.device, store.folder)
    watch, frames = watcher.step if watcher else None, Path(out) / "frames"
    if workers:
        gather: Gather = lambda e, s: Workers(e, s.folder, frames, workers, watch)  # noqa: E731
    else:
        gather = partial(in_process, models=models, accelerator=accelerator, watch=watch)
    with ExitStack() as ending:
        ending.callback(give_back_memory)
        ending.callback((claim := Claim(store.folder)).give_up)
        again = changed if resume and store.exists else None
        identity, party = _enter(experiment, store, claim, gather, again)
        ending.callback(lambda: party.close())
        _warn(store, experiment, party.clients)  # before the baselines, which take as long as the run
        if workers and experiment.baselines:
            party.close()  # a baseline's workers need the cores and the memory of these
        beside = {}
        for name in experiment.baselines:
            beside[name] = _baseline(experiment, name, store.folder, gather, watcher)
            models.release()
        if workers and experiment.baselines:
            party = gather(experiment, store)
        if experiment.tracking:
            ending.callback(accelerator.end_training)
            accelerator.init_trackers(experiment.name.replace(" ", "-"))
            store.track = accelerator.log
        server = _federate(experiment, identity, store, party, watcher)
        metrics = collect(experiment, server, store, time.perf_counter() - begin)
        _compare(metrics, experiment, beside, store)
        store.write_metrics(metrics)
        store.event("run_finished", "finished")
        return metrics


def _enter(
    experiment: Experiment, store: WatchedStore, claim: Claim, gather: Gather, changed: Sequence[str] | None
) -> tuple[str, InProcess[Simulated] | Workers]:
    """Identity and clients of the run, which nobody else carries on at the same time.

    Args:
        changed: keys that may differ from those of the run here; None starts a new one.

    Raises:
        StoreError: the run here is another, or another process has it.
    """
    if changed is None:
        # Every mistake in models, data and method shows before anything is written.
        party = gather(experiment, store)
        check_method(experiment, party.clients)
        identity = store.create(experiment)
        claim.take()
        keep_fingerprint(store.folder, data_fingerprint(experiment))
        return identity, party
    claim.take()
    differ = check_fingerprint(store.folder, data_fingerprint(experiment), changed)
    identity, _ = store.open(experiment, tuple(key for key in changed if key != "data"))
    if differ:
        store.event("warning", f"resumed with changed data: {', '.join(differ)}")
    return identity, gather(experiment, store)


def check_method(experiment: Experiment, clients: Mapping[str, Simulated | Remote]) -> None:
    """Raise MethodError if the experiment's method cannot run on these clients, or a baseline is no method."""
    check_other_methods(experiment)
    method, _ = resolve_method(experiment.method)
    introductions = {name: client.introduction() for name, client in clients.items()}
    try:
        method.server.suits(experiment, introductions)
    except MethodError as error:
        raise MethodError(f"{method.name}: {error}") from None


def _federate(
    experiment: Experiment,
    identity: str,
    store: RunStore,
    party: InProcess[Simulated] | Workers,
    watcher: Watcher | None,
    purpose: str = "",
) -> Server:
    """Go on from the last commit if there is one, and run to the end."""
    if watcher:
        rows = [{"name": c.name, "model": c.model, "task": _task_name(c.task)} for c in experiment.clients]
        watcher.start(rows, experiment.rounds)
        watcher.message(f"{purpose}method {_method_name(experiment)}")
    last = store.committed()
    store.event(
        "run_started",
        f"{_method_name(experiment)}, {len(party.clients)} clients, {experiment.rounds} rounds",
        resumed=last is not None,
    )
    server = Server(experiment, identity, list(party.clients), party, store)
    try:
        if last:
            server.resume()
        server.run()
    finally:
        party.close()
    return server


def _baseline(
    experiment: Experiment, name: str, folder: Path, gather: Gather, watcher: Watcher | None
) -> dict[str, Any]:
    """Metrics of the same experiment with another method, in a run directory of its own inside this one; cached."""
    store = WatchedStore(folder / "baselines" / name, watcher)
    beside = _beside(experiment, name)
    identity = _open_baseline(store, beside, kept_fingerprint(folder))
    if (finished := store.metrics()) is not None:
        return finished
    begin = time.perf_counter()
    party = gather(beside, store)
    server = _federate(beside, identity, store, party, watcher, "for comparison: ")
    metrics = collect(beside, server, store, time.perf_counter() - begin)
    store.write_metrics(metrics)
    return metrics


def _beside(experiment: Experiment, name: str) -> Experiment:
    """The same experiment with the method of a baseline."""
    method, _ = resolve_method(name)
    own = experiment.method if isinstance(experiment.method, dict) else {"name": experiment.method}
    # A variant differs from the experiment's method in one thing; other methods have settings of their own.
    spec = own | {"name": name} if method.variant_of == own.get("name", "h2tune") else name
    # Nothing of a baseline travels, so nothing of it needs to be small or protected.
    changes: dict[str, Any] = {
        "method": spec,
        "baseline": "none",
        "select": "federated",
        "tracking": [],
        "wire": Wire(),
        "privacy": None,
        "secure_aggregation": None,
    }
    return experiment.model_copy(update=changes)


def _open_baseline(store: RunStore, beside: Experiment, data: Mapping[str, str]) -> str:
    """Identity of a baseline, which goes on where it stands, or begins anew if the run's config or data were changed.

    Args:
        data: fingerprint of the run's data.
    """
    if not store.exists:
        identity = store.create(beside)
        keep_fingerprint(store.folder, data)
        return identity
    before, known = store.open()[1], kept_fingerprint(store.folder)
    changed = differences(before.model_dump(mode="json"), beside.model_dump(mode="json"))
    if changed or differing(known, data):
        # Before its config and data are written: a start that is cut off here begins anew again. What was spent of
        # privacy stays spent, though what it was spent on is thrown away.
        store.forget(kept=(ROW_ACCOUNT,))
    identity, _ = store.open(beside, tuple(changed))
    keep_fingerprint(store.folder, {**known, **data})
    return identity


def _compare(metrics: dict[str, Any], experiment: Experiment, beside: dict[str, Any], store: RunStore) -> None:
    """Put the baselines' figures beside the run's, and keep the better adapter if asked to."""
    for name, other in beside.items():
        key = name.removeprefix(f"{resolve_method(name)[0].variant_of}-")
        for client, figures in metrics["clients"].items():
            figures[key] = other["clients"][client]["final"]
        metrics["mean"][key] = other["mean"]["final"]
    metrics["mean"] |= _means(metrics["clients"])
    if experiment.select == "best":
        _keep_better(metrics, store)


def _keep_better(metrics: dict[str, Any], store: RunStore) -> None:
    """Validation decides between a client's adapter and the one it trained alone; test figures are only read later."""
    for name, client in metrics["clients"].items():
        local, final = client["local"], client["final"]
        if local is None or (final is not None and local["validation_nats"] >= final["validation_nats"]):
            continue
        source = store.folder / "baselines" / "local" / "clients" / name / "adapter"
        shutil.copytree(source, store.client(name).folder / "adapter", dirs_exist_ok=True)
        client["kept"] = "local"


def _method_name(experiment: Experiment) -> str:
    return resolve_method(experiment.method)[0].name


def _flat(fields: dict[str, Any]) -> dict[str, float]:
    """Numbers of an event for a tracker, as client/loss/shared, client/validation/metric and so on."""
    found: dict[str, float] = {}
    for key, value in fields.items():
        values = {f"/{k}": v for k, v in value.items()} if isinstance(value, dict) else {"": value}
        found |= {f"{fields['client']}/{key}{k}": v for k, v in values.items() if isinstance(v, (int, float))}
    return found


def _task_name(task: Any) -> str:
    return task if isinstance(task, str) else str(task.get("preset") or task.get("kind"))


def _warn(store: RunStore, experiment: Experiment, clients: Mapping[str, Simulated | Remote]) -> None:
    """What deserves attention before training starts."""
    if unshared := about_sharing(experiment):
        store.event("warning", unshared)
    for name, client in clients.items():
        for text in [*client.remarks, about_revision(client.config)]:
            if text:
                store.event("warning", f"{name}: {text}", client=name)


def collect(experiment: Experiment, server: Server, store: RunStore, seconds: float) -> dict[str, Any]:
    """All figures of a run as plain values."""
    report = server.method.report()
    clients = {}
    for config in experiment.clients:
        member = server.members[config.name]
        facts = {k: v for k, v in member.facts.items() if k != "leaked"}
        coverage = facts.pop("anchor_coverage", None)
        # In one process the clients' own files are at hand, so their owner's report may show what was never sent.
        private = store.client(config.name).read_json("report.json") or {}
        clients[config.name] = facts | {
            "rank": server.method.rank_of(config.name),
            "base": member.base,
            "local": None,
            "final": member.final,
            "kept": "federated" if member.final else None,
            "status": member.standing,
            "rounds": member.rounds,
            **{key: private.get(key) for key in ("relation", "accepted")},
            "agreement": report.get("agreement"),
            "anchor_coverage": None if coverage is None else {"words": coverage, "missing": []},
            "setup_bytes": member.setup_bytes,
        }
    return {
        "schema": 1,
        "version": __version__,
        "name": experiment.name,
        "method": server.method_name,
        "method_versions": server.kind.versions(server.method.settings),
        "seed": experiment.seed,
        "rounds": server.round,
        "finished": True,
        "seconds": seconds,
        "clients": clients,
        "mean": _means(clients),
        "core": report.get("core"),
        "flows": report.get("flows"),
        "sent": as_lines(what_leaves(experiment)),
        "never": [STAYS],
        "privacy": server.method.privacy() or None,
    }


COLUMNS = ("base", "local", "unshared", "final")  # scores of a client that are compared with one another


def _means(clients: dict[str, Any]) -> dict[str, float | None]:
    """Mean metric of each column, over the clients that have all columns which any client has.

    A client that is missing from one column would move that column's mean alone: losing the weakest client would look
    like a gain.
    """
    held = [column for column in COLUMNS if any(client.get(column) for client in clients.values())]
    whole = [client for client in clients.values() if all(client.get(column) for column in held)]
    columns = dict.fromkeys(("base", "local", "final")) | dict.fromkeys(held)
    return {
        column: sum(client[column]["metric"] for client in whole) / len(whole) if whole and column in held else None
        for column in columns
    }
