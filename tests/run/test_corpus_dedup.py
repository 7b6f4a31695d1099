"""``dedup: corpus``: a text that stands in several slices is embedded once, and each of its rows has its vector."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from conftest import TINY, command, everyday, wait_for
from hypothesis import given
from hypothesis import strategies as st

from kosbert_ray.corpus.row_table import TEXT
from kosbert_ray.encoder.encoder import Encoder
from kosbert_ray.encoder.options import EncoderOptions
from kosbert_ray.run.corpus_dedup import FRAGMENTS_FILE, TEXTS, write_shared
from kosbert_ray.run.shared_vectors import SharedTexts, hashes_of
from kosbert_ray.storage import Storage

SENTENCES = everyday()
SETTINGS = ["--model", TINY, "--keep", "text", "--set", "encoder.precision=fp32", "--set", "slice.max_rows=100"]


def fill(folder: Path) -> list[str]:
    """Three files with a third of their texts in common; gives all texts."""
    folder.mkdir()
    common = SENTENCES[:50]
    everything = []
    for number in range(3):
        texts = [*SENTENCES[100 + 100 * number : 200 + 100 * number], *common]
        everything += texts
        rows = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
        (folder / f"{number}.jsonl").write_text("\n".join([*rows, '{"text": null}']), "utf-8")
    return everything


def read(out: Path) -> tuple[list[str], np.ndarray]:
    table = ds.dataset(out, format="parquet").to_table()
    return table["text"].to_pylist(), np.array(table["embedding"].to_pylist(), np.float32)


def encoded_tokens(out: Path) -> int:
    manifest = json.loads((out / "_SUCCESS").read_text())["manifest"]
    return sum(pq.read_table(out / manifest)["encoded_tokens"].to_pylist())


def test_each_row_has_the_vector_of_its_text_and_common_texts_are_encoded_once(cli, tmp_path: Path) -> None:
    everything = fill(tmp_path / "in")
    done = cli("embed", tmp_path / "in", tmp_path / "out", *SETTINGS, "--set", "dedup=corpus")
    assert "dedup: 50 texts occur in several slices, 150 times in total" in done.stderr
    texts, vectors = read(tmp_path / "out")
    assert sorted(texts) == sorted(everything)
    encoder = Encoder.load(TINY, EncoderOptions(precision="fp32", device="cpu"))
    assert np.abs(vectors - encoder.encode(texts)).max() < 1e-4
    # The 300 texts that stand in one slice only; the others went through the model in the dedup's own job.
    alone = encoder.tokenizer(SENTENCES[100:400])
    assert encoded_tokens(tmp_path / "out") == alone.lengths.sum()
    success = json.loads((tmp_path / "out" / "_SUCCESS").read_text())
    assert (success["rows"], success["rejected"]) == (450, 3)
    assert not (tmp_path / "out" / "_kosbert" / "dedup").exists()
    assert not list(Path(tempfile.gettempdir()).glob("kosbert-ray-known-*"))


@pytest.mark.slow
def test_a_killed_run_goes_on_without_looking_and_embedding_again(cli, tmp_path: Path) -> None:
    everything = fill(tmp_path / "in")
    out = tmp_path / "out"
    arguments = ["embed", tmp_path / "in", out, *SETTINGS, "--set", "dedup=corpus", "--set", "slice.max_rows=10"]
    process = subprocess.Popen(command(*arguments), stderr=subprocess.DEVNULL, env=os.environ)
    try:
        wait_for(lambda: list(out.glob("*.parquet")), 120, "no shard was committed")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (out / FRAGMENTS_FILE).exists()
    assert list((out / TEXTS).glob("*.parquet"))
    done = cli(*arguments)
    assert "dedup: looking" not in done.stderr
    assert "dedup/texts: 1 file" in done.stderr
    texts, vectors = read(out)
    assert sorted(texts) == sorted(everything)
    by_text = dict(zip(texts, vectors, strict=True))
    assert all((by_text[text] == vector).all() for text, vector in zip(texts, vectors, strict=True))
    assert not (out / "_kosbert" / "dedup").exists()


@pytest.mark.slow
def test_in_an_object_store_nothing_of_it_is_left(cli, s3, tmp_path: Path) -> None:
    everything = fill(tmp_path / "in")
    files = s3.filesystem()
    files.mkdir("dedup")
    files.put(str(tmp_path / "in"), "dedup/in", recursive=True)
    cli("embed", "s3://dedup/in", "s3://dedup/out", *SETTINGS, "--set", "dedup=corpus", env=s3.env)
    assert ds.dataset("dedup/out", format="parquet", filesystem=files).count_rows() == len(everything)
    assert not [path for path in files.find("dedup/out") if "/_kosbert/dedup" in path]


@given(st.lists(st.text(max_size=4), unique=True), st.lists(st.text(max_size=4)))
def test_known_texts_are_found_and_no_other(known: list[str], asked: list[str]) -> None:
    texts = SharedTexts.of(hashes_of(pa.array(known, pa.large_string())))
    found = texts.find(pa.array([*asked, *known], pa.large_string())).tolist()
    assert found == [known.index(text) if text in known else -1 for text in [*asked, *known]]


def test_a_partitions_texts_that_stand_twice_are_written_and_what_they_spare_is_counted(tmp_path: Path) -> None:
    texts = pa.array(["가", "나나", "가", "다", "나나", "가"], pa.large_string())
    table = pa.table({"partition": pa.array([7] * 6, pa.int32()), "hash": hashes_of(texts), TEXT: texts})
    (sums,) = write_shared(table, Storage(str(tmp_path))).to_pylist()
    written = pq.read_table(tmp_path / TEXTS / "00007.parquet")
    assert sorted(written[TEXT].to_pylist()) == ["가", "나나"]
    assert written["hash"].to_pylist() == sorted(hashes_of(written[TEXT].combine_chunks()).to_pylist())
    assert sums == {"shared": 2, "times": 5, "spared": 2 * 3 + 6, "bytes": 3 * 3 + 2 * 6 + 3}
    write_shared(table.slice(3, 2), Storage(str(tmp_path / "none")))
    assert not (tmp_path / "none").exists()
