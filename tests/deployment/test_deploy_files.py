"""The files in deploy/ fit what kits and clients are."""

from __future__ import annotations

import configparser
from pathlib import Path

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"


def test_containers_run_as_the_user_who_owns_the_kit() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]
    assert {service["user"] for service in services.values()} == {"${UID:-1000}:${GID:-1000}"}
    assert "ENV HOME=/tmp USER=h2tune" in (DEPLOY / "Dockerfile").read_text(encoding="utf-8")


def test_the_service_ends_for_a_client_that_is_refused_and_can_keep_a_model_of_the_hub() -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(DEPLOY / "h2tune-client.service", encoding="utf-8")
    again = int(unit["Service"]["RestartSec"])
    # It is given up before an hour is over, and one that waits for its server (ten minutes each time) never is.
    assert unit["Unit"]["StartLimitIntervalSec"] == "1h"
    assert 6 < int(unit["Unit"]["StartLimitBurst"]) < 3600 / (again + 60)
    assert unit["Service"]["Environment"].endswith("/var/cache/" + unit["Service"]["CacheDirectory"])
