"""Kits, envelopes, the engine's log and what the commands say: all that needs no engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from federations import small
from hypothesis import given
from hypothesis import strategies as st
from simulated_network import kits
from typer.testing import CliRunner

from h2tune.cli.app import app
from h2tune.cli.output import status_lines
from h2tune.client import Client
from h2tune.config import ConfigError
from h2tune.deployment.join import Participant
from h2tune.deployment.kits import Kit, KitError, own_values
from h2tune.deployment.provision import with_public_files
from h2tune.participant.errors import ModelError
from h2tune.protocol.codec import Message, ProtocolError, decode, encode
from h2tune.tasks.example import TaskError
from h2tune.transport.envelope import Envelope, progress, unpack
from h2tune.transport.nvflare.engine_log import CLOSED, MOST, Sentences, Trouble, judge
from h2tune.transport.nvflare.flare import Flare


def test_status_needs_no_tensors() -> None:
    """People ask often, also on machines that are busy: PyTorch would cost them seconds."""
    code = "import sys, h2tune.cli.network, h2tune.deployment.status; print({'torch', 'peft'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


@given(st.text(max_size=20), st.binary(max_size=200))
def test_letters_come_out_as_they_went_in(number: str, body: bytes) -> None:
    envelope = Envelope("answer", {"number": number}, body)
    assert unpack(envelope.pack()) == envelope


@pytest.mark.parametrize(
    "envelope",
    [
        Envelope("answer", {"number": 3}),
        Envelope("answer", {}),
        Envelope("answer", {"number": "a", "more": "b"}),
        Envelope("hello", {"federation": "f", "process": "i", "version": "1", "protocol": 2, "busy": 1, "doing": {}}),
        Envelope("command", {}),
        Envelope("answer", {"number": "a" * 20_000}),
    ],
)
def test_letters_of_another_form_are_refused(envelope: Envelope) -> None:
    with pytest.raises(ProtocolError, match="This is no envelope"):
        unpack(envelope.pack())


def test_only_progress_as_clients_tell_it_is_believed() -> None:
    said = {"round": 1, "phase": "shared", "step": 2, "steps": 3}
    assert progress(said) == said
    for nonsense in ({}, {"x": 1}, said | {"step": "two"}, said | {"phase": "p" * 50}, said | {"more": 1}):
        assert progress(nonsense) == {}


@pytest.mark.parametrize(
    ("line", "says", "follows"),
    [
        ("OSError: [Errno 98] Address already in use", "the port is taken", Trouble.FINAL),
        ("ssl.SSLError: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed", "not of this kit's", Trouble.REFUSED),
        ("registration rejected: Client 'c2' is disabled", "has revoked this participant", Trouble.FINAL),
        ("CommError: connection CN1 authenticated as 'c0' but claimed endpoint 'c1' requires", "c0 tried to connect as c1",
         Trouble.PASSING),
        ("Cannot connect to host localhost:1 [Connection refused]", "cannot be reached; trying again", Trouble.PASSING),
        ("h2tune: c1 at 10.0.0.3 was refused: its kit", "c1 at 10.0.0.3 was refused", Trouble.PASSING),
        ("x - conn_manager - INFO - Connection [CN00001 Not Connected] is closed PID: 7", "renewed or revoked",
         Trouble.REFUSED),
    ],
)  # fmt: skip
def test_the_engines_log_in_words(line: str, says: str, follows: Trouble) -> None:
    found = judge(line)
    assert found is not None and says in found[0] and found[1] is follows
    assert judge("2026-11-21 - conn_manager - INFO - Connection [CN00013] is created") is None


def test_a_sentence_is_told_once_a_minute_and_a_client_that_is_refused_all_the_time_gives_up() -> None:
    now = [0.0]
    client, server = (Sentences(role, lambda: now[0]) for role in ("client", "server"))
    assert client.take("a", Trouble.PASSING) == (True, False) and client.take("a", Trouble.PASSING) == (False, False)
    now[0] = 61.0
    assert client.take("a", Trouble.PASSING) == (True, False)
    for seconds in (0, 20, 40):
        now[0] = 100.0 + seconds
        assert client.take("no", Trouble.REFUSED) == (seconds == 0, False)
        server.take("no", Trouble.REFUSED)
    now[0] = 150.0
    assert client.take("no", Trouble.REFUSED) == (True, True)
    assert server.take("no", Trouble.REFUSED) == (False, False)  # a server goes on for the others
    client.contact()
    assert client.take("no", Trouble.REFUSED) == (False, False)
    assert client.take("never", Trouble.FINAL) == (True, True)


def test_a_connection_that_closes_now_and_then_is_no_refusal() -> None:
    now = [0.0]
    client = Sentences("client", lambda: now[0])
    for _ in range(20):  # the server restarts again and again
        now[0] += 30.0
        assert client.take(CLOSED, Trouble.REFUSED) == (False, False)
        assert client.take("the server cannot be reached; trying again", Trouble.PASSING)[1] is False
    for _ in range(7):  # closed, and closed, and closed
        now[0] += 10.0
        told, ends = client.take(CLOSED, Trouble.REFUSED)
    assert told and ends


def test_a_folder_that_is_no_kit_and_a_kit_of_the_other_role(tmp_path: Path) -> None:
    with pytest.raises(KitError, match=r"is not a kit: kit.json is missing. `h2tune provision` makes kits"):
        Kit(tmp_path)
    made = kits(small(), tmp_path)
    with pytest.raises(KitError, match="is the kit of a server: start it with `h2tune server`"):
        Kit(made["server"].folder, "client")
    (tmp_path / "c0" / "kit.json").write_text("{}")
    with pytest.raises(KitError, match="ask the coordinator for the kit again"):
        Kit(tmp_path / "c0")


def test_a_kit_from_a_newer_version_says_update_and_an_older_one_works(tmp_path: Path) -> None:
    path = kits(small(), tmp_path)["c0"].folder / "kit.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": "0.1.0"}))
    assert Kit(path.parent, "client").experiment().clients[0].name == "c0"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 99, "version": "9.0"}))
    with pytest.raises(KitError, match=r"made by h2tune 9\.0, which is newer"):
        Kit(path.parent)


def test_what_a_client_may_set_and_what_not(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("a\n")
    own = own_values({"train": str(tmp_path / "data.csv"), "model": "zoo:llama"}, ["max_length=64", "truncate=true"])
    assert own == {
        "train": str((tmp_path / "data.csv").resolve()),
        "model": "zoo:llama",
        "max_length": 64,
        "truncate": True,
    }
    with pytest.raises(KitError, match="`task` is the same for all clients"):
        own_values({}, ["task=sst2"])
    with pytest.raises(KitError, match="--set takes KEY=VALUE"):
        own_values({}, ["truncate"])


def test_paths_of_the_command_line_are_meant_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit, here = kits(small(), tmp_path / "kits")["c0"], tmp_path / "here"
    (here / "llama").mkdir(parents=True)
    (here / "notes.csv").touch()
    monkeypatch.chdir(here)
    given = {"model": "./lama", "train": "note.csv", "test": "set?split=test"}
    own = own_values(given, ["practice=words.txt", "device=cpu"])
    assert own == {"model": str(here / "lama"), "train": str(here / "note.csv"), "test": str(here / "set?split=test"),
                   "practice": str(here / "words.txt"), "device": "cpu"}  # fmt: skip
    assert own_values({"model": "owner/name", "train": "hub:owner/rows"}, []) == {
        "model": "owner/name",
        "train": "hub:owner/rows",
    }
    with pytest.raises(TaskError, match=f"did you mean {here / 'notes.csv'}"):
        Participant(kit, {"model": "zoo:llama", "train": own["train"], "test": "demo:fill?n=9"})
    with pytest.raises(ModelError, match=f"no model folder {here / 'lama'}; did you mean {here / 'llama'}"):
        Participant(kit, {"model": own["model"], "train": "demo:fill?n=9", "test": "demo:fill?n=9"})


def test_missing_model_and_data_show_before_anything_is_connected(tmp_path: Path) -> None:
    kit = kits(small(), tmp_path)["c0"]
    with pytest.raises(ConfigError) as error:
        Participant(kit, {"model": "zoo:llama"})
    assert error.value.problems == [
        "--train is missing: it is not part of the kit",
        "--test is missing: it is not part of the kit",
    ]
    with pytest.raises(ValueError, match=r"nowhere\.jsonl"):
        Participant(
            kit, {"model": "zoo:llama", "train": str(tmp_path / "nowhere.jsonl"), "test": "demo:fill?split=test&n=8"}
        )
    with pytest.raises(ConfigError, match="unknown key"):
        Participant(kit, {"model": "zoo:llama", "trian": "x", "train": "demo:fill?n=9", "test": "demo:fill?n=9"})


def test_what_a_client_cannot_answer_is_said_without_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit = kits(small(), tmp_path)["c0"]
    own = {"model": "zoo:llama", "train": "demo:fill?split=train&n=9", "test": "demo:fill?split=test&n=8"}
    answer = Participant(kit, own).answer

    def fail(self: Client, data: bytes) -> bytes:
        raise ValueError("row 'patient 7' of /home/someone/train.tsv")

    monkeypatch.setattr(Client, "handle", fail)
    for data in (encode(Message("round", "r", 1, "c0", "h2tune")), b"rubbish"):
        message = decode(answer(data))
        assert message.kind == "failure" and message.client == "c0"
        assert "patient" not in str(message.payload.meta) and "/home" not in str(message.payload.meta)
    assert (
        "could not be answered (ValueError)"
        in decode(answer(encode(Message("round", "r", 1, "c0", "h2tune")))).payload.meta["reason"]
    )


def test_a_kit_carries_the_public_files_that_all_need(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("one sentence here\n" * 30)
    experiment = small(anchors=str(words))
    made = kits(experiment, tmp_path / "kits")
    text = (made["c0"].folder / "federation.yaml").read_text()
    assert str(tmp_path) not in text
    assert Path(made["c0"].experiment().anchors).read_text() == words.read_text()


def test_public_files_of_the_same_name_stay_apart(tmp_path: Path) -> None:
    """anchors/words.txt and domain/words.txt are two files; the same file named twice is one."""
    files = {name: tmp_path / folder / name for folder, name in (("a", "words.txt"), ("b", "Words.txt"))}
    for name, path in files.items():
        path.parent.mkdir()
        path.write_text(f"from {name}")
    one, two = (str(path) for path in files.values())
    plain = {"anchors": one, "anchor_words": two, "method": {"name": "h2tune", "codes": one},
             "clients": [{"practice": two}, {"practice": None}]}  # fmt: skip
    found = with_public_files(plain, tmp_path / "kit" / "public")
    assert (found["anchors"], found["anchor_words"]) == ("public/words-2.txt", "public/Words.txt")
    assert found["method"]["codes"] == "public/words-2.txt" and found["clients"][0]["practice"] == "public/Words.txt"
    assert (tmp_path / "kit/public/words-2.txt").read_text() == "from words.txt"
    assert (tmp_path / "kit/public/Words.txt").read_text() == "from Words.txt"
    assert len(list((tmp_path / "kit/public").iterdir())) == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["server", "nowhere"], "nowhere is not a kit"),
        (["client", "nowhere"], "nowhere is not a kit"),
        (["status", "nowhere"], "nowhere is not a kit"),
        (["provision", "nowhere.yaml"], "There is no config file"),
    ],
)
def test_the_commands_say_what_is_wrong(arguments: list[str], says: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1 and says in result.output


def test_help_teaches() -> None:
    for command in ("provision", "server", "client", "status"):
        result = CliRunner().invoke(app, [command, "--help"], env=os.environ | {"COLUMNS": "200"})
        assert result.exit_code == 0 and "kit" in result.output.lower()


def test_nothing_that_clients_write_into_its_log_ends_a_server() -> None:
    revoked, taken = judge("Client 'Address' is disabled"), judge("Address already in use")
    assert revoked and taken and revoked[1] is taken[1] is Trouble.FINAL
    assert Sentences("client").take(*revoked)[1] and not Sentences("server").take(*revoked)[1]
    server = Sentences("server")
    connected = judge(
        "2026-11-27 21:24:15,152 - conn_manager - INFO - Connection [CN00002 127.0.0.1:39089 <= 127.0.0.1:36028 SSL c0] is"
        " created: PID: 7490"
    )
    assert server.take(*taken)[1] and connected and server.take(*connected) == (False, False)
    assert not server.take(*taken)[1]


def test_no_participant_or_stranger_crowds_out_what_else_there_is_to_tell() -> None:
    """What a participant makes up does not count, and each kind of trouble has its own room."""
    server = Sentences("server", lambda: 5.0)

    def told(line: str) -> bool:
        found = judge(line)
        return found is not None and server.take(*found)[0]

    lines = [f"authenticated as 'c9' but claimed endpoint 'e{i}'" for i in range(300)]
    assert sum(map(told, lines)) == 1 and told("authenticated as 'c8' but claimed endpoint 'e1'")
    assert sum(told(f"h2tune: a connection from 2001:db8::{i:x} was refused: no") for i in range(300)) == MOST
    important = (
        "h2tune: the lists of who may take part could not be applied (OSError); trying again",
        "h2tune: c1 at 10.0.0.3 was cut off: the coordinator has revoked this participant",
        "h2tune: c1 at 10.0.0.3 was refused: its certificate was replaced",
        "Reject disabled client heartbeat: c1",
    )
    assert all(map(told, important)) and not any(map(told, important))  # once a minute


def test_settings_that_are_no_yaml_and_a_file_named_like_a_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cpu").touch()
    assert own_values({"device": "cpu"}, []) == {"device": "cpu"}
    with pytest.raises(KitError, match=r"--set columns: '\{a: b' is not a value as YAML writes it"):
        own_values({}, ["columns={a: b"])


def test_changed_data_are_noticed_again_after_they_were_accepted(tmp_path: Path) -> None:
    experiment = small()
    kit, client = kits(experiment, tmp_path)["c0"], experiment.clients[0]
    own = {"model": client.model, "train": client.train, "test": client.test, "validation": client.validation}
    begun = Participant(kit, own)
    begun._check_run(Message("join", "r" * 32, 0, "", ""))
    kept = begun.store.folder / "data.json"
    known = kept.read_bytes()
    kept.unlink()  # as the message about changed data says
    Participant(kit, own)
    assert kept.read_bytes() == known


def test_what_others_wrote_does_not_steer_the_terminal() -> None:
    doing = {"round": 1, "phase": "\x1b[2Jx", "step": 1, "steps": 2}
    assert progress(doing) == {}
    found = {"role": "server", "name": "server", "state": "running", "certificate_expired": False, "server": "h:1",
             "certificate_until": "2030-01-01", "clients": {"c0": {"status": "ok", "heard_seconds_ago": 1.0, "doing": doing}}}  # fmt: skip
    assert not any("\x1b" in line for line in status_lines(found))


def test_the_engines_settings_are_written_whole_and_only_when_they_change(tmp_path: Path) -> None:
    path = tmp_path / "local" / "resources.json"
    path.parent.mkdir()
    settings = {
        "snapshot_persistor": {"args": {"storage": {"args": {}}}},
        "components": [{"id": "job_manager", "args": {}}],
    }
    path.write_text(json.dumps(settings))
    flare = Flare.__new__(Flare)
    flare.workspace = tmp_path
    flare._keep_inside()
    written = path.stat().st_mtime_ns, path.read_bytes()
    flare._keep_inside()
    assert (path.stat().st_mtime_ns, path.read_bytes()) == written and b"/jobs" in written[1]


def test_a_key_of_the_whole_federation_cannot_be_set_at_a_client(tmp_path: Path) -> None:
    kit = kits(small(), tmp_path)["c0"]
    with pytest.raises(ConfigError, match="`rank` is a key of the whole federation and cannot be set for one client"):
        kit.experiment(own_values({}, ["ranks=3"]))
