"""Methods of vertical federated learning, one a file."""

from __future__ import annotations

from h2tune.config import ConfigError
from h2tune.vertical.methods import ensemble, fedcvt, fedhssl, laser, local, proto_evfl, prototypes, splitnn
from h2tune.vertical.methods.base import Method

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
