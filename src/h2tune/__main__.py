"""``python -m h2tune`` is the command line."""

from h2tune.cli.app import app

app()
