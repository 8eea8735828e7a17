"""Nothing but what a client fits before anything is shared: its label bias, or a classification head.

    logit(token) + b(place, token)   for the labels' tokens at each place of an answer   (`h2tune.participant.label_bias`)

The least that a method has to beat: every method starts from the same bias.
"""

from __future__ import annotations

from h2tune.methods.base import Method, Settings
from h2tune.methods.local import LocalClient, LocalServer
from h2tune.protocol.codec import Payload


class BiasClient(LocalClient):
    """Its adapter stays at 0."""

    protects_rows = False  # the bias is fitted to the rows
    hosts = False  # nothing is trained in its rounds

    def train(self, round: int, payload: Payload) -> Payload:
        return Payload()


Method(
    "bias",
    Settings,
    BiasClient,
    LocalServer,
    "every client alone, with a bias of its labels or a head only",
    source="calibration of label logits, after Zhao et al., arXiv 2102.09690; here the bias is fitted to rows",
)
