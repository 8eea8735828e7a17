"""From a config to a finished run: read the parties, meet, train round by round, keep figures and models."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from h2tune.store import ClientStore
from h2tune.tasks.fingerprint import keep_fingerprint
from h2tune.transport.inprocess import InProcess
from h2tune.utils.digest import digest_of
from h2tune.utils.files import Claim
from h2tune.utils.numbers import finite
from h2tune.utils.seeds import derive
from h2tune.version import __version__
from h2tune.vertical.active import Active
from h2tune.vertical.align import AlignmentError
from h2tune.vertical.attention import about_tables, class_names
from h2tune.vertical.config import VerticalConfig, load_vertical
from h2tune.vertical.evaluation import evaluate
from h2tune.vertical.exchange import Direct, Exchange, PartyGone
from h2tune.vertical.figures import pictures
from h2tune.vertical.fingerprint import Frames, check_data, data_fingerprint
from h2tune.vertical.meeting import Meeting, meet
from h2tune.vertical.methods import METHODS, method_named, prepare
from h2tune.vertical.methods.base import configure
from h2tune.vertical.parties import PartyData, load_party
from h2tune.vertical.passive import Passive
from h2tune.vertical.psi import check_package
from h2tune.vertical.run_store import VerticalStore, keep_top
from h2tune.vertical.table import TableError
from h2tune.vertical.unused import unused
from h2tune.vertical.vectors import class_vectors


class Watcher(Protocol):
    """Someone who shows progress."""

    def round_done(self, record: dict[str, Any], rounds: int) -> None: ...
    def message(self, text: str, level: str = "info") -> None: ...


def salt_of(config: VerticalConfig, party: str = "") -> str:
    """The parties' shared secret; in one process it may come from the seed."""
    own = next((p.salt for p in config.parties if p.name == party), None)
    return own or config.align.salt or f"{derive(config.seed, 'salt'):016x}"


def load_parties(config: VerticalConfig, frames: Frames | None = None) -> dict[str, PartyData]:
    """The data of all parties, for a run in one process; the active party comes first.

    Raises:
        TableError, AlignmentError: with the first mistake of every party, and of the class vectors.
    """
    found: dict[str, PartyData] = {}
    mistakes: list[TableError | AlignmentError] = []
    for party in (config.active, *config.passive):
        try:
            frame = frames[party.name] if frames else None
            found[party.name] = load_party(config, party, salt_of(config, party.name), frame)
        except (TableError, AlignmentError) as error:
            mistakes.append(error)
    try:
        check_vectors(config, found.get(config.label.party))
    except TableError as error:
        mistakes.append(error)
    if mistakes:
        raise type(mistakes[0])("\n".join(map(str, mistakes)))
    return found


def check_vectors(config: VerticalConfig, active: PartyData | None) -> None:
    """Read the class vectors, so that a mistake in them shows before anything is written.

    Args:
        active: None where its table has a mistake; the vectors of the classes that the config names are read all the same.

    Raises:
        TableError: see `class_vectors`.
    """
    class_vectors(config, sorted(class_names(config, active)) if active else config.label.classes or ())


class Federation:
    """One vertical federation with the means to run it.

    Args:
        data: of the active party.
        exchange: the way to the others.
        store: where the run is kept; without one nothing is.
    """

    def __init__(
        self, config: VerticalConfig, data: PartyData, exchange: Exchange, store: VerticalStore | None = None
    ) -> None:
        self.config, self.data, self.exchange, self.store = config, data, exchange, store
        self.log = exchange.session.log
        self.active: Active | None = None

    def open(self) -> Active:
        """Match people and classes; every mistake in the data shows here."""
        meeting = meet(self.config, self.data, salt_of(self.config, self.data.name), self.exchange)
        self.active = self._build(meeting)
        if self.store is not None:
            self.store.keep_meeting(meeting)
            self.store.keep_secret(self.active.secret)
        alone = int((~self.active.labels.trained).sum())
        self.log.event("set_up", f"{len(meeting.rows):,} people are aligned, {alone:,} of them kept for validation")
        self._commit()
        return self.active

    def _build(self, meeting: Meeting, secret: bytes | None = None) -> Active:
        vectors = class_vectors(self.config, meeting.classes)
        return Active(self.config, self.data, meeting, self.exchange, vectors, secret)

    def resume(self) -> Active:
        """Go on from the last commit in the store, which must be there."""
        store = self.store
        committed = store.committed() if store else None
        assert store is not None and committed is not None
        self.active = self._build(store.meeting(), store.secret())
        number, tensors, records = committed
        self.active.restore(number, tensors, records)
        self.exchange.load(records["exchange"])
        self.exchange.sizes, self.exchange.state = store.sizes(self.active), digest_of(tensors, number)
        self.exchange.rejoin(number, self.exchange.away)
        return self.active

    def _commit(self) -> None:
        if self.store is None or self.active is None:
            return
        number, tensors = self.active.round, self.active.state()
        self.store.commit(number, tensors, self.active.records() | {"exchange": self.exchange.plain()})
        self.exchange.state = digest_of(tensors, number)

    def run(self, on_round: Callable[[dict[str, Any]], None] = lambda record: None) -> Active:
        """All rounds that are left."""
        active = self.active or self.open()
        while active.round < self.config.rounds:
            record = self._round(active)
            self._commit()
            self.log.event("round_committed", f"round {active.round} committed", **record)
            on_round(record)
        active.finish()
        return active

    def _round(self, active: Active) -> dict[str, Any]:
        """One round; where a party is lost in it, again from the last commit with those who are here."""
        saved, kept = active.state(), active.records()
        while True:
            if returned := self._returned():
                self.exchange.rejoin(active.round, returned)
            try:
                record = active.one_round()
                if active.round % self.config.evaluation.every == 0 or active.round == self.config.rounds:
                    record |= evaluate(active)
                    active.judge(record)
                return record
            except PartyGone as error:
                self.log.event("warning", f"round {active.round + 1} is repeated: {error}")
                active.restore(active.round, saved, kept)
                names = [*self.exchange.here, *self.exchange.away]
                complete = self.exchange.session.transport.wait(names, len(names))
                self.log.event("info", "all parties are here again" if complete else "going on without them")
                self.exchange.rejoin(active.round, self._returned())

    def _returned(self) -> list[str]:
        """Parties that were away and are here again."""
        here = self.exchange.session.returned()
        return [name for name in self.exchange.away if name in here]


def fit(config: VerticalConfig, data: dict[str, PartyData]) -> Active:
    """Train in memory, without a run directory and without messages as bytes; returns the trained active party."""
    parties = {p.name: Passive(config, data[p.name], salt_of(config, p.name)) for p in config.passive}
    return Federation(config, data[config.label.party], Direct(dict(parties))).run()


def alone(config: VerticalConfig, data: PartyData) -> dict[str, Any] | None:
    """Scores of the active party by itself on the same test people; None where none are asked for."""
    if config.baseline == "none" or config.method.name == "local" or data.test is None:
        return None
    found = fit(configure(config, METHODS["local"]), {data.name: data}).result.get("test")
    return dict(found) if found else None


def _opened(store: VerticalStore, config: VerticalConfig, frames: Frames | None) -> tuple[str, dict[str, PartyData]]:
    """Identity and data of a run that goes on; other data are noticed before they are read."""
    identity = store.open_vertical(config)
    check_data(store.folder, config, frames)
    return identity, load_parties(config, frames)


def _begun(
    store: VerticalStore, claim: Claim, config: VerticalConfig, frames: Frames | None, resume: bool
) -> tuple[str, dict[str, PartyData]]:
    """Identity and data of a new run; every mistake in a table shows before anything is written."""
    data = load_parties(config, frames)
    if config.passive:
        check_package(config.align.how)
    store.check_free(resume)  # a folder of something else does not get so much as a lock
    claim.take()
    identity = store.create_for(config, secrets.token_hex(16), resume)
    keep_fingerprint(store.folder, data_fingerprint(config, frames))
    return identity, data


def warn(
    config: VerticalConfig, data: dict[str, PartyData], store: VerticalStore, watcher: Watcher | None, given: VerticalConfig,
) -> None:  # fmt: skip
    """Say at the start of a run what deserves attention in the tables that are here, and which keys of the file change
    nothing; it stands in the events, too.

    Args:
        given: the config before its method has set anything.
    """
    for text in [*unused(given, method_named(given.method.name)), *about_tables(config, data)]:
        store.event("warning", text)
        if watcher:
            watcher.message(text, "warning")


def run(
    config: VerticalConfig | str | Path, out: str | Path, *, resume: bool = False, frames: Frames | None = None,
    watcher: Watcher | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Run a vertical federation in this process and return its metrics (as in ``metrics.json``).

    Args:
        config: the config or a path to its YAML.
        out: run directory; must not hold another run.
        resume: go on with the run in ``out``, from its last committed round.
        frames: training and test table of each party, where they are in memory already.
    """
    config = config if isinstance(config, VerticalConfig) else load_vertical(config)
    prepared, claim = prepare(config), Claim(Path(out))
    try:
        return _run(prepared, config, claim, resume, frames, watcher)
    finally:
        claim.give_up()


def _run(
    config: VerticalConfig, given: VerticalConfig, claim: Claim, resume: bool, frames: Frames | None,
    watcher: Watcher | None,
) -> dict[str, Any]:  # fmt: skip
    begin, store = time.perf_counter(), VerticalStore(claim.folder)
    if resume and store.exists:
        claim.take()  # before a look at how far it is, which nobody else may change from here on
    opened = resume and store.exists and store.committed() is not None
    if opened:
        identity, data = _opened(store, config, frames)
    else:
        identity, data = _begun(store, claim, config, frames, resume)
        warn(config, data, store, watcher, given)
    parties = {
        p.name: Passive(config, data[p.name], salt_of(config, p.name), ClientStore(store.folder / "clients" / p.name))
        for p in config.passive
    }
    names = [p.name for p in config.passive]
    exchange = Exchange(identity, config.method.name, names, InProcess(dict(parties)), store, config.network.largest)
    federation = Federation(config, data[config.label.party], exchange, store)
    if opened:
        federation.resume()

    def told(record: dict[str, Any]) -> None:
        # In one process every party's own figures are at hand; over a network nobody else sees them.
        record["kept"] = {name: party.shares.get("kept", 0.0) for name, party in parties.items()}
        if watcher:
            watcher.round_done(record, config.rounds)

    active = federation.run(told)
    metrics = collect(config, active, time.perf_counter() - begin)
    keep_top(store, active)
    metrics["alone"] = alone(config, active.data)
    store.write_metrics(metrics)
    store.event("run_finished", "finished")
    return metrics


def collect(config: VerticalConfig, active: Active, seconds: float) -> dict[str, Any]:
    """All figures of a run as plain values."""
    exchange = active.exchange
    bytes_of = {
        name: {kind: {"down": exchange.sent[name].get(kind, 0), "up": exchange.received[name].get(kind, 0)}
               for kind in ("join", "align", "step", "local", "predict")}
        for name in active.meeting.passive
    }  # fmt: skip
    result = active.result
    figures: dict[str, Any] = {
        "schema": 1, "kind": "vertical", "version": __version__, "name": config.name, "method": config.method.name,
        "seed": config.seed, "rounds": active.round, "best": active.best or active.round, "finished": True, "seconds": seconds, "parties": active.parties,
        "classes": active.classes, "unseen": active.labels.unseen, "aligned": len(active.labels.y),
        "rows": dict(zip(active.parties, [len(active.data.train), *active.meeting.sizes], strict=True)),
        "final": result.get("test"), "validation": result.get("validation"), "history": active.history, "bytes": bytes_of,
        "excluded": exchange.excluded,
    }  # fmt: skip
    return figures | dict(finite(pictures(active)))
