"""Clients in this very process, one after the other; they still exchange real bytes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Generic, Protocol, TypeVar

from h2tune.utils.memory import KEPT, give_back_memory


class Handler(Protocol):
    def handle(self, data: bytes) -> bytes: ...


C = TypeVar("C", bound=Handler)


class InProcess(Generic[C]):
    """Calls each client in turn; one answer is in memory at a time."""

    def __init__(self, clients: dict[str, C]) -> None:
        self.clients = clients
        self.known: set[str] = set()

    def exchange(self, requests: dict[str, bytes], fresh: bool = False) -> Iterator[tuple[str, bytes]]:
        # An exception of a client in this process is a bug or a full disk, not a bad night: it is not swallowed.
        self.known |= requests.keys()
        for name, data in requests.items():
            yield name, self.clients[name].handle(data)
            give_back_memory(above=KEPT)  # pieces that fitted one model seldom fit the next

    def groups(self, names: Iterable[str]) -> list[list[str]]:
        """Clients that act together: each by itself."""
        return [[name] for name in names]

    def returned(self) -> list[str]:
        """Clients that nobody has asked yet: late joiners."""
        return [name for name in self.clients if name not in self.known]

    def wait(self, names: Collection[str], count: int, first: bool = False) -> bool:
        """Nobody else will come; at the start all are here."""
        return first

    def close(self) -> None:
        """Nothing was opened."""

    def revoked(self) -> Collection[str]:
        """Nobody: certificates belong to a network."""
        return ()

    def dismiss(self, name: str, reason: str) -> None:
        """A client in this process is simply not asked again."""
