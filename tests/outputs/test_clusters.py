"""``kosbert-ray cluster``: what it writes stands row by row beside the shards, and tells the truth of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import TINY, everyday

SENTENCES = everyday()
SETTINGS = ["--model", TINY, "--set", "encoder.precision=fp32", "--set", "slice.max_rows=80"]


@pytest.fixture(scope="module")
def output(cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vectors of 100 sentences three times each, word for word, and of 100 once."""
    folder = tmp_path_factory.mktemp("clustering")
    texts = SENTENCES[:100] * 3 + SENTENCES[100:200]
    pq.write_table(pa.table({"id": range(len(texts)), "text": texts}), folder / "in.parquet")
    cli("embed", folder / "in.parquet", folder / "out", "--keep", "id,text", *SETTINGS)
    return folder / "out"


def rows(output: Path) -> tuple[np.ndarray, pa.Table]:
    """All vectors, and beside them what cluster wrote."""
    names = sorted(path.name for path in output.glob("*.parquet"))
    shards = pa.concat_tables([pq.read_table(output / name) for name in names])
    labels = pa.concat_tables([pq.read_table(output / "_clusters" / name) for name in names])
    assert labels["id"].to_pylist() == shards["id"].to_pylist()
    return np.stack(shards["embedding"].to_numpy()), labels


def test_k_means_labels_every_row_with_its_nearest_centre(cli, output: Path) -> None:
    (output / "_clusters").mkdir(exist_ok=True)
    (output / "_clusters" / "stale.parquet").write_bytes(b"of a shard that is gone")
    done = cli("cluster", output, "--clusters", "12")
    vectors, table = rows(output)
    labels, distances = np.array(table["cluster"]), np.array(table["distance"])
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert len({*labels.tolist()}) == 12
    # Word-for-word copies are together, and nearer to their cluster's mean than to another's.
    texts = table["text"].to_pylist()
    assert all(len({labels[i] for i, text in enumerate(texts) if text == one}) == 1 for one in SENTENCES[:20])
    means = np.stack([vectors[labels == number].mean(0) for number in range(12)])
    assert (np.argmax(vectors @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T, 1) == labels).mean() > 0.9
    assert ((distances >= -1e-5) & (distances < 1)).all()
    summary = pq.read_table(output / "_clusters" / "_clusters.parquet").to_pylist()
    assert sum(one["rows"] for one in summary) == 400
    assert all(one["terms"] and one["texts"][0] in texts for one in summary)
    assert "done: 400 rows in 12 clusters, in" in done.stdout
    assert not (output / "_clusters" / "stale.parquet").exists()
    assert "verified" in cli("verify", output).stdout


def test_a_threshold_finds_the_copies_and_leaves_the_others_alone(cli, output: Path) -> None:
    done = cli("cluster", output, "--threshold", "0.9999")
    _, table = rows(output)
    labels, texts = table["cluster"].to_pylist(), table["text"].to_pylist()
    for one in SENTENCES[:100]:
        assert len({label for label, text in zip(labels, texts, strict=True) if text == one}) == 1
    assert all(label is None for label, text in zip(labels, texts, strict=True) if text in SENTENCES[100:200])
    assert "done: 300 rows in 100 clusters" in done.stdout


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--clusters", "1"], 2, "--clusters: ask for two or more"),
        (["--threshold", "1.5"], 2, "--threshold: a cosine above 0, and at most 1"),
        (["--text", "title"], 1, "--text title: not among the kept columns (id, text)"),
    ],
)
def test_wrong_options_are_told(told, output: Path, options: list[str], code: int, message: str) -> None:
    assert told("cluster", output, *options, code=code) == message
