"""Kits that are damaged, incomplete, of another user or of a newer version are named in a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from federations import small
from simulated_network import kits
from typer.testing import CliRunner

from h2tune.cli.app import app
from h2tune.deployment.kits import Kit, KitError
from h2tune.deployment.status import describe
from h2tune.deployment.vertical import config_of
from h2tune.transport.channel import ChannelError
from h2tune.transport.nvflare.flare import Flare


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("own.yaml", "- a\n"),
        ("own.yaml", "{a: b"),
        ("federation.yaml", "[1, 2]"),
        ("federation.yaml", "\t: {"),
        ("federation.yaml", "a: [1"),
        ("federation.yaml", "a: 1"),
        ("federation.yaml", ""),
    ],
)
def test_a_damaged_file_of_a_kit_is_named(name: str, text: str, tmp_path: Path) -> None:
    kit = kits(small(), tmp_path)["c0"]
    (kit.folder / name).write_text(text)
    cure = "write it anew" if name == "own.yaml" else "ask the coordinator for the kit again"
    with pytest.raises(KitError, match=f"{name}.*{cure}"):
        kit.experiment(kit.own())
    if name != "own.yaml":
        for command in (["client", str(kit.folder), "--train", "a.csv"], ["server", str(tmp_path / "server")]):
            (tmp_path / "server" / name).write_text(text)
            found = CliRunner().invoke(app, command)
            assert found.exit_code == 1 and "Traceback" not in found.output and cure in " ".join(found.output.split())
        for text in ("parties: [a, b]\nlabel: 3", "parties: [{name: c0}]", "parties: [{name: c0}]\nlabel: 3"):
            (kit.folder / name).write_text(text)
            with pytest.raises(KitError, match=f"{name} {cure}".replace(" ", ".*", 1)):
                config_of(kit, {"train": "a.csv"})


@pytest.mark.parametrize(("name", "text"), [("comm_config", None), ("comm_config", "{}"), ("resources", "{"),
                                             ("resources", '{"components": []}')])  # fmt: skip
def test_a_kit_without_the_engines_settings_says_so(name: str, text: str | None, tmp_path: Path) -> None:
    flare = Flare.__new__(Flare)
    flare.workspace, path = tmp_path, tmp_path / "local" / f"{name}.json"
    path.parent.mkdir()
    if text is not None:
        path.write_text(text)
    with pytest.raises(ChannelError, match=rf"{name}\.json cannot be read: ask the coordinator for the kit again"):
        flare._largest() if name == "comm_config" else flare._keep_inside()


@pytest.mark.parametrize("name", ["kit.json", "federation.yaml", "client.key", "client.crt"])
def test_a_kit_of_another_user_says_what_to_do(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose user is not the one who made the kit."""
    folder, opened = kits(small(), tmp_path)["c0"].folder, Path.open

    def refused(path: Path, *args: Any, **named: Any) -> Any:
        if path.name == name:
            raise PermissionError(13, "Permission denied")
        return opened(path, *args, **named)

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(KitError, match=f"This user may not read .*{name}.*chown -R USER KIT"):
        Kit(folder).experiment()
        Kit(folder).check_certificate()


def test_a_newer_kit_is_refused_with_its_version_whatever_else_it_holds(tmp_path: Path) -> None:
    path = kits(small(), tmp_path)["c0"].folder / "kit.json"
    path.write_text(json.dumps({"schema": 2, "version": "9.0", "addresses": ["a", "b"]}))
    with pytest.raises(KitError, match=r"made by h2tune 9\.0, which is newer"):
        Kit(path.parent)


def test_a_damaged_status_is_named(tmp_path: Path) -> None:
    kit = kits(small(), tmp_path)["c0"]
    (kit.folder / "status.json").write_text("{")
    with pytest.raises(KitError, match=r"status\.json is damaged: delete it"):
        describe(kit)
