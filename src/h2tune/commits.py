"""The last committed round: a restart, a round that fails and a client that returns all start from it.

A commit holds the method's shared tensors, what the server remembers of every client, and the early stopping.
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


@dataclass(frozen=True)
class Committed:
    """A round as it was committed.

    Attributes:
        round: its number; 0 is the set-up.
        state: digest of what is shared; requests made from it carry the digest.
        method: a new object that stands where the committed one stood.
        members: what was known of every client. progress: of the early stopping.
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

    def write(
        self, number: int, method: ServerMethod, members: dict[str, Member], progress: EarlyStopping, once: int = 0
    ) -> str:
        """Commit a round; returns the digest of what is shared."""
        tensors = method.state()
        records = {
            "members": {name: member.plain() for name, member in members.items()},
            "progress": progress.plain(),
            "method": method.plain_state(),
            "once": once,
        }
        if number == 0:
            self.log.keep("frames", method.fixed())
        self.log.commit(number, tensors, records)
        return digest_of(tensors, number)

    def last(self) -> Committed:
        """The last commit; there must be one."""
        committed = self.log.committed()
        assert committed is not None  # the set-up is committed before the first round
        number, tensors, records = committed
        method = self.new_method()
        method.load(tensors, records["method"], self.log.kept("frames"))
        members = {name: Member.from_plain(member) for name, member in records["members"].items()}
        once = records.get("once", 0)  # commits of earlier versions lack it
        return Committed(number, digest_of(tensors, number), method, members, records["progress"], once)

    def rejoining(self, names: list[str]) -> tuple[int, dict[str, Payload]]:
        """What clients that restarted need to take their place again: the committed round, and a payload for each."""
        # From a new method object: the sums of a round under way are not to be disturbed.
        last = self.last()
        return last.round, {name: last.method.rejoin(name) for name in names}
