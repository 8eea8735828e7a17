"""The engine's process: NVFlare's own main program for a server or a site, with a wire to our process.

Run as ``python -m h2tune.transport.nvflare.engine server|client WORKSPACE NAME`` by `h2tune.transport.nvflare.flare`. It ends when our
process ends, however that happens.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading
from pathlib import Path
from typing import Any

from h2tune.transport.nvflare import handshakes
from h2tune.transport.nvflare.listener import Link, connect

MAINS = {"server": ("nvflare.private.fed.app.server.server_train", "fed_server.json"),
         "client": ("nvflare.private.fed.app.client.client_train", "fed_client.json")}  # fmt: skip


class Engine:
    """This process: the link, and the relay once NVFlare has made it."""

    link: Link
    workspace: Path
    relay: Any = None

    @classmethod
    def carry(cls) -> None:
        """Take envelopes of our process to the network, until it is gone; then end this process, too."""
        try:
            while True:
                header, body = cls.link.receive()
                if cls.relay is None:
                    cls.link.send({"sent": header["number"], "error": "not connected yet"})
                else:
                    cls.relay.take(header, body)
        finally:
            os._exit(0)


def main(role: str, workspace: str, name: str) -> None:
    from h2tune.transport.nvflare import engine  # not __main__: the relay imports it by this name

    engine.Engine.link, engine.Engine.workspace = connect(dict(os.environ)), Path(workspace)
    threading.Thread(target=engine.Engine.carry, daemon=True, name="h2tune-carry").start()
    if role == "server":
        handshakes.watch()
    module, config = MAINS[role]
    settings = ["secure_train=true", "org=h2tune", "config_folder=config"]
    settings += [f"uid={name}"] if role == "client" else []
    sys.argv = [module, "-m", workspace, "-s", config, "--set", *settings]
    runpy.run_module(module, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
