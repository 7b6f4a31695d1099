"""Every kind of bad input we know, each with the line it is answered with (``pytest -s`` prints the table)."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import TINY, everyday
from models import save_fragile, save_model

from kosbert_ray.cli import main

Spoil = Callable[[Path], None]


def parquet(**columns: object) -> Spoil:
    return lambda folder: pq.write_table(pa.table(columns), folder / "in" / "a.parquet")


def file(name: str, content: bytes | str) -> Spoil:
    def write(folder: Path) -> None:
        (folder / "in" / "a.parquet").unlink()
        (folder / "in" / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return write


def also(name: str, content: bytes | str) -> Spoil:
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def job(content: object) -> Spoil:
    return also("job.yaml", content if isinstance(content, str) else yaml.safe_dump(content))


def nothing(folder: Path) -> None:
    """As it is: the fault is in the arguments."""


def model(change: Callable[[Path], None], **options: object) -> Spoil:
    def make(folder: Path) -> None:
        change(save_model("bert", everyday()[:50], folder / "m", **options).rename(folder / "model"))

    return make


def edited(name: str, **values: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | values))

    return edit


def module(kind: str) -> Callable[[Path], None]:
    def add(folder: Path) -> None:
        modules = json.loads((folder / "modules.json").read_text())
        (folder / "modules.json").write_text(json.dumps([*modules, {"idx": 9, "path": "9", "type": kind}]))

    return add


def fragile(folder: Path) -> None:
    save_fragile(save_model("bert", everyday()[:400], folder / "m"), folder / "model")


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


IN, OUT = "{folder}/in", "{folder}/out"
EMBED = ["embed", IN, OUT, "--model", TINY]
OWN = ["embed", IN, OUT, "--model", "{folder}/model"]

# what is spoiled, how, the command, and what its last line says
TABLE: list[tuple[str, Spoil, list[str], str]] = [
    ("no input", nothing, ["embed"], "input.path: missing; run"),
    ("no output", nothing, ["embed", IN], "output.path: missing; run"),
    ("input not there", lambda f: shutil.rmtree(f / "in"), EMBED, "/in: no such file or folder"),
    ("input empty", lambda f: (f / "in/a.parquet").unlink(), EMBED, "/in: the folder contains no files"),
    ("glob without a match", nothing, ["embed", IN + "/*.csv", OUT], "/in/*.csv: no file matches"),
    (
        "no input file",
        lambda f: (f / "in/a.parquet").rename(f / "in/a.xlsx"),
        EMBED,
        "no file with a supported extension (1 file: a.xlsx)",
    ),
    ("unknown scheme", nothing, ["embed", "gopher://x/y", OUT], "gopher://x/y: cannot open gopher:// addresses"),
    (
        "credentials in an address",
        nothing,
        ["embed", "s3://key:hush@bucket/x", OUT],
        "credentials do not belong in an address",
    ),
    ("not Parquet", file("a.parquet", b"PAR1 and then nothing"), EMBED, "a.parquet: broken Parquet"),
    (
        "Parquet that is an LFS pointer",
        file("a.parquet", b"version https://git-lfs.github.com/spec/v1"),
        EMBED,
        "git lfs pull",
    ),
    ("no text column", parquet(body=["가"]), EMBED, "a.parquet: no column 'text'; it has 'body' (set input.text)"),
    ("text is a number", parquet(text=[1]), EMBED, "a.parquet: column 'text' is int64, not a string"),
    ("text is a list", parquet(text=[["가"]]), EMBED, "a.parquet: column 'text' is list<element: string>, not a string"),
    ("text is a struct", parquet(text=[{"body": "x"}]), EMBED, "name one of its fields with input.text, such as text.body"),
    ("kept column missing", nothing, [*EMBED, "--keep", "nope"], "no column 'nope'; it has 'text', 'id' (set input.keep)"),
    (
        "kept column that Parquet cannot hold",
        lambda f: pq.write_table(pa.table({"text": ["가"], "id": ["x"]}), f / "in/a.parquet"),
        [*EMBED, "--keep", "id", "--set", "input.types={id: month_day_nano_interval}"],
        "input.keep: column 'id': month_day_nano_interval cannot be written to Parquet",
    ),
    (
        "type of no kept column",
        nothing,
        [*EMBED, "--set", "input.types={id: string}"],
        "types: 'id' is not among input.keep",
    ),
    (
        "unknown type",
        nothing,
        [*EMBED, "--keep", "id", "--set", "input.types={id: klingon}"],
        "'klingon' is not a column type",
    ),
    ("pandas' index", nothing, [*EMBED, "--keep", "__index_level_0__"], "is the index of a pandas DataFrame; name it"),
    ("output a file", also("out", "x"), EMBED, "is a file, but an output is a folder; if the shell expanded a pattern"),
    (
        "a Delta table",
        lambda f: (f / "in/_delta_log").mkdir() or also("in/_delta_log/0.json", "{}")(f),
        EMBED,
        "a Delta table",
    ),
    ("JSON that is no lines", file("a.json", "[\n{}\n]"), EMBED, "a.json: a JSON document (one array), not JSON lines"),
    ("Parquet in gzip", file("a.parquet.gz", b"x"), EMBED, "a.parquet.gz: a compressed parquet file"),
    (
        "kept name reserved",
        nothing,
        [*EMBED, "--keep", "__x"],
        "input.keep: '__x' starts with two underscores, which is reserved",
    ),
    ("kept twice", nothing, [*EMBED, "--keep", "id,id"], "input.keep: a column is named twice"),
    ("kept name taken", nothing, [*EMBED, "--keep", "embedding"], "output.column: 'embedding' is also among input.keep"),
    ("CSV without the column", file("a.csv", "id,body\n1,가\n"), EMBED, "a.csv: no column 'text'; it has 'id', 'body'"),
    ("CSV header broken", file("a.csv", 'id,"text\n' * 3), EMBED, "a.csv: bad CSV header"),
    ("JSONL without the column", file("a.jsonl", '{"body": "가"}\n'), EMBED, "a.jsonl: no column 'text'; it has 'body'"),
    ("gzip that is none", file("a.jsonl.gz", "not gzip"), EMBED, "a.jsonl.gz: not gzip data but plain text"),
    ("zstd that is none", file("a.jsonl.zst", "not zstd"), EMBED, "a.jsonl.zst: not zstd data but plain text"),
    (
        "unknown encoding",
        nothing,
        [*EMBED, "--set", "input.encoding=klingon"],
        "input.encoding: no such encoding 'klingon'",
    ),
    ("encoding without lines", nothing, [*EMBED, "--set", "input.encoding=utf-16"], "utf-16 cannot be split at line ends"),
    ("long delimiter", nothing, [*EMBED, "--set", "input.delimiter=ab"], "input.delimiter: string should have at most 1"),
    ("unknown format", nothing, [*EMBED, "--set", "input.format=xml"], "input.format: input should be 'parquet', 'arrow'"),
    ("output is the input", nothing, ["embed", IN, IN, "--model", TINY], "output.path: {folder}/in contains input files"),
    ("output in the input", nothing, ["embed", IN, IN + "/out", "--model", TINY], "in/out is inside the input"),
    ("output below a file", also("file", ""), ["embed", IN, "{folder}/file/out", "--model", TINY], "Not a directory"),
    ("unknown option", nothing, [*EMBED, "--set", "encoder.precison=bf16"], "did you mean encoder.precision?"),
    ("wrong choice", nothing, [*EMBED, "--set", "encoder.precision=int3"], "not 'int3'"),
    ("setting without a value", nothing, [*EMBED, "--set", "encoder"], "--set encoder: write it as section.key=value"),
    (
        "share above 1",
        nothing,
        [*EMBED, "--set", "max_rejected=1.5"],
        "max_rejected: 1.5 is neither a share from 0.0 to 1.0 nor a whole number of rows",
    ),
    ("size of no unit", nothing, [*EMBED, "--set", "slice.max_bytes=lots"], "'lots' is no size; write it like 32MiB"),
    ("job file not there", nothing, [*EMBED, "--config", "no.yaml"], "no.yaml: No such file or directory"),
    ("job file not YAML", job("a: ["), [*EMBED, "--config", "{folder}/job.yaml"], "job.yaml: not YAML (expected"),
    ("job file a list", job([1]), [*EMBED, "--config", "{folder}/job.yaml"], "a job file is a mapping of sections"),
    ("job file not text", also("job.yaml", b"\xff\xfe"), [*EMBED, "--config", "{folder}/job.yaml"], "not UTF-8 text"),
    (
        "a secret of the wrong type",
        job({"storage": {"secret_access_key": ["hush"]}}),
        [*EMBED, "--config", "{folder}/job.yaml"],
        "storage.secret_access_key: input should be a valid string, not the given value",
    ),
    (
        "a password in the endpoint",
        nothing,
        [*EMBED, "--set", "storage.endpoint_url=http://me:hush@s3"],
        "storage.endpoint_url: credentials do not belong in an address",
    ),
    ("model not there", nothing, OWN, "/model: no such model folder"),
    ("model a file", also("model", "x"), OWN, "/model: a model is a folder, and this is a file"),
    ("no model in the folder", lambda f: (f / "model").mkdir(), OWN, "/model: not a model folder"),
    (
        "no such bundled model",
        nothing,
        [*EMBED[:3], "--model", "bundled:x"],
        "bundled:x: not a bundled name; available",
    ),
    ("hub out of reach", nothing, [*EMBED[:3], "--model", "some/model"], "the hub cannot be reached"),
    ("config broken", model(lambda f: (f / "config.json").write_text("{")), OWN, "config.json: cannot be read"),
    (
        "weights missing",
        model(lambda f: (f / "model.safetensors").unlink()),
        OWN,
        "no weights in it (model.safetensors or pytorch_model.bin)",
    ),
    ("weights no pickle", model(pickled), OWN, "pytorch_model.bin: not a file of weights; save the model as"),
    ("tokenizer missing", model(lambda f: (f / "tokenizer.json").unlink()), OWN, "no tokenizer in it"),
    ("unknown module", model(module("sentence_transformers.models.CNN")), OWN, "9: module CNN is not supported"),
    (
        "module of the model's own code",
        model(module("evil.Transformer")),
        OWN,
        "module evil.Transformer is custom code, which is not",
    ),
    (
        "unknown prompt",
        model(edited("config.json"), normalize=True),
        [*OWN, "--set", "model.prompt_name=x"],
        "no prompt",
    ),
    (
        "remote code",
        fragile,
        OWN,
        "has its own Python code (auto_map); review the code, and if you trust it set model.allow_remote",
    ),
    (
        "too long",
        nothing,
        [*EMBED, "--set", "model.max_seq_length=9999"],
        "max_seq_length is 9999, but the model has 128 positions",
    ),
    ("no Ray there", nothing, [*EMBED, "--set", "ray.address=127.0.0.1:9"], "Ray at 127.0.0.1:9 cannot be reached"),
    ("search in no output", nothing, ["search", IN, "질문"], "in: not an output of kosbert-ray"),
    ("verify of no output", nothing, ["verify", IN], "in: not an output of kosbert-ray"),
    ("a sample of less than nothing", nothing, ["verify", IN, "--sample", "-1"], "--sample: a number of rows, 0 or more"),
]


@pytest.mark.parametrize(("name", "spoil", "arguments", "line"), TABLE, ids=[row[0] for row in TABLE])
def test_bad_input_is_one_line_that_says_what_to_do(
    name: str, spoil: Spoil, arguments: list[str], line: str, own_signals: None, tmp_path: Path, capsys
) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"text": ["가", "나"], "id": [1, 2]}), tmp_path / "in" / "a.parquet")
    spoil(tmp_path)
    capsys.readouterr()
    code = main([argument.replace("{folder}", str(tmp_path)) for argument in arguments])
    captured = capsys.readouterr()
    errors = [said for said in captured.err.splitlines() if "error: " in said]
    assert code in (1, 2)
    assert len(errors) == 1, captured.err
    assert line.replace("{folder}", str(tmp_path)) in errors[0]
    assert "hush" not in captured.err
    assert not list(tmp_path.glob("out/*.parquet"))
    assert captured.out == ""
    print(f"{name:32} {errors[0].replace(str(tmp_path), '…')}")


def test_there_are_at_least_forty() -> None:
    assert len({row[0] for row in TABLE}) >= 40


ROWS = [
    (b'{"text": "b", "id": ', "bad JSON (Expecting value"),
    (b"[1, 2]", "a JSON list, not an object"),
    (b'"text"', "a JSON str, not an object"),
    (b'{"id": 3}', "null text"),
    (b'{"text": null}', "null text"),
    (b'{"text": "  \\u3000 "}', "empty text"),
    (b'{"text": 5}', "column 'text' is int, not a string"),
    (b'{"text": ["a"]}', "column 'text' is list, not a string"),
    (b'{"text": "\xff\xfe"}', "invalid utf-8 at its byte 10"),
    (b'{"text": "\\ud83d \xea\xb0\x80"}', "invalid text: a lone surrogate"),
    (b"[" * 100_000, "bad JSON (maximum recursion depth"),
    (b'{"text": "a"} {"text": "b"}', "bad JSON (Extra data"),
    (b"\x00\x00\x00", "bad JSON (Expecting value"),
]
FILES = {
    "cut.jsonl.gz": (lambda content: gzip.compress(content)[:-5000], "cut.jsonl.gz: corrupt or truncated gzip data"),
    "line.jsonl": (lambda content: content + b'{"text": "' + b"x" * (65 * 2**20), "line.jsonl: a line of over 64 MiB at"),
    "quotes.csv": (lambda content: b'id,text\n1,"one\n' + b"1,x\n" * 9, "quotes.csv: a quoted value that begins near 8"),
    "header.txt.gz": (lambda content: gzip.compress(content)[:9], "header.txt.gz: corrupt or truncated gzip data"),
    "later.csv": (lambda content: b"id,body\n1,x\n", "later.csv: no column 'text'; it has 'id', 'body'"),
}


@pytest.mark.slow
def test_bad_rows_and_bad_files_are_named_and_the_others_are_embedded(cli, tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    good = [json.dumps({"text": text, "id": number}) for number, text in enumerate(everyday())]
    (source / "a.jsonl").write_bytes(b"\n".join([*(line.encode() for line in good), *(line for line, _ in ROWS)]))
    (source / "b.csv").write_text(
        "id,text\n" + "\n".join(f"{n},{text}" for n, text in enumerate(everyday()[:9])) + "\n9,하나,더", "utf-8"
    )
    long = "\n".join(json.dumps({"text": f"{line} {number}"}) for number in range(60) for line in everyday()).encode()
    for name, (spoil, _) in FILES.items():
        (source / name).write_bytes(spoil(long))
    settings = ["--model", TINY, "--set", "max_rejected=40", "--set", "slice.max_rows=20000"]
    done = cli("embed", source, target, *settings, code=1)
    failed = [line for line in done.stderr.splitlines() if "failed: " in line]
    for _, expected in FILES.values():
        assert any(expected in line for line in failed), failed
    assert (
        "(3 slices failed, all others are committed); run the same command again to retry; "
        "2 more files cannot be read at all" in done.stderr.splitlines()[-1]
    )
    rejected = pq.read_table(target / "_kosbert" / "rejected", filters=[("file", "==", "a.jsonl")])
    found = rejected.sort_by("byte_offset")["reason"].to_pylist()
    for (line, expected), reason in zip(ROWS, found, strict=True):
        assert expected in reason
        print(f"{line[:30]!r:40} {reason}")
    (reason,) = pq.read_table(target / "_kosbert" / "rejected", filters=[("file", "==", "b.csv")])["reason"].to_pylist()
    assert reason == "3 values, but 2 columns"
    for path in FILES:
        (source / path).unlink()
    assert "529 rows" in cli("embed", source, target, *settings).stdout
