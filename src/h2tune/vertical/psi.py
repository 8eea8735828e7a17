"""Private set intersection of ids through OpenMined's package: only the active party learns who is shared, nobody else.

One trip: the active party's request holds its blinded ids; the answer holds those blinded again, and the other party's
own blinded ids. Elliptic-curve Diffie-Hellman; the raw structure makes no false matches.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from h2tune.vertical.align import AlignmentError
from h2tune.vertical.spelling import normalise

BLINDED = 35  # bytes of a blinded id: a point of the curve, and how a message sets it apart


def _library() -> Any:
    try:
        import private_set_intersection.python as library
    except ImportError:
        raise AlignmentError("align.how is `psi`, which needs a package: pip install openmined-psi") from None
    return library


def check_package(how: str) -> None:
    """Raise AlignmentError where a private intersection is asked for and its package is not installed."""
    if how == "psi":
        _library()


def bytes_of(mine: int, theirs: int) -> tuple[int, int]:
    """Bytes that a private intersection of so many ids sends up, setup and response, and down, the request."""
    return BLINDED * (mine + theirs), BLINDED * mine


def _tensor(message: Any) -> Tensor:
    return torch.from_numpy(np.frombuffer(message.SerializeToString(), np.uint8).copy())


def _parsed(kind: Any, tensor: Tensor) -> Any:
    message = kind()
    message.ParseFromString(tensor.numpy().tobytes())
    return message


class Requester:
    """The active party's side, for one list of ids and one other party."""

    def __init__(self, ids: list[str]) -> None:
        self.library = _library()
        self.ids = [normalise(i) for i in ids]
        self.client = self.library.client.CreateWithNewKey(True)

    def request(self) -> Tensor:
        """Its blinded ids."""
        return _tensor(self.client.CreateRequest(self.ids))

    def shared(self, setup: Tensor, response: Tensor) -> list[int]:
        """Positions of its ids that the other party has, too."""
        parts = _parsed(self.library.ServerSetup, setup), _parsed(self.library.Response, response)
        return sorted(self.client.GetIntersection(*parts))


class Responder:
    """A passive party's side."""

    def __init__(self, train: list[str], test: list[str]) -> None:
        self.library = _library()
        self.lists = {"": [normalise(i) for i in train], "test_": [normalise(i) for i in test]}

    def answer(self, requests: dict[str, Tensor]) -> dict[str, Tensor]:
        """Setup and response for each list that was asked for."""
        found: dict[str, Tensor] = {}
        for prefix, ids in self.lists.items():
            if f"{prefix}request" not in requests or not ids:
                continue
            server = self.library.server.CreateWithNewKey(True)
            request = _parsed(self.library.Request, requests[f"{prefix}request"])
            count, structure = len(request.encrypted_elements), self.library.DataStructure.RAW
            found[f"{prefix}setup"] = _tensor(server.CreateSetupMessage(1e-9, count, ids, structure))
            found[f"{prefix}response"] = _tensor(server.ProcessRequest(request))
        return found
