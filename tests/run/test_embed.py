"""The whole job, run as a user runs it, on disk: every row once, killed and resumed, grown and changed."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from conftest import TINY, alive, command, everyday, leftovers, shards, wait_for

from kosbert_ray import Output
from kosbert_ray.encoder.encoder import Encoder
from kosbert_ray.encoder.options import EncoderOptions

SENTENCES = everyday()
BAD = 3  # rows in the corpus below that cannot be embedded


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of each format and compression, with some bad rows."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = [{"id": number, "text": text} for number, text in enumerate(SENTENCES)]
    pq.write_table(pa.Table.from_pylist(rows[:100]), folder / "a.parquet", row_group_size=30)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows[100:200]]
    lines[10:10] = ['{"id": 1, "text": ', '{"id": 2, "text": null}']
    (folder / "b.jsonl").write_text("\n".join(lines), "utf-8")
    (folder / "sub").mkdir()
    with gzip.open(folder / "sub" / "c.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(json.dumps(row) for row in [*rows[200:300], {"id": 3, "text": " "}]))
    with pa.CompressedOutputStream(str(folder / "d.jsonl.zst"), "zstd") as out:
        out.write("\n".join(json.dumps(row) for row in rows[300:400]).encode())
    (folder / "e.jsonl").write_text("\n".join(json.dumps(row) for row in rows[400:] + rows[:50]), "utf-8")
    (folder / "empty.jsonl").touch()
    (folder / "blank.jsonl").write_text("\n\n  \n")
    return folder


ARGUMENTS = ["--model", TINY, "--keep", "id,text", "--set", "slice.max_rows=40", "--set", "encoder.precision=fp32"]


@pytest.fixture(scope="module")
def output(cli, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus, embedded."""
    folder = tmp_path_factory.mktemp("out") / "vectors"
    done = cli("embed", corpus, folder, *ARGUMENTS, "--set", "max_rejected=0.01")
    assert f"{BAD} rows rejected" in done.stdout
    return folder


def test_every_row_is_embedded_exactly_once_and_carries_its_columns(output: Path) -> None:
    table = ds.dataset(output, format="parquet").to_table()
    expected = [*range(len(SENTENCES)), *range(50)]
    assert sorted(table["id"].to_pylist()) == sorted(expected)
    assert all(
        SENTENCES[number] == text for number, text in zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True)
    )


def test_the_vectors_are_the_encoders_own(output: Path) -> None:
    encoder = Encoder.load(TINY, EncoderOptions(precision="fp32", device="cpu"))
    expected = encoder.encode(SENTENCES)
    table = ds.dataset(output, format="parquet").to_table()
    vectors = np.array(table["embedding"].to_pylist(), np.float32)
    assert vectors.shape == (len(SENTENCES) + 50, encoder.spec.dimension)
    np.testing.assert_allclose(vectors, expected[table["id"].to_numpy()], atol=1e-5)


def test_rejected_rows_are_kept_with_their_address_and_reason(output: Path, corpus: Path) -> None:
    rejected = pq.read_table(output / "_kosbert" / "rejected").to_pylist()
    assert len(rejected) == BAD
    by_reason = {row["reason"].split(" ")[0]: row for row in rejected}
    assert by_reason["empty"]["file"] == "sub/c.jsonl.gz"
    assert (by_reason["empty"]["row"], by_reason["empty"]["text"]) == (100, " ")
    offset = by_reason["bad"]["byte_offset"]
    assert (corpus / "b.jsonl").read_bytes()[offset:].startswith(b'{"id": 1, "text": \n')
    assert by_reason["null"]["byte_offset"] > offset


def test_the_books_add_up(output: Path) -> None:
    success = json.loads((output / "_SUCCESS").read_text())
    manifest = pq.read_table(output / success["manifest"])
    names = set(shards(output))
    assert {name for name in manifest["shard"].to_pylist() if name} == names
    assert success["rows"] == sum(manifest["rows"].to_pylist()) == len(SENTENCES) + 50
    assert success["rejected"] == BAD
    assert success["slices"] == len(names)
    assert success["output_bytes"] == sum(len(content) for content in shards(output).values())
    assert manifest["input_bytes"].to_numpy().sum() == success["input_bytes"]
    job = json.loads((output / "_kosbert" / "job.json").read_text())
    assert job["config"]["model"]["name"] == TINY
    for name in names:
        footer = json.loads(pq.read_metadata(output / name).metadata[b"kosbert_ray"])
        assert (footer["fingerprint"], footer["shard"]) == (job["sha256"], name)
    assert leftovers(output) == []


def test_running_again_does_nothing_and_the_limit_on_rejected_rows_sets_the_exit_code(
    cli, output: Path, corpus: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    cli("embed", corpus, output, *ARGUMENTS)
    done = cli("embed", corpus, output, *ARGUMENTS, "--set", "max_rejected=0.001", code=3)
    assert "max_rejected=0.001" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()} == before


def test_another_model_is_refused_with_the_setting_to_add_and_another_cut_is_for_new_files(
    cli, output: Path, corpus: Path
) -> None:
    done = cli("embed", corpus, output, *ARGUMENTS, "--set", "model.max_seq_length=16", code=1)
    line = done.stderr.splitlines()[-1]
    assert (
        "model.max_seq_length is 128 in the output but 16 in this job; add --set model.max_seq_length=128, or choose"
        in line
    )
    assert "weights" not in line
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    cli("embed", corpus, output, *ARGUMENTS, "--set", "slice.max_rows=41")
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()} == before


def test_searching_finds_the_sentence_itself_first(cli, output: Path) -> None:
    done = cli("search", output, SENTENCES[7], "-k", "3", "--set", "encoder.precision=fp32")
    header, first, *others = done.stdout.splitlines()
    assert header.split()[:2] == ["score", "rows"]
    assert first.split("  ")[0].strip() == "1.0000"
    assert SENTENCES[7] in first
    assert sum(int(line.split()[1]) for line in (first, *others)) == 3  # one sentence is there twice


@pytest.mark.slow
def test_new_files_are_added_and_a_changed_file_replaces_its_shards(cli, tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()

    def put(name: str, texts: list[str]) -> None:
        (source / name).write_text("\n".join(json.dumps({"text": text}) for text in texts), "utf-8")

    def texts() -> list[str]:
        return sorted(ds.dataset(target, format="parquet").to_table()["text"].to_pylist())

    arguments = ["--model", TINY, "--keep", "text"]
    put("a.jsonl", SENTENCES[:20])
    put("b.jsonl", SENTENCES[20:40])
    cli("embed", source, target, *arguments)
    first = shards(target)
    put("b.jsonl", SENTENCES[100:130])
    put("c.jsonl", SENTENCES[40:50])
    done = cli("embed", source, target, *arguments)
    assert "deleted 1 shard of changed inputs" in done.stderr
    assert "40 rows in" in done.stderr, "only what is new was encoded"
    assert texts() == sorted([*SENTENCES[:20], *SENTENCES[100:130], *SENTENCES[40:50]])
    assert len(set(first) & set(shards(target))) == 1
    before = shards(target)
    put("d.jsonl", [*SENTENCES[60:70], ""])
    (target / "_kosbert" / "rejected").touch()  # so that the writer, on its worker, cannot write
    done = cli("embed", source, target, *arguments, code=1)
    assert "rejected/d.00000-00000." in done.stderr.splitlines()[-1]
    assert shards(target) == before


@pytest.mark.faults
def test_a_file_that_breaks_in_its_middle_fails_the_run_with_its_name_and_what_was_committed_stays(
    cli, tmp_path: Path
) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    lines = "\n".join(json.dumps({"text": f"{SENTENCES[number % 520]} {number}"}) for number in range(30_000))
    whole = gzip.compress(lines.encode())
    (source / "a.jsonl.gz").write_bytes(whole[: len(whole) * 3 // 4])
    arguments = ["--model", TINY, "--set", "slice.max_rows=5000"]
    done = cli("embed", source, target, *arguments, code=1)
    assert "a.jsonl.gz: corrupt or truncated gzip data" in done.stderr.splitlines()[-1]
    assert not (target / "_SUCCESS").exists()
    (source / "a.jsonl.gz").write_bytes(whole)
    cli("embed", source, target, *arguments)
    assert ds.dataset(target, format="parquet").count_rows() == 30_000


AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")  # they notice a dead raylet after about a minute, and do nothing


@pytest.fixture(scope="module")
def long_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough slices that a run can be killed in its middle, from files of each way of cutting."""
    folder = tmp_path_factory.mktemp("long")
    texts = [f"{SENTENCES[number % 520]} 그리고 {number}번째 이야기입니다." for number in range(24_000)]
    pq.write_table(pa.table({"text": texts[:8000]}), folder / "a.parquet", row_group_size=3000)
    (folder / "b.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts[8000:16000]), "utf-8")
    with gzip.open(folder / "c.txt.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(texts[16000:]))
    return folder


LONG = ["--model", TINY, "--keep", "text", "--set", "slice.max_rows=300", "--set", "slice.max_bytes=200KiB"]


@pytest.mark.parametrize(
    "sent",
    [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.faults)],
    ids=lambda sent: sent.name,
)
def test_a_killed_run_resumes_without_repeating_a_committed_slice_and_ends_in_the_same_bytes(
    cli, long_corpus: Path, undisturbed: dict[str, bytes], tmp_path: Path, sent: signal.Signals
) -> None:
    target = tmp_path / "out"
    process = subprocess.Popen(command("embed", long_corpus, target, *LONG), stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: len(list(target.glob("*.parquet"))) >= 8, 120, "no shard was committed")
        family = psutil.Process(process.pid).children(recursive=True)
        workers = [child for child in family if not " ".join(child.cmdline()).startswith(AGENTS)]
        process.send_signal(sent)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    if sent == signal.SIGTERM:
        assert process.returncode == 130
        assert "run the same command again to resume" in said
    wait_for(lambda: not alive(workers), 60, "its Ray lives on")
    for agent in alive(family):
        agent.kill()
    committed = {path.name: path.stat().st_mtime_ns for path in target.glob("*.parquet")}
    assert 8 <= len(committed) < len(undisturbed)
    (target / "_kosbert" / "tmp").mkdir(exist_ok=True)
    (target / "_kosbert" / "tmp" / f"{os.uname().nodename}~{process.pid}~1~half.parquet").write_bytes(b"half")

    done = cli("embed", long_corpus, target, *LONG)
    assert f"{len(committed):,} slices are committed already" in done.stderr
    assert shards(target) == undisturbed
    assert {name: (target / name).stat().st_mtime_ns for name in committed} == committed, "none was written again"
    assert leftovers(target) == []


@pytest.fixture(scope="module")
def undisturbed(cli, long_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    target = tmp_path_factory.mktemp("undisturbed") / "out"
    cli("embed", long_corpus, target, *LONG)
    assert sorted(ds.dataset(target, format="parquet").to_table()["text"].to_pylist())[:1] != []
    return shards(target)


def test_the_undisturbed_run_is_complete(undisturbed: dict[str, bytes]) -> None:
    rows = sum(pq.read_metadata(pa.BufferReader(content)).num_rows for content in undisturbed.values())
    assert rows == 24_000


# -- the size of slices ----------------------------------------------------------------------------------------------


def test_an_output_keeps_the_size_of_slices_that_its_first_run_chose(cli, tmp_path: Path) -> None:
    lines = [f"{number}번째 문장은 짧습니다." for number in range(5000)]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("\n".join(lines), "utf-8")

    def embed(output: str, *settings: str) -> tuple[int | None, list[int]]:
        cli("embed", tmp_path / "in", tmp_path / output, "--model", TINY, *settings)
        job = json.loads((tmp_path / output / "_kosbert" / "job.json").read_text("utf-8"))
        rows = sorted(receipt.rows for receipt in Output.open(tmp_path / output).receipts)
        return job["config"]["slice"]["target_bytes"], rows

    sixteenth = (tmp_path / "in" / "a.txt").stat().st_size // 16
    assert embed("out") == (sixteenth, [904, 1024, 1024, 1024, 1024])
    (tmp_path / "in" / "b.txt").write_text("\n".join(lines * 3), "utf-8")
    target, rows = embed("out")
    assert (target, sum(rows), max(rows)) == (sixteenth, 20_000, 1024)
    assert embed("said", "--set", "slice.max_rows=3000") == (None, [2000, *[3000] * 6])


@pytest.mark.timeout(60)
@pytest.mark.parametrize("executor", ["local", "ray"])
def test_a_corpus_of_a_few_bytes_is_embedded(cli, tmp_path: Path, executor: str) -> None:
    (tmp_path / "in.txt").write_text("a\nb", "utf-8")
    done = cli("embed", tmp_path / "in.txt", tmp_path / "out", "--model", TINY, "--set", f"executor={executor}")
    assert "done: 2 rows in 1 shard" in done.stdout
