"""A client's engine that lies in the headers of what it sends, as H2TUNE_TEST_FORGE says (JSON: the file with the lies)."""

import json
import os
import sys
from pathlib import Path

from h2tune.transport.nvflare import engine, relay

LIES = Path(os.environ["H2TUNE_TEST_FORGE"])
handle = relay.Relay.handle_event


def forge(self, event_type, fl_ctx):
    first = relay.Engine.relay is None
    handle(self, event_type, fl_ctx)
    if not first or relay.Engine.relay is not self:
        return
    communicator = self.cell.core_cell.communicator
    honest = communicator.send

    def send(endpoint, app, message):
        for key, value in json.loads(LIES.read_text()).items():
            message.set_header(key, value) if value is not None else message.remove_header(key)
        return honest(endpoint, app, message)

    communicator.send = send


relay.Relay.handle_event = forge
engine.main(*sys.argv[1:])
