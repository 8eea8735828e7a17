"""The registration of `method: lada` and `method: lada-published`; their description is in `h2tune.distill.settings`."""

from __future__ import annotations

from h2tune.distill.client import LadaClient
from h2tune.distill.server import LadaServer
from h2tune.distill.settings import LadaSettings, PublishedSettings
from h2tune.methods.base import Method

LADA = Method(
    "lada",
    LadaSettings,
    LadaClient,
    LadaServer,
    "reasoning flows between a large model and small ones",
    source="Guo et al., arXiv 2602.18749; filter and loss are this project's",
)
PUBLISHED = Method(
    "lada-published",
    PublishedSettings,
    LadaClient,
    LadaServer,
    "the same by a bandit and a pair loss, as reconstructed",
    source="Guo et al., arXiv 2602.18749, reconstructed from reports of it",
    variant_of="lada",
    heading="as published",
)
