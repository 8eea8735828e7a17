"""Methods of vertical federated learning, one a file."""

from __future__ import annotations

from h2tune.config import ConfigError
from h2tune.vertical.config import VerticalConfig
from h2tune.vertical.methods import ensemble, fedcvt, fedhssl, laser, local, proto_evfl, prototypes, splitnn
from h2tune.vertical.methods.base import Method, configure

METHODS: dict[str, Method] = {
    module.METHOD.name: module.METHOD
    for module in (proto_evfl, local, splitnn, fedhssl, fedcvt, prototypes, ensemble, laser)
}


def method_named(name: str) -> Method:
    """The method of this name.

    Raises:
        ConfigError: naming those that there are.
    """
    if name not in METHODS:
        raise ConfigError([f"method: there is no vertical method {name!r}; there are: {', '.join(METHODS)}."])
    return METHODS[name]


def prepare(config: VerticalConfig) -> VerticalConfig:
    """The config with what its method sets in place, for a federation that is about to run.

    Raises:
        ConfigError: if there is no such method, or it has no messages.
    """
    method = method_named(config.method.name)
    if method.train is not None:
        raise ConfigError([
            f"method: {method.name} is trained in one process from all parties' rows; it takes part in `h2tune compare`,"
            " and cannot be run as a federation."
        ])  # fmt: skip
    return configure(config, method)
