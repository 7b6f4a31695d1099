"""``kosbert-ray search``: one query or many, in each form, on an output as the job makes it."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import termios
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, TINY, command, everyday
from rich.cells import cell_len

from kosbert_ray.encoder import Encoder
from kosbert_ray.encoder.options import EncoderOptions

SENTENCES = everyday()
FP32 = ["--set", "encoder.precision=fp32"]


@pytest.fixture(scope="module")
def output(cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("search") / "out"
    cli("embed", "bundled:everyday", target, "--model", TINY, "--keep", "id,text", *FP32)
    return target


def test_many_queries_find_what_brute_force_finds(cli, output: Path, tmp_path: Path) -> None:
    queries = [SENTENCES[7], "비가 오는 날에는 무엇을 먹을까?", SENTENCES[400]]
    (tmp_path / "queries.txt").write_text("\ufeff" + "\r\n".join(queries) + "\n\n", "utf-8")
    done = cli("search", output, "--queries", tmp_path / "queries.txt", "-k", "20", "--format", "jsonl", *FP32)
    hits = [json.loads(line) for line in done.stdout.splitlines()]
    table = ds.dataset(output, format="parquet").to_table()
    vectors = np.stack(table["embedding"].to_numpy())
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    asked = Encoder.load(TINY, EncoderOptions(precision="fp32")).encode(queries)
    asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    for index, query in enumerate(queries):
        found = [hit["id"] for hit in hits if hit["query"] == query]
        best = np.argsort(-(asked @ vectors.T)[index], kind="stable")[:20]
        assert len({*found} & {*table["id"].take(best).to_pylist()}) == 20
    assert [hit["rank"] for hit in hits[:20]] == list(range(1, 21))
    assert hits[0]["text"] == SENTENCES[7]
    assert hits[0]["score"] == pytest.approx(1, abs=1e-5)


def test_each_query_has_a_table_of_its_own(cli, output: Path) -> None:
    query = SENTENCES[3]
    once = cli("search", output, query, "-k", "2").stdout
    twice = cli("search", output, query, query, "-k", "2").stdout
    assert twice == f"{query}\n{once}\n{query}\n{once}"


def test_a_table_has_a_row_for_each_text_on_one_line(cli, tmp_path: Path) -> None:
    lines = [{"id": number, "text": text} for number, text in enumerate(["비가\n온다.", "비가\n온다.", "눈이 온다."])]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")
    cli("embed", tmp_path / "in.jsonl", tmp_path / "out", "--model", TINY, "--keep", "text", *FP32)
    shown = cli("search", tmp_path / "out", "비가 온다.", *FP32).stdout.splitlines()
    assert [line.split(maxsplit=2)[1:] for line in shown] == [["rows", "text"], ["2", "비가⏎온다."], ["1", "눈이 온다."]]


def test_a_terminal_asks_for_queries_and_cuts_lines_at_its_width(output: Path) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    asked = command("search", output, "-k", "2", *FP32)
    run = subprocess.Popen(asked, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, cwd=ROOT, env=env)
    os.close(theirs)
    shown = ""
    for answer in (f"{SENTENCES[7]}\n".encode(), b"\n", b"\xff\xfe\n", b"\x04"):
        while not shown.endswith("query> "):
            shown += os.read(ours, 4096).decode("utf-8", "ignore")
        os.write(ours, answer)
        shown += "\n"
    assert run.wait(60) == 0
    assert run.stderr and b"is not UTF-8 text" in run.stderr.read()
    os.close(ours)
    lines = [line.strip() for line in shown.splitlines()]
    assert any(line.startswith("score  id") for line in lines)
    (hit,) = [line for line in lines if line.startswith("1.0000")]
    assert hit.endswith("…") and cell_len(hit) <= 40


@pytest.mark.slow
def test_parquet_and_tables_say_the_same(cli, output: Path, tmp_path: Path) -> None:
    target = tmp_path / "hits.parquet"
    cli("search", output, SENTENCES[3], SENTENCES[4], "-k", "2", "--format", "parquet", "--to", target, *FP32)
    hits = pq.read_table(target).to_pylist()
    assert [hit["text"] for hit in hits if hit["rank"] == 1] == SENTENCES[3:5]
    shown = cli("search", output, SENTENCES[3], SENTENCES[4], "-k", "2", *FP32).stdout.splitlines()
    assert shown[0] == SENTENCES[3] and shown[5] == SENTENCES[4]
    assert shown[1].split() == ["score", "id", "text"]
    assert [line.split()[0] for line in (shown[2], shown[3])] == [f"{hit['score']:.4f}" for hit in hits[:2]]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ([], 2, "QUERY: give a text to look for, or --queries FILE"),
        (["--queries", "/no/file"], 1, "/no/file: No such file or directory"),
        (["뭐", "-k", "0"], 2, "--top-k: ask for at least one row"),
        (["뭐", "--format", "parquet"], 2, "-o: name the file to write the Parquet to"),
        (["뭐", " "], 2, "QUERY: is empty; give a text to look for"),
        (["뭐", "-o", "/no/folder/x"], 2, "-o /no/folder/x: No such file or directory"),
    ],
)
def test_wrong_options_are_told(told, output: Path, options: list[str], code: int, message: str) -> None:
    assert told("search", output, *options, code=code) == message
