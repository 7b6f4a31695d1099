"""A file that planning cannot use fails by name at the run's end, wherever it stands; all others are committed."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import TINY, everyday

from kosbert_ray.cli import main
from kosbert_ray.corpus.files import InputFile
from kosbert_ray.corpus.listing import Corpus, FailedFile
from kosbert_ray.errors import UsageError
from kosbert_ray.job import require_apart
from kosbert_ray.run.finalize import leftover
from kosbert_ray.shards.ledger import Committed
from kosbert_ray.shards.receipt import Receipt
from kosbert_ray.storage import Storage


def test_the_others_are_committed_and_the_run_fails_with_the_first_of_them(cli, tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    (source / "a.parquet").write_bytes(b"PAR1 cut short")
    pq.write_table(pa.table({"text": everyday()[:9], "id": pa.array(range(9), pa.int32())}), source / "b.parquet")
    (source / "c.jsonl").write_text("\n".join(json.dumps({"text": text, "id": 2**40}) for text in everyday()[9:12]))
    (source / "d.csv").write_text("id,body\n1,x\n")
    (source / "e.docx").write_bytes(b"x")
    arguments = ["embed", source, target, "--model", TINY, "--keep", "id"]
    planned = cli(*arguments, "--dry-run")
    assert "failed: " in planned.stdout and "a.parquet: broken Parquet" in planned.stdout
    done = cli(*arguments, code=1)
    assert f"{source}/a.parquet: broken Parquet" in done.stderr.splitlines()[-1]
    assert "(2 files failed, all others are committed)" in done.stderr.splitlines()[-1]
    assert "d.csv: no column 'text'; it has 'id', 'body'" in done.stderr
    assert "skipped 1 file with an unsupported extension (1 .docx: e.docx)" in done.stderr
    assert not (target / "_SUCCESS").exists()
    shards = [pq.read_table(path) for path in sorted(target.glob("*.parquet"))]
    assert sum(len(shard) for shard in shards) == 12
    assert {shard.schema.field("id").type for shard in shards} == {pa.int64()}
    for name in ("a.parquet", "d.csv"):
        (source / name).unlink()
    assert "done: 12 rows in 2 shards" in cli(*arguments).stdout
    assert (target / "_SUCCESS").exists()


def receipt(file: str) -> Receipt:
    values = dict.fromkeys(("version", "embedding_xxh128", "precision", "attention", "device"), "")
    numbers = dict.fromkeys(
        ("fragment_index", "slice_index", "rows", "rejected", "distinct", "tokens", "encoded_tokens", "truncated"), 0
    )
    more = {"dropped_tokens": 0, "input_bytes": 0, "output_bytes": 0, "last": True}
    return Receipt(shard=f"{file}.parquet", file=file, fragment=file, **values, **numbers, **more)


def test_what_a_file_gave_before_it_failed_is_not_taken_for_removed(tmp_path: Path) -> None:
    committed = Committed()
    for name in ("a.txt", "b/c.txt", "gone.txt"):
        committed.add(receipt(name))
    failed = (FailedFile("a.txt", "broken"), FailedFile("b", "cannot be listed"))
    corpus = Corpus(Storage(str(tmp_path)), (InputFile("d.txt", 1, "v", "text"),), failed=failed)
    left = leftover(committed, corpus, [], delete_removed=True)
    assert [item.file for item in left.delete] == ["gone.txt"]


@pytest.mark.parametrize(
    ("files", "output", "whole"),
    [
        (["a.txt"], "in/out", True),
        (["a.txt"], "link/out", True),
        (["a.txt"], "in", True),
        (["sub/a.txt"], "in/sub", False),
        (["sub/a.txt"], "sub", False),
        (["linked/a.txt"], "elsewhere", False),
    ],
)
def test_an_output_among_the_input_is_seen_through_links(
    tmp_path: Path, files: list[str], output: str, whole: bool
) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "link").symlink_to("in")
    (tmp_path / "sub").symlink_to("in/sub")
    listed = tuple(InputFile(name, 1, "v", "text") for name in files)
    corpus = Corpus(Storage(str(tmp_path / "in")), listed, whole=whole)
    with pytest.raises(UsageError, match=r"output\.path: "):
        require_apart(corpus, Storage(str(tmp_path / output)))
    require_apart(corpus, Storage(str(tmp_path / "apart")))
    require_apart(Corpus(corpus.storage, listed), Storage(str(tmp_path / "in" / "vectors")))


def test_a_pattern_that_the_shell_expanded_is_told_to_be_quoted(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text('{"text": "글"}')
    with pytest.raises(SystemExit):
        main(["embed", "a.jsonl", "out", "b.jsonl"])
    assert (
        "unrecognized arguments: b.jsonl (INPUT is one path; if the shell expanded a pattern, quote it"
        in capsys.readouterr().err
    )
    with pytest.raises(SystemExit):
        main(["embed", "a.jsonl", "out", "--nope"])
    assert "quote" not in capsys.readouterr().err
