"""int8 and ubinary outputs: what sentence-transformers makes of the same vectors; searched, verified, resumed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from conftest import TINY, everyday
from sentence_transformers.util import quantize_embeddings

from kosbert_ray.config import JobConfig
from kosbert_ray.corpus.options import InputOptions
from kosbert_ray.encoder import Encoder
from kosbert_ray.encoder.options import EncoderOptions
from kosbert_ray.errors import InputError
from kosbert_ray.job import Job
from kosbert_ray.run.int8_ranges import sample_texts
from kosbert_ray.shards.options import OutputOptions

SENTENCES = everyday()
SETTINGS = ["--model", TINY, "--keep", "id,text", "--set", "encoder.precision=fp32", "--set", "slice.max_rows=100"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibrate") / "in"
    folder.mkdir()
    pq.write_table(pa.table({"id": range(300), "text": SENTENCES[:300]}), folder / "0.parquet")
    return folder


TYPES = "int8,float32,float16,ubinary"


@pytest.fixture(scope="module")
def output(cli, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("several") / "out"
    cli("embed", texts, target, *SETTINGS, "--set", f"output.dtype={TYPES}")
    return target


def test_all_types_of_one_pass_are_those_of_sentence_transformers(output: Path) -> None:
    table = ds.dataset(output, format="parquet").to_table()
    said = json.loads(pq.read_metadata(next(output.glob("*.parquet"))).metadata[b"kosbert_ray.vectors"])
    vectors = np.array(table["embedding_float32"].to_pylist(), np.float32)
    expected = Encoder.load(TINY, EncoderOptions(precision="fp32")).encode(table["text"].to_pylist())
    assert np.abs(vectors - expected).max() < 1e-5
    assert [*said] == ["embedding", "embedding_float32", "embedding_float16", "embedding_ubinary"]
    ranges = np.array(said["embedding"]["ranges"], np.float32)
    for dtype, column in zip(TYPES.split(","), said, strict=True):
        theirs = vectors.astype(dtype) if "float" in dtype else quantize_embeddings(vectors, precision=dtype, ranges=ranges)
        assert np.array_equal(np.array(table[column].to_pylist(), theirs.dtype), theirs), dtype
    # The ranges were measured on a sample of these texts: few values lie beyond.
    assert ((vectors < ranges[0]) | (vectors > ranges[1])).mean() < 0.02


@pytest.mark.slow
def test_search_and_verify_read_it(cli, output: Path) -> None:
    done = cli("search", output, SENTENCES[7], "-k", "1", "--format", "jsonl", "--set", "encoder.precision=fp32")
    assert json.loads(done.stdout)["text"] == SENTENCES[7]
    assert "50 rows embedded again" in cli("verify", output, "--sample", "50", "--set", "encoder.precision=fp32").stdout


@pytest.mark.slow
def test_a_grown_input_goes_on_with_the_ranges_of_before(cli, output: Path, texts: Path, tmp_path: Path) -> None:
    before = (output / "_kosbert" / "job.json").read_text()
    first = {path.name: path.read_bytes() for path in output.glob("*.parquet")}
    added = texts / "1.parquet"
    pq.write_table(pa.table({"id": range(100), "text": SENTENCES[300:400]}), added)
    try:
        cli("embed", texts, output, *SETTINGS, "--set", f"output.dtype={TYPES}")
        assert (output / "_kosbert" / "job.json").read_text() == before
        assert {name: (output / name).read_bytes() for name in first} == first
        assert len(list(output.glob("*.parquet"))) == 4
    finally:
        added.unlink()


def test_an_input_without_a_text_cannot_be_measured(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["", None]}), tmp_path / "in.parquet")
    config = JobConfig(input=InputOptions(path=str(tmp_path / "in.parquet")), output=OutputOptions(dtype=("int8",)))
    job = Job.resolve(config)
    with pytest.raises(InputError, match="needs a sample of the texts for its ranges, and the first slices of 1 file"):
        sample_texts(job.reader(), job.fragments())


def test_the_sample_is_spread_and_the_same_each_time(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number:02}.txt").write_text("\n".join(f"{number} {row} " + "가" * 300 for row in range(100)))
    config = JobConfig(input=InputOptions(path=str(tmp_path)))
    job = Job.resolve(config)
    found = sample_texts(job.reader(), job.fragments())
    assert found == sample_texts(job.reader(), job.fragments())
    assert len(found) == 1024
    assert {len(text) for text in found} == {256}
    assert len({text.split()[0] for text in found}) == 16
    assert {"0 0", "39 99"} <= {" ".join(text.split()[:2]) for text in found}
