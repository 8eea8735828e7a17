"""Every error that a person can do something about is an `H2TuneError`, and the command line prints it in plain words."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest
import typer

import h2tune
from h2tune.cli.options import plain_errors
from h2tune.errors import H2TuneError

INTERNAL = {
    "Refused",
    "LinkClosed",
    "QuorumMissed",
    "RoundInterrupted",
    "RoundSpoiled",
    "_Reached",
}  # caught where they are raised


def test_all_errors_share_one_base_and_keep_a_built_in_one() -> None:
    found: dict[str, type[Exception]] = {}
    for module in pkgutil.walk_packages(h2tune.__path__, "h2tune."):
        if module.name.startswith(("h2tune.__main__", "h2tune.transport.nvflare", "h2tune.tasks._child")):
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            if inspect.isclass(value) and issubclass(value, Exception) and value.__module__.startswith("h2tune."):
                found[name] = value
    others = {name for name, value in found.items() if not issubclass(value, H2TuneError)}
    assert others <= INTERNAL
    for name, value in found.items():
        assert name == "H2TuneError" or issubclass(value, ValueError | RuntimeError) or name in INTERNAL, name


class MistakeError(H2TuneError):
    pass


def test_an_expected_error_ends_in_plain_words_and_a_bug_in_its_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(typer.Exit) as ended, plain_errors():
        raise MistakeError("The file has no rows.\n  Look at line 1.")
    assert ended.value.exit_code == 1
    assert capsys.readouterr().err == "error: The file has no rows.\n  Look at line 1.\n"
    with pytest.raises(ZeroDivisionError), plain_errors():
        raise ZeroDivisionError
    with pytest.raises(typer.Exit), plain_errors("Stopped. The same command goes on."):
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "Stopped. The same command goes on.\n"
