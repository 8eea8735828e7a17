"""Kind E: a path is resolved once, where it was written: beside its config, `~` from the home of who wrote it."""

from __future__ import annotations

from pathlib import Path

import pytest
from federations import small

from h2tune.config import load_config


def written(folder: Path, **client: str) -> Path:
    import yaml

    data = small(1).model_dump(mode="json")
    data["clients"][0] |= client
    folder.mkdir(exist_ok=True)
    path = folder / "f.yaml"
    path.write_text(yaml.safe_dump(data | {"anchors": "~/anchors.txt"}), encoding="utf-8")
    return path


def test_paths_are_those_of_the_configs_folder_wherever_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, folder, elsewhere = tmp_path / "home", tmp_path / "configs", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "rows.jsonl").write_text("{}", encoding="utf-8")  # a file of that name where the command is typed
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(elsewhere)
    path = written(folder, train="rows.jsonl", test="set?split=test", validation="~/v.jsonl", model="./model")
    experiment = load_config(path)
    (client,) = experiment.clients
    assert (client.train, client.test) == (str(folder / "rows.jsonl"), f"{folder / 'set'}?split=test")
    assert (client.validation, client.model) == (str(home / "v.jsonl"), str(folder / "model"))
    assert experiment.anchors == str(home / "anchors.txt")


@pytest.mark.parametrize("source", ["hub:owner/name?split=train", "demo:fill?n=4", "-", "(the client's own)"])
def test_names_stay_names(tmp_path: Path, source: str) -> None:
    (client,) = load_config(written(tmp_path, train=source, model="owner/name")).clients
    assert (client.train, client.model) == (source, "owner/name")
