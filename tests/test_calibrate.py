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

from kosbert_ray.encoder import Encoder
from kosbert_ray.encoder.options import EncoderOptions

SENTENCES = everyday()
SETTINGS = ["--model", TINY, "--keep", "id,text", "--set", "encoder.precision=fp32", "--set", "slice.max_rows=100"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibrate") / "in"
    folder.mkdir()
    pq.write_table(pa.table({"id": range(300), "text": SENTENCES[:300]}), folder / "0.parquet")
    return folder


@pytest.fixture(scope="module", params=["int8", "ubinary"])
def output(cli, texts: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    target = tmp_path_factory.mktemp(request.param) / request.param
    cli("embed", texts, target, *SETTINGS, "--set", f"output.dtype={request.param}")
    return target


def test_the_numbers_are_those_of_sentence_transformers(output: Path) -> None:
    table = ds.dataset(output, format="parquet").to_table()
    said = json.loads(pq.read_metadata(next(output.glob("*.parquet"))).metadata[b"kosbert_ray.vectors"])
    vectors = Encoder.load(TINY, EncoderOptions(precision="fp32")).encode(table["text"].to_pylist())
    ranges = np.array(said["ranges"], np.float32) if "ranges" in said else None
    theirs = quantize_embeddings(vectors, precision=output.name, ranges=ranges)
    ours = np.array(table["embedding"].to_pylist(), theirs.dtype)
    # Batches of other company round otherwise in the last bit, which can be a step of int8 and a sign of ubinary.
    assert (ours != theirs).mean() < 1e-3
    if ranges is not None:  # measured on a sample of these texts: few values lie beyond
        assert ((vectors < ranges[0]) | (vectors > ranges[1])).mean() < 0.02


def test_search_cluster_and_verify_read_it(cli, output: Path) -> None:
    done = cli("search", output, SENTENCES[7], "-k", "1", "--format", "jsonl", "--set", "encoder.precision=fp32")
    assert json.loads(done.stdout)["text"] == SENTENCES[7]
    assert "done: 300 rows in 5 clusters" in cli("cluster", output, "--clusters", "5").stdout
    assert "50 rows embedded again" in cli("verify", output, "--sample", "50", "--set", "encoder.precision=fp32").stdout


def test_a_grown_input_goes_on_with_the_ranges_of_before(cli, texts: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    cli("embed", texts, target, *SETTINGS, "--set", "output.dtype=int8")
    job = json.loads((target / "_kosbert" / "job.json").read_text())
    first = {path.name: path.read_bytes() for path in target.glob("*.parquet")}
    pq.write_table(pa.table({"id": range(100), "text": SENTENCES[300:400]}), tmp_path / "1.parquet")
    (texts / "1.parquet").symlink_to(tmp_path / "1.parquet")
    try:
        cli("embed", texts, target, *SETTINGS, "--set", "output.dtype=int8")
    finally:
        (texts / "1.parquet").unlink()
    assert json.loads((target / "_kosbert" / "job.json").read_text()) == job
    assert {name: (target / name).read_bytes() for name in first} == first
    assert len(list(target.glob("*.parquet"))) == 4
    assert "verified" in cli("verify", target).stdout


def test_an_input_without_a_text_cannot_be_measured(cli, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["", None]}), tmp_path / "in.parquet")
    done = cli("embed", tmp_path / "in.parquet", tmp_path / "out", "--model", TINY, "--set", "output.dtype=int8", code=1)
    line = "measures its steps on a sample of the texts, and there is none in the first slices of 1 files"
    assert done.stderr.splitlines()[-1].endswith(line)
    assert not (tmp_path / "out" / "_kosbert" / "job.json").exists()
