"""``long_text``: outputs of texts that exceed the model's maximum length."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from conftest import TINY, everyday
from models import save_fragile, save_model
from sentence_transformers import SentenceTransformer

from kosbert_ray.encoder import Encoder
from kosbert_ray.encoder.long_text import LongText
from kosbert_ray.encoder.options import EncoderOptions


@pytest.fixture(scope="module")
def articles(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """Short and long texts, one of them twice, one empty."""
    chosen = random.Random(1)
    texts = [" ".join(chosen.sample(everyday(), count)) for count in (1, 60, 2, 1, 90, 40)]
    return [{"id": index, "text": text} for index, text in enumerate([*texts, texts[1], " "])]


def write(folder: Path, rows: list[dict[str, object]]) -> Path:
    folder.mkdir(exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "a.jsonl").write_text("\n".join(lines), "utf-8")
    return folder


def read(out: Path) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(path) for path in sorted(out.glob("*.parquet"))])


SETTINGS = ["--set", "encoder.precision=fp32", "--set", "max_rejected=100"]


def test_a_row_for_each_chunk_has_the_vector_of_its_text(cli, tmp_path: Path, articles) -> None:
    source, out = write(tmp_path / "in", articles), tmp_path / "out"
    more = ["--set", "long_text=chunk", "--set", "chunk.text=true", "--set", "chunk.overlap=10"]
    done = cli("embed", source, out, "--model", TINY, "--keep", "id", *more, *SETTINGS)
    assert "4 long texts split into chunks" in done.stderr
    found = read(out)
    assert found.columns == ["id", "chunk", "chunk_start", "chunk_end", "chunk_text", "embedding"]
    texts = {row["id"]: row["text"] for row in articles}
    for row in found.iter_rows(named=True):
        assert row["chunk_text"] == texts[row["id"]][row["chunk_start"] : row["chunk_end"]]
    assert found.filter(pl.col("chunk") == 0)["id"].to_list() == [*range(7)]
    vectors = np.array(found["embedding"].to_list(), np.float32)
    expected = SentenceTransformer(TINY, device="cpu").float().encode(found["chunk_text"].to_list())
    assert np.abs(vectors - expected).max() < 1e-5

    checked = cli("verify", out, "--input", source, "--sample", "50")
    assert "1 rejected" in checked.stdout
    again = cli("embed", source, out, "--model", TINY, "--keep", "id", *more, *SETTINGS)
    assert f"done: {len(found):,} rows (7 texts) in 1 shard" in again.stdout
    hit = cli("search", out, found["chunk_text"][3], "-k", "1", "--format", "jsonl").stdout
    assert json.loads(hit)["chunk"] == found["chunk"][3]


def test_means_are_of_the_chunks_vectors_and_of_length_1_again(tmp_path: Path, articles) -> None:
    model = save_model("bert", everyday(), tmp_path, length=64, normalize=True)
    encoder = Encoder.load(str(model), EncoderOptions(precision="fp32", device="cpu"))
    texts = pa.array([row["text"] for row in articles[:7]], pa.large_string())
    mean, chunk = (LongText(policy, 40, 8, "words", True)(encoder.tokenizer, texts) for policy in ("mean", "chunk"))
    found = encoder.encode_tokens(mean.tokens).vectors
    parts = encoder.encode_tokens(chunk.tokens).vectors
    weights = chunk.tokens.row_lengths()
    for number in range(7):
        mine = chunk.chunks.source == number
        expected = np.average(parts[mine], axis=0, weights=weights[mine])
        assert np.abs(found[number] - expected / np.linalg.norm(expected)).max() < 1e-6
    assert mean.tokens.row_lengths().tolist() == np.bincount(chunk.chunks.source, weights).tolist()


@pytest.mark.slow
def test_the_mean_is_that_of_the_chunks_weighted_by_their_tokens(cli, tmp_path: Path, articles) -> None:
    model = save_model("bert", everyday(), tmp_path / "m", length=64, normalize=True)
    source = write(tmp_path / "in", articles)
    shared = ["--model", model, "--keep", "id", "--set", "chunk.overlap=8", *SETTINGS]
    done = cli("embed", source, tmp_path / "mean", *shared, "--set", "long_text=mean")
    assert "4 long texts split into chunks" in done.stderr
    cli("embed", source, tmp_path / "chunk", *shared, "--set", "long_text=chunk", "--set", "chunk.text=true")
    mean, chunk = read(tmp_path / "mean"), read(tmp_path / "chunk")
    assert mean.columns == ["id", "text", "embedding"] and mean["id"].to_list() == [*range(7)]
    tokenize = SentenceTransformer(str(model), device="cpu").tokenizer
    for number, vector in mean.select("id", "embedding").iter_rows():
        parts = chunk.filter(pl.col("id") == number)
        weights = [len(tokenize(text)["input_ids"]) for text in parts["chunk_text"]]
        expected = np.average(np.array(parts["embedding"].to_list()), axis=0, weights=weights)
        assert np.abs(np.array(vector) - expected / np.linalg.norm(expected)).max() < 1e-6
    cli("verify", tmp_path / "mean", "--input", source, "--sample", "7")


@pytest.mark.parametrize(
    ("policy", "on_bad_row"),
    [
        ("chunk", "null_vector"),
        ("late", "null_vector"),
        pytest.param("late", "reject", marks=pytest.mark.slow),
        pytest.param("chunk", "reject", marks=pytest.mark.slow),
        pytest.param("mean", "null_vector", marks=pytest.mark.slow),
        pytest.param("mean", "reject", marks=pytest.mark.slow),
    ],
)
def test_a_text_with_a_bad_chunk_is_rejected_as_a_whole(
    cli, tmp_path: Path, articles, tiny_model, policy: str, on_bad_row: str
) -> None:
    words = save_fragile(tiny_model, tmp_path / "m")
    known = [sentence for sentence in everyday() if not {*sentence} & {*words.values()}]
    rows = [dict(row, text=" ".join(known[: len(str(row["text"])) // 25 or 1])) for row in articles[:7]] + articles[7:]
    text = " ".join(known[50:100])
    bad = f"{text[:200]} {words['nan']} {text[200:]}"
    source = write(tmp_path / "in", [*rows, {"id": 8, "text": bad}, {"id": 9, "text": known[7]}])
    out = tmp_path / policy
    cli(
        *("embed", source, out, "--model", tmp_path / "m", "--keep", "id", "--set", f"long_text={policy}"),
        *("--set", f"on_bad_row={on_bad_row}", "--set", "model.allow_remote_code=true", *SETTINGS),
    )
    found = read(out)
    there = found.filter(pl.col("embedding").is_not_null())
    assert there["id"].unique().sort().to_list() == [0, 1, 2, 3, 4, 5, 6, 9]
    if on_bad_row == "null_vector":
        nulls = found.filter(pl.col("embedding").is_null())
        assert nulls["id"].to_list() == [7, 8]
        assert policy == "mean" or nulls["chunk"].to_list() == [None, None]
    rejected = pl.read_parquet(out / "_kosbert" / "rejected" / "*.parquet")
    assert rejected["text"].to_list() == [" ", bad] and "NaN" in rejected["reason"][1]
    checked = cli("verify", out, "--input", source, "--set", "model.allow_remote_code=true")
    assert "2 rejected" in checked.stdout


@pytest.mark.slow
def test_dedup_of_the_corpus_changes_no_vector(cli, tmp_path: Path, articles) -> None:
    source = write(tmp_path / "in", articles)
    (source / "b.jsonl").write_bytes((source / "a.jsonl").read_bytes())
    for policy in ("chunk", "mean", "late"):
        shared = ["--model", TINY, "--keep", "id", "--set", f"long_text={policy}", *SETTINGS]
        done = cli("embed", source, tmp_path / f"{policy}-once", *shared, "--set", "dedup=corpus")
        assert "8 long texts split into chunks\n" in done.stderr
        cli("embed", source, tmp_path / policy, *shared)
        once, each = read(tmp_path / f"{policy}-once"), read(tmp_path / policy)
        assert once.drop("embedding").equals(each.drop("embedding"))
        vectors = [np.array(frame["embedding"].to_list()) for frame in (once, each)]
        assert np.abs(vectors[0] - vectors[1]).max() < 1e-5


@pytest.mark.slow
def test_plan_counts_the_chunks(cli, tmp_path: Path, articles) -> None:
    source = write(tmp_path / "in", articles)
    shared = ["--model", TINY, "--keep", "id", "--set", "long_text=chunk", *SETTINGS]
    planned = json.loads(cli("plan", source, "--json", *shared).stdout)
    cli("embed", source, tmp_path / "out", *shared)
    status = json.loads(cli("status", tmp_path / "out", "--json").stdout)
    assert planned["output_rows"] == status["totals"]["rows"] > planned["rows"] == 7
    assert planned["tokens"] == status["totals"]["tokens"]
    assert planned["encoded_tokens"] == status["totals"]["encoded_tokens"]
    assert "; 8 rows" in cli("plan", source, *shared).stdout


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["chunk.size=20"], "chunk: long texts are cut off unless"),
        (["long_text=mean", "chunk.text=true"], "chunk.text: there is a text for each chunk only"),
        (["long_text=chunk", "chunk.size=1000"], "chunk.size: 1000 is more than the 128 tokens"),
        (["long_text=chunk", "chunk.size=10", "chunk.overlap=8"], "chunk.size: 2 of 10 tokens are special tokens"),
        (["long_text=chunk", "input.keep=[chunk]"], "long_text: chunk writes a column 'chunk'"),
    ],
)
def test_impossible_options_are_refused_before_the_run(told, tmp_path: Path, articles, settings, message: str) -> None:
    source = write(tmp_path / "in", articles)
    given = [part for setting in settings for part in ("--set", setting)]
    assert message in told("plan", source, "--model", TINY, *given, code=2)
