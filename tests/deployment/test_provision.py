"""Making kits: what is remembered of who is refused, and what an interruption leaves."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from federations import small
from loopback import free_port
from typer.testing import CliRunner
from vertical.tables import config

pytest.importorskip("nvflare", reason="NVFlare is not installed: pip install -e '.[network]'")

from h2tune.agreed import changed
from h2tune.cli.app import app
from h2tune.config import Experiment
from h2tune.deployment import provision as making
from h2tune.deployment.kits import Kit, KitError
from h2tune.deployment.outdated import _resolved
from h2tune.deployment.provision import provision, revoke, with_public_files
from h2tune.deployment.vertical import outdated_parties, provision_vertical
from h2tune.transport.access import read_certificates, read_revoked


@pytest.fixture
def experiment() -> Experiment:
    return small(clients=2, network={"port": free_port()})


def test_who_is_revoked_stays_so_when_the_servers_kit_has_moved(experiment: Experiment, tmp_path: Path) -> None:
    out = tmp_path / "kits"
    provision(experiment, out)
    revoke(out, ["c0"])
    shutil.move(out / "server", tmp_path / "moved")
    assert revoke(out, ["c1"]) == ["c0", "c1"] and not (out / "server").exists()
    assert read_revoked(out / "authority") == ["c0", "c1"]  # to be copied to the server
    assert [path.name for path in provision(experiment, out)] == ["server"]
    assert read_revoked(out / "server" / "engine") == ["c0", "c1"]
    provision(experiment, out, renew=["c0"])
    assert read_revoked(out / "server" / "engine") == ["c1"] == read_revoked(out / "authority")


def test_a_renewed_server_refuses_from_its_first_moment(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provision(experiment, tmp_path)
    revoke(tmp_path, ["c0"])
    engine, seen, rename = tmp_path / "server" / "engine", list[list[str]](), Path.rename

    def watched(self: Path, target: Path) -> Path:
        if Path(target) == engine:
            seen.append(read_revoked(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", watched)
    provision(experiment, tmp_path, renew=["server"])
    assert seen == [["c0"]] == [read_revoked(engine)]
    assert [path.name for path in (tmp_path / "server").glob("engine*")] == ["engine"]


def test_an_interrupted_start_is_finished_by_the_next_one_and_leaves_no_private_key(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = making.write_kit

    def interrupted(folder: Path, *rest: Any) -> None:
        if folder.name == "c1":
            raise KeyboardInterrupt
        write(folder, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(making, "write_kit", interrupted)
        provision(experiment, tmp_path)
    assert not list((tmp_path / "authority").rglob("*.key"))
    assert [path.name for path in provision(experiment, tmp_path)] == ["c1"]
    assert Kit(tmp_path / "c1", "client").check_certificate() > datetime.now(UTC)
    assert read_certificates(tmp_path / "server" / "engine").keys() == {"c0", "c1"}
    assert not list((tmp_path / "authority").rglob("*.key"))


def test_a_backup_of_a_kit_does_not_bring_its_old_certificate_back(experiment: Experiment, tmp_path: Path) -> None:
    provision(experiment, tmp_path)
    shutil.copytree(tmp_path / "c0", tmp_path / "backup")
    provision(experiment, tmp_path, renew=["c0"])
    after = read_certificates(tmp_path / "authority")
    shutil.rmtree(tmp_path / "c0")
    (tmp_path / "backup").rename(tmp_path / "c0")
    provision(experiment, tmp_path)
    assert read_certificates(tmp_path / "authority") == after


def test_revoke_in_another_folder_makes_nothing(experiment: Experiment, tmp_path: Path) -> None:
    file, out = tmp_path / "federation.yaml", tmp_path / "kits"
    file.write_text(experiment.to_yaml())
    for option in ("--revoke", "--renew"):
        found = CliRunner().invoke(app, ["provision", str(file), "--out", str(out), option, "c0"])
        assert found.exit_code == 1 and "is --out the folder in which they were made?" in found.output
    assert not out.exists()
    file.touch()
    found = CliRunner().invoke(app, ["provision", str(file), "--out", str(file)])
    assert found.exit_code == 1 and "--out names a folder" in found.output


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"network": {"host": ""}}, "`network.host` must be a machine's name"),
        ({"network": {"host": "fed server"}}, "`network.host` must be a machine's name"),
        ({"network": {"host": "fed..org"}}, "`network.host` must be a machine's name"),
        ({"network": {"host": "a" * 53 + ".example.org"}}, "has 65 characters, and a certificate holds at most 64"),
        ({"network": {"host": "c0"}}, "no client can be named 'c0'"),
    ],
)
def test_names_that_the_engine_does_not_take_are_said_before_anything_is_made(
    changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(KitError, match=says):
        provision(small(clients=2, **changes), tmp_path / "kits")
    assert not (tmp_path / "kits").exists()


def test_where_the_authority_ends_the_cure_is_new_kits_for_all(experiment: Experiment, tmp_path: Path) -> None:
    provision(experiment, tmp_path, days=90)
    kit = Kit(tmp_path / "c0")
    assert "--renew c0" in kit.cure()
    assert "all kits are made anew" in kit.cure(datetime.now(UTC) + timedelta(days=70))


def test_only_paths_are_carried_whatever_lies_in_this_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "builtin").write_text("private")
    plain = {"clients": [], "method": "h2tune", "anchors": "builtin", "anchor_words": None}
    assert with_public_files(plain, tmp_path / "public")["anchors"] == "builtin"
    assert not (tmp_path / "public").exists()


def test_a_file_that_was_changed_after_its_kits_were_made_is_remarked_on(tmp_path: Path) -> None:
    """Nothing else notices it: a client would train with the rank and the updates of before."""
    words, path = tmp_path / "words.txt", tmp_path / "federation.yaml"
    words.write_text("one line\nanother line\n")

    def made(*options: str, **changes: Any) -> str:
        path.write_text(small(anchors=str(words), **changes).to_yaml())
        found = CliRunner().invoke(app, ["provision", str(path), "--out", str(tmp_path / "kits"), *options])
        assert found.exit_code == 0, found.output
        return " ".join(found.output.split())

    assert "warning" not in made() and "warning" not in made()
    again = made(rank=2, training={"steps": 9, "batch_size": 4})
    assert "all kits are there already" in again
    assert "hold other settings than the file: " in again and "rank" in again and "training.steps" in again
    assert "make server, c0, c1 again with --renew server --renew c0 --renew c1, before the run begins" in again
    added = made(clients=3)  # the server must know who was added; what the others hold stays as it was
    assert "make server again with --renew server, before" in added and "than the file: clients." in added
    assert "warning" not in made("--renew", "server", clients=3)


def test_settings_of_the_method_that_were_added_or_taken_away_are_remarked_on_and_others_are_not() -> None:
    def keys(before: Any, after: Any) -> list[str]:
        return changed(*_resolved({"method": before}, {"method": after}))

    plain = {"name": "h2tune"}
    assert keys("h2tune", plain | {"aggregate": "median"}) == ["method.aggregate"]
    assert keys(plain | {"aggregate": "median"}, "h2tune") == ["method.aggregate"]
    assert keys("h2tune", plain) == keys(plain | {"aggregate": "mean"}, "h2tune") == []  # it comes to the same
    assert keys("h2tune", "fedit") == keys(None, "fedit") == ["method.name"]
    assert keys("no.such:METHOD", {"name": "no.such:METHOD", "pace": 1}) == ["method.pace"]


def test_a_vertical_config_that_was_changed_after_its_kits_were_made_is_remarked_on(tmp_path: Path) -> None:
    settings = config(network={"port": free_port()})
    provision_vertical(settings, tmp_path)
    assert outdated_parties(settings, tmp_path) == ""
    changed = settings.model_copy(update={"rounds": settings.rounds + 1})
    assert "than the file: rounds. " in outdated_parties(changed, tmp_path)
    assert "--renew server --renew clinic --renew shop" in outdated_parties(changed, tmp_path)
