"""Rows and slices that cannot be embedded, in whole runs: named with their reason, and their neighbours embedded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from conftest import TINY, everyday, leftovers
from models import BEYOND, UNKNOWN, save_fragile

from kosbert_ray.encoder.encoder import Encoder
from kosbert_ray.encoder.options import EncoderOptions

SETTINGS = ["--keep", "id", "--set", "model.allow_remote_code=true", "--set", "encoder.precision=fp32"]
SETTINGS += ["--set", "slice.max_rows=40", "--set", "encoder.actors=1"]


@pytest.fixture(scope="module")
def fragile(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("fragile") / "model"
    return folder, save_fragile(tiny_model, folder, most_tokens=400)


@pytest.fixture(scope="module")
def fine(fragile: tuple[Path, dict[str, str]]) -> list[str]:
    """Sentences that the fragile model can take."""
    return [text for text in everyday() if not any(word in text for word in fragile[1].values())]


def put(path: Path, texts: list[str | None]) -> None:
    path.parent.mkdir(exist_ok=True)
    rows = [json.dumps({"id": number, "text": text}, ensure_ascii=False) for number, text in enumerate(texts)]
    path.write_text("\n".join(rows), "utf-8")


@pytest.fixture(scope="module")
def spoiled(fragile: tuple[Path, dict[str, str]], fine: list[str]) -> tuple[list[str | None], dict[int, str]]:
    """120 texts of three slices, and what is said of the bad ones."""
    _, words = fragile
    texts: list[str | None] = [*fine[:120]]
    bad: dict[int, tuple[str | None, str]] = {
        3: (words["raises"], "the model fails on it (ValueError: this one I cannot read)"),
        17: (words["nan"], "its vector holds NaN or Inf"),
        39: (None, "null text"),
        50: (f"{UNKNOWN}와 글자", "the tokenizer fails on it"),
        51: (f"{BEYOND} 심은 데", "is beyond the model's"),
        52: (words["raises"], "the model fails on it"),
    }
    for row, (text, _) in bad.items():
        texts[row] = text
    return texts, {row: reason for row, (_, reason) in bad.items()}


def test_bad_rows_are_rejected_with_their_reason_and_text_and_their_neighbours_are_embedded(
    cli, fragile, spoiled, tiny_model: Path, tmp_path: Path
) -> None:
    texts, bad = spoiled
    put(tmp_path / "in" / "a.jsonl", texts)
    settings = [*SETTINGS, "--model", fragile[0], "--set", "max_rejected=6"]
    done = cli("embed", tmp_path / "in", tmp_path / "out", *settings)
    assert "6 rows rejected" in done.stdout
    assert "out of memory: batches of" in done.stderr, "the batches were too large, and halved"
    table = ds.dataset(tmp_path / "out", format="parquet").to_table().sort_by("id")
    good = [row for row in range(120) if row not in bad]
    assert table["id"].to_pylist() == good
    expected = Encoder.load(str(tiny_model), EncoderOptions(precision="fp32", device="cpu")).encode(
        [texts[row] for row in good]
    )
    np.testing.assert_allclose(np.array(table["embedding"].to_pylist(), np.float32), expected, atol=1e-5)
    rejected = pq.read_table(tmp_path / "out" / "_kosbert" / "rejected").sort_by("byte_offset").to_pylist()
    lines = (tmp_path / "in" / "a.jsonl").read_bytes().split(b"\n")
    for row, found in zip(bad, rejected, strict=True):
        assert found["byte_offset"] == sum(len(line) + 1 for line in lines[:row])
        assert found["text"] == texts[row]
        assert bad[row] in found["reason"]
    allowed = ["--set", "model.allow_remote_code=true", "--sample", "30"]
    assert "30 rows embedded again" in cli("verify", tmp_path / "out", "--input", tmp_path / "in", *allowed).stdout


@pytest.mark.slow
def test_null_vectors_keep_every_row_in_its_place(cli, fragile, spoiled, tmp_path: Path) -> None:
    texts, bad = spoiled
    put(tmp_path / "in" / "a.jsonl", texts)
    settings = [*SETTINGS, "--model", fragile[0], "--set", "max_rejected=0.05", "--set", "on_bad_row=null_vector"]
    cli("embed", tmp_path / "in", tmp_path / "out", *settings)
    tables = [pq.read_table(path) for path in sorted((tmp_path / "out").glob("*.parquet"))]
    rows = [row for table in tables for row in table.to_pylist()]
    assert [row["id"] for row in rows] == list(range(120))
    assert [row["id"] for row in rows if row["embedding"] is None] == list(bad)
    assert pq.read_table(tmp_path / "out" / "_kosbert" / "rejected").num_rows == len(bad)
    assert "all 120 rows of the input" in cli("verify", tmp_path / "out", "--input", tmp_path / "in").stdout


def test_on_bad_row_fail_ends_the_run_with_the_rows_address(cli, tmp_path: Path) -> None:
    put(tmp_path / "in" / "a.jsonl", [*everyday()[:50], None])
    settings = ["--set", "on_bad_row=fail", "--model", TINY]
    done = cli("embed", tmp_path / "in", tmp_path / "out", *settings, code=1)
    offset = (tmp_path / "in" / "a.jsonl").read_bytes().rfind(b"\n") + 1
    assert f"a.jsonl: byte {offset}: null text; fix the input or set on_bad_row=reject" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "limit", [pytest.param("0.01", marks=pytest.mark.slow), pytest.param("20", marks=pytest.mark.faults)]
)
def test_a_corpus_of_bad_rows_stops_the_run_early(cli, tmp_path: Path, limit: str) -> None:
    for number in range(30):
        put(tmp_path / "in" / f"{number:02}.jsonl", [*everyday()[:60], *[None] * 60])
    settings = ["--model", TINY, "--set", f"max_rejected={limit}", "--set", "encoder.actors=1"]
    done = cli("embed", tmp_path / "in", tmp_path / "out", *settings, code=3)
    last = done.stderr.splitlines()[-1]
    assert f"more than max_rejected={limit} allows even if no other is; the first of this run: " in last
    assert "null text" in last
    assert len(list((tmp_path / "out").glob("*.parquet"))) < 30
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    assert leftovers(tmp_path / "out") == []


@pytest.mark.faults
def test_a_slice_that_kills_its_encoder_fails_the_job_with_its_address_and_all_others_are_committed(
    cli, fragile, fine: list[str], tmp_path: Path
) -> None:
    model, words = fragile
    for name in "abcdefghijklmnopqrst":  # so many that some share their way
        put(tmp_path / "in" / f"{name}.jsonl", fine[:40])
    put(tmp_path / "in" / "c.jsonl", [*fine[:39], words["dies"]])
    settings = [*SETTINGS, "--model", model, "--set", "executor=ray"]
    done = cli("embed", tmp_path / "in", tmp_path / "out", *settings, code=1)
    assert (
        "in/c.jsonl, slice 0-0: killed 4 workers in stage encode (1 slice failed, all others are committed)"
        in (done.stderr.splitlines()[-1])
    )
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 19
    put(tmp_path / "in" / "c.jsonl", fine[:40])
    cli("embed", tmp_path / "in", tmp_path / "out", *settings)
    assert ds.dataset(tmp_path / "out", format="parquet").count_rows() == 800
