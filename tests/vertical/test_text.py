"""A text column through a small frozen encoder that stays at its party."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
from vertical.recorder import recorded
from vertical.tables import PARTIES, config, planted

from h2tune.config import ConfigError
from h2tune.vertical.evaluation import views
from h2tune.vertical.federation import fit, load_parties
from h2tune.vertical.table import TableError
from h2tune.vertical.text import embed_texts

WORDS = ["[PAD]", "[UNK]", "red", "green", "blue", "grey", "a", "note"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random encoder of one block."""
    folder = tmp_path_factory.mktemp("encoder")
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=32, **shape)).save_pretrained(folder)
    return folder


def test_an_embedding_does_not_depend_on_the_texts_beside_it(encoder: Path):
    together = embed_texts(["a red note", "blue"], str(encoder), 16)
    assert torch.allclose(together[1], embed_texts(["blue"], str(encoder), 16)[0], atol=1e-5)
    assert together.square().mean(1) == pytest.approx([1.0, 1.0], abs=1e-4)


def test_a_party_with_notes_takes_part_and_no_word_leaves_it(encoder: Path):
    frames = planted()
    colours = dict(zip((f"class-{c}" for c in range(4)), ("red", "green", "blue", "grey"), strict=True))
    truth = dict(zip(frames["bank"][0]["id"], frames["bank"][0]["kind"], strict=True))
    table = frames["shop"][0][["id"]].copy()
    table["note"] = [f"a {colours.get(truth.get(i, ''), 'note')} note" for i in table["id"]]
    frames["shop"] = (table, None)
    note = {"kind": "text", "model": str(encoder), "column": "note"}
    parties = [{"name": n, "train": "-", "test": "-"} | ({"encoder": note} if n == "shop" else {}) for n in PARTIES]
    settings = config(rounds=4, parties=parties)
    federation, recorders = recorded(settings, frames)
    active = federation.run()
    assert recorders["shop"].party.data.width == 16
    present = active.meeting.present
    z = views(active, "train")
    scores = active.top.scores(z, present & torch.tensor([False, False, True]))
    assert float((scores.argmax(1) == active.labels.y).float().mean()) > 0.4
    assert not any(b"note" in data for data in recorders["shop"].up)


def test_mistakes_with_text(encoder: Path):
    def settings(**encoder_keys):
        keys = {"kind": "text", "model": str(encoder), "column": "note"} | encoder_keys
        return config(
            parties=[{"name": n, "train": "-"} | ({"encoder": keys} if n == "shop" else {}) for n in PARTIES]
        )

    with pytest.raises(TableError, match="shop: there is no column 'note'"):
        load_parties(settings(), planted())
    with pytest.raises(ConfigError, match="a text encoder needs `model` and `column`"):
        settings(model=None)
    frames = planted()
    frames["shop"] = (frames["shop"][0].assign(note="red"), None)
    with pytest.raises(TableError, match="The text encoder /nowhere"):
        fit(settings(model="/nowhere"), load_parties(settings(model="/nowhere"), frames))
