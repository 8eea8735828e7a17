"""The last committed round: a restart, a round that fails and a client that returns all start from it.

A commit holds the method's shared tensors, what the server remembers of every client, and the early stopping. What only
grows is written once: clients' reports of their rounds, of which a commit says how many bytes are part of it, and what a
method fixes when clients join.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from h2tune.methods.base import ServerMethod
from h2tune.protocol.codec import Payload
from h2tune.session import Member, RunLog
from h2tune.utils.digest import digest_of
from h2tune.utils.early_stopping import EarlyStopping
from h2tune.utils.files import StoreError


@dataclass(frozen=True)
class Committed:
    """A round as it was committed.

    Attributes:
        round: its number; 0 is the set-up.
        state: digest of what is shared; requests made from it carry the digest.
        method: a new object that stands where the committed one stood.
        members: what was known of every client; its reports only if they were asked for. progress: of the early stopping.
        once: a later round that had come so far that it must not be begun again; 0 is none.
    """

    round: int
    state: str
    method: ServerMethod
    members: dict[str, Member]
    progress: dict[str, Any]
    once: int


class Commits:
    """Writes and reads commits.

    Args:
        log: where they are kept.
        new_method: makes the server's half of the method, as before the set-up.
    """

    def __init__(self, log: RunLog, new_method: Callable[[], ServerMethod]) -> None:
        self.log, self.new_method = log, new_method
        self.fixed: set[str] = set()  # names of what is kept apart
        self.reported: dict[str, int] = {}  # of each client's reports, how many are written
        self.length = 0  # bytes that these take

    def write(
        self, number: int, method: ServerMethod, members: dict[str, Member], progress: EarlyStopping, once: int = 0
    ) -> str:
        """Commit a round; returns the digest of what is shared."""
        tensors, fixed = method.state(), method.fixed()
        records = {
            "members": {name: member.plain() for name, member in members.items()},
            "reports": self._add_reports(members),
            "progress": progress.plain(),
            "method": method.plain_state(),
            "once": once,
        }
        if number == 0 or fixed.keys() - self.fixed:  # a late joiner may bring some
            self.log.keep("frames", fixed)
            self.fixed = set(fixed)
        self.log.commit(number, tensors, records)
        return digest_of(tensors, number)

    def _add_reports(self, members: dict[str, Member]) -> int:
        """Write the reports that are not written yet; returns how many bytes all of them take."""
        known = self.reported
        fresh = [[name, report] for name, m in members.items() for report in m.rounds[known.get(name, 0) :]]
        if fresh:
            self.length = self.log.add_reports(fresh, self.length)
            self.reported = {name: len(member.rounds) for name, member in members.items()}
        return self.length

    def last(self, with_reports: bool = False) -> Committed:
        """The last commit; there must be one.

        Args:
            with_reports: read what clients reported of all rounds, too; who goes on from this commit needs them.
        """
        committed = self.log.committed()
        assert committed is not None  # the set-up is committed before the first round
        number, tensors, records = committed
        method, fixed = self.new_method(), self.log.kept("frames")
        method.load(tensors, records["method"], fixed)
        members = {name: Member.from_plain(member) for name, member in records["members"].items()}
        if with_reports:
            self.fixed, self.length = set(fixed), records.get("reports", 0)
            self.reported = self._read_reports(members)
        once = records.get("once", 0)  # commits of earlier versions lack it
        return Committed(number, digest_of(tensors, number), method, members, records["progress"], once)

    def _read_reports(self, members: dict[str, Member]) -> dict[str, int]:
        """Give members their reports; returns how many each has. Those in commits of earlier versions count as not written."""
        counts = dict.fromkeys(members, 0)
        for name, report in self.log.reports(self.length):
            if name not in members:
                raise StoreError(
                    f"The reports of the run speak of {name!r}, who is not among its clients: put them back."
                )
            members[name].rounds.append(report)
            counts[name] += 1
        return counts

    def rejoining(self, names: list[str]) -> tuple[int, dict[str, Payload]]:
        """What clients that restarted need to take their place again: the committed round, and a payload for each."""
        # From a new method object: the sums of a round under way are not to be disturbed.
        last = self.last()
        return last.round, {name: last.method.rejoin(name) for name in names}
