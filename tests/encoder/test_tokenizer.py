"""Token ids are those of sentence-transformers, each distinct text once, every dropped token counted."""

from __future__ import annotations

import json
import pickle
import shutil
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import everyday
from models import save_model
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from zoo import ZOO, save

from kosbert_ray.encoder.tokenizer import Tokenizer, unknown_notice
from kosbert_ray.errors import ModelError
from kosbert_ray.model.options import SpecOptions
from kosbert_ray.model.spec import read_spec


def sequences(tokens) -> list[list[int]]:
    return [part.tolist() for part in np.split(tokens.ids, np.cumsum(tokens.lengths)[:-1])]


def test_ids_are_the_models_own_and_duplicates_are_tokenised_once(tiny_model: Path) -> None:
    texts = [*everyday()[:50], *everyday()[:10], "한자 漢字 😀 Latin"]
    tokens = Tokenizer.load(read_spec(tiny_model))(texts)
    expected = AutoTokenizer.from_pretrained(tiny_model)(texts)["input_ids"]
    distinct = sequences(tokens)
    assert len(distinct) == 51
    assert [distinct[row] for row in tokens.rows] == expected
    assert tokens.ids.dtype == np.uint16
    assert not tokens.dropped.any()


def test_every_dropped_token_is_counted(tiny_model: Path) -> None:
    text = " ".join(everyday()[:30])
    whole = len(AutoTokenizer.from_pretrained(tiny_model)(text, truncation=False)["input_ids"])
    for length in (5, 16, 100):
        tokens = Tokenizer.load(read_spec(tiny_model, SpecOptions(max_seq_length=length)))([text, "짧다"])
        assert tokens.lengths[0] == length
        assert tokens.dropped.tolist() == [whole - length, 0]


def test_a_tokenizer_travels_to_workers_and_takes_arrow(tiny_model: Path) -> None:
    tokenizer = Tokenizer.load(read_spec(tiny_model))
    texts = everyday()[:5]
    there = pickle.loads(pickle.dumps(tokenizer))
    assert sequences(there(pa.array(texts, pa.large_string()))) == sequences(tokenizer(texts))
    assert len(tokenizer([]).lengths) == 0


def test_a_prompts_length_leaves_out_the_closing_token(tmp_path: Path) -> None:
    folder = save_model("bert", everyday(), tmp_path)
    tokenizer = Tokenizer.load(read_spec(folder, SpecOptions(prompt="오늘은 ")))
    plain = Tokenizer.load(read_spec(folder))
    assert tokenizer.prompt_length == plain(["오늘은 "]).lengths[0] - 1
    assert plain.prompt_length == 0


def test_unknown_tokens_are_counted(tiny_model: Path) -> None:
    tokenizer = Tokenizer.load(read_spec(tiny_model))
    texts = everyday()[:50]
    composed = tokenizer(texts)
    assert tokenizer.unknown(composed) == int((composed.ids == 1).sum())
    assert unknown_notice(tokenizer.unknown(composed), len(composed.ids)) is None
    apart = tokenizer([unicodedata.normalize("NFD", text) for text in texts])
    notice = unknown_notice(tokenizer.unknown(apart), len(apart.ids))
    assert notice and "of the tokens are unknown to the model" in notice and "input.normalize=nfc" in notice
    first = np.arange(len(apart.lengths)) == 0
    assert tokenizer.unknown(apart, first) == int((apart.ids[: apart.lengths[0]] == 1).sum())


@pytest.mark.parametrize("kind", ["cased", "unigram"])
@pytest.mark.parametrize("configured", ["[UNK]", "<unk>"])
def test_unknown_tokens_are_those_of_the_vocabulary_whatever_the_config_calls_them(
    tiny_model: Path, tmp_path: Path, kind: str, configured: str
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    special = ["[UNK]", "[PAD]", "[CLS]", "[SEP]"]
    if kind == "cased":
        rust = RustTokenizer(models.WordPiece(unk_token="[UNK]"))
        rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=2000, special_tokens=special, show_progress=False)
    else:  # as in KoBERT
        rust = RustTokenizer(models.Unigram())
        rust.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=1000, special_tokens=special, unk_token="[UNK]", show_progress=False)
    rust.train_from_iterator([*everyday(), *["upper case"] * 9], trainer)
    PreTrainedTokenizerFast(tokenizer_object=rust, unk_token=configured).save_pretrained(folder)
    tokenizer = Tokenizer.load(read_spec(folder))
    foreign = ["UPPER CASE", "你好 世界", *(unicodedata.normalize("NFD", text) for text in everyday()[:5])]
    for texts, many in ((everyday()[:50], False), *(([text], True) for text in foreign)):
        tokens = tokenizer(texts)
        assert (unknown_notice(tokenizer.unknown(tokens), len(tokens.ids)) is not None) == many, texts


def test_a_tokenizer_without_a_token_of_its_own_for_unknowns_counts_none(tmp_path: Path) -> None:
    folder = save_model("roberta", everyday(), tmp_path)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"unk_token": settings["eos_token"]}))
    tokenizer = Tokenizer.load(read_spec(folder))
    assert tokenizer.unknown_id == -1 and tokenizer.unknown(tokenizer(["𓀀"])) == 0


def test_a_sentencepiece_model_names_the_package_that_reads_it(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (folder / "tokenizer.json").unlink()
    (folder / "spiece.model").write_bytes(b"\x0a\x0e\x0a")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "T5Tokenizer"}))
    with pytest.raises(ModelError, match="its tokenizer is a SentencePiece model; pip install sentencepiece protobuf"):
        Tokenizer.load(read_spec(folder))


def test_a_broken_tokenizer_is_named(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot load the tokenizer"):
        Tokenizer.load(read_spec(folder))


def test_a_tokenizer_that_composes_jamo_needs_no_notice(tiny_model: Path) -> None:
    spec = read_spec(tiny_model)
    plain = Tokenizer.load(spec)
    assert not plain.composes
    rust = json.loads(plain.state)
    rust["normalizer"] = {"type": "NFC"}
    assert replace(plain, state=json.dumps(rust)).composes


def test_tokens_are_readable(tmp_path: Path) -> None:
    """Byte-level tokenizers have letters that stand for bytes; a token that is a part of a character keeps them."""
    bytes_of = Tokenizer.load(read_spec(save(ZOO["roberta"], tmp_path / "bytes")))
    text = "비가 오는 날"
    ids = bytes_of([text]).ids.tolist()
    stored = [bytes_of.tokens[number] for number in ids]
    shown = bytes_of.readable(ids)
    assert all(one == raw or one in text or one in ("<s>", "</s>") for one, raw in zip(shown, stored, strict=True))
    assert any(one != raw for one, raw in zip(shown, stored, strict=True))
    pieces = Tokenizer.load(read_spec(save(ZOO["bert"], tmp_path / "pieces")))
    ids = pieces([text]).ids.tolist()
    assert pieces.readable([*ids, 10**6]) == [*(pieces.tokens[number] for number in ids), "1000000"]
