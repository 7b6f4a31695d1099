"""``kosbert-ray load``: each destination holds every row of the manifest once, whatever happens."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import uuid
from pathlib import Path

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import TINY, command, everyday
from keyed_rows import write
from kills import kill_at_random
from psycopg import sql
from stores import KINDS, Store, store_of

from kosbert_ray.errors import JobFailed
from kosbert_ray.outputs.load.base import LoadOptions, Source
from kosbert_ray.outputs.load.core import load
from kosbert_ray.outputs.output import Output
from kosbert_ray.outputs.row_ids import NAMESPACE

SENTENCES = everyday()
BASE = ["--model", TINY, "--set", "slice.max_rows=20", "--prune"]


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Each destination in turn."""
    return store_of(request.param, tmp_path / "저장소", request.getfixturevalue)


def expected(out: Path) -> dict[int, tuple[str, str, list[float]]]:
    """Shard, text and vector by key, as the output has them."""
    output = Output.open(out)
    found = {}
    for shard in output.shards():
        for row in pq.read_table(out / shard).to_pylist():
            if row["embedding"] is not None:
                found[row["key"]] = (shard, row["text"], row["embedding"])
    return found


def require_same(store: Store, table: str, out: Path) -> None:
    """The table holds each row of the output once."""
    rows = store.read(table)
    truth = expected(out)
    assert sorted(row["key"] for row in rows) == sorted(truth)
    for row in rows:
        shard, text, vector = truth[row["key"]]
        assert (row["kosbert_shard"], row["text"]) == (shard, text)
        one, other = np.array(row["embedding"], np.float64), np.array(vector, np.float64)
        assert one @ other / np.linalg.norm(one) / np.linalg.norm(other) > 0.99999  # Qdrant normalizes for cosine


@pytest.fixture(scope="module")
def made(cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An input of three files, and its output; tests copy both."""
    folder = tmp_path_factory.mktemp("loads")
    write(folder / "in", "a", [*SENTENCES[:50], None, *SENTENCES[50:60], "", *SENTENCES[60:70]])
    write(folder / "in", "b", SENTENCES[70:130], 1000)
    write(folder / "in", "c", SENTENCES[130:150], 2000)
    cli("embed", folder / "in", folder / "out", *BASE, "--keep", "key", "--set", "max_rejected=0.5")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "말뭉치")
    return tmp_path / "말뭉치"


def change(cli, folder: Path) -> None:
    """A file changes, one is removed and one is new; then the next run of the output."""
    write(folder / "in", "a", ["바뀐 문장입니다.", *SENTENCES[1:40]])
    (folder / "in" / "b.jsonl").unlink()
    write(folder / "in", "d", SENTENCES[200:230], 3000)
    cli("embed", folder / "in", folder / "out", *BASE)


def test_every_row_is_there_once_and_again_after_later_runs(cli, store: Store, folder: Path) -> None:
    arguments = ["load", folder / "out", store.address, "--table", "docs_once"]
    dry = cli(*arguments, "--dry-run").stdout
    assert dry.startswith("to load: 150 rows added, 0 replaced, 0 removed")
    done = cli(*arguments)
    assert done.stdout.startswith("loaded: 150 rows added, 0 replaced, 0 removed")
    assert "2 rows left out (rejected)" in done.stdout
    assert ": 150 rows of this output" in done.stdout
    require_same(store, "docs_once", folder / "out")
    assert cli(*arguments).stdout.startswith("loaded: 0 rows added, 0 replaced, 0 removed, 0 bytes")
    change(cli, folder)
    assert cli(*arguments, "--dry-run").stdout.startswith("to load: 70 rows added, 0 replaced, 130 removed")
    assert json.loads(cli(*arguments, "--json").stdout)["rows"] == 90
    require_same(store, "docs_once", folder / "out")
    store.drop("docs_once")


@pytest.mark.parametrize("before", [1, 2])
def test_a_load_that_ends_while_it_makes_its_tables_is_repeated(
    cli, postgresql: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    store = store_of("postgresql", tmp_path, lambda _: postgresql)
    with psycopg.connect(postgresql, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS kosbert_ray_loads")
    execute, made = psycopg.Connection.execute, 0

    def lost(connection: psycopg.Connection, query: object, *arguments: object) -> object:
        nonlocal made
        text = query.as_string(connection) if isinstance(query, sql.Composable) else str(query)
        if text.startswith("CREATE TABLE"):
            made += 1
            if made > before - 1:
                raise psycopg.OperationalError("the connection is lost")
        return execute(connection, query, *arguments)

    arguments = ["load", folder / "out", store.address, "--table", "docs_tables"]
    with monkeypatch.context() as patch:
        patch.setattr(psycopg.Connection, "execute", lost)
        cli(*arguments, code=None)
    assert cli(*arguments).stdout.startswith("loaded: 150 rows added")
    require_same(store, "docs_tables", folder / "out")
    store.drop("docs_tables")


def test_ids_are_those_of_the_places_in_the_input(cli, store: Store, folder: Path) -> None:
    cli("load", folder / "out", store.address, "--table", "docs_ids")
    lines = {file: (folder / "in" / file).read_text("utf-8").splitlines() for file in ("a.jsonl", "b.jsonl", "c.jsonl")}
    place = {json.loads(line)["key"]: (file, number) for file in lines for number, line in enumerate(lines[file])}
    for row in store.read("docs_ids"):
        file, number = place[row["key"]]
        assert str(row["kosbert_id"]) == str(uuid.uuid5(NAMESPACE, f"{file}\n{number}\n0"))
    store.drop("docs_ids")


def test_ids_may_be_a_column(cli, store: Store, folder: Path) -> None:
    arguments = ["load", folder / "out", store.address, "--table", "docs_keys", "--id", "key"]
    cli(*arguments)
    require_same(store, "docs_keys", folder / "out")
    assert "kosbert_id" not in store.read("docs_keys")[0]
    change(cli, folder)
    cli(*arguments)
    require_same(store, "docs_keys", folder / "out")
    store.drop("docs_keys")


def test_two_outputs_in_a_table_do_not_touch_each_other(cli, store: Store, folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "in2", "a", SENTENCES[300:330], 5000)
    cli("embed", tmp_path / "in2", tmp_path / "out2", *BASE, "--keep", "key")
    for name in (folder / "out", tmp_path / "out2"):
        cli("load", name, store.address, "--table", "docs_two")
    change(cli, folder)
    cli("load", folder / "out", store.address, "--table", "docs_two")
    keys = sorted(row["key"] for row in store.read("docs_two"))
    assert keys == sorted([*expected(folder / "out"), *expected(tmp_path / "out2")])
    store.drop("docs_two")


@pytest.mark.parametrize("kind", KINDS)
def test_ids_that_are_null_or_occur_twice_are_refused(kind: str, request, told, cli, tmp_path: Path) -> None:
    store = store_of(kind, tmp_path / "store", request.getfixturevalue)
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": SENTENCES[:40], "name": [*map(str, range(39)), "7"]}), source)
    cli("embed", source, tmp_path / "out", *BASE, "--keep", "name")
    arguments = ["load", tmp_path / "out", store.address, "--table", "docs_bad", "--id", "name"]
    message = told(*arguments, code=1)
    assert message.startswith("--id name: '7' is in row 7 of ")
    assert " and in row 19 of " in message
    pq.write_table(pa.table({"text": SENTENCES[:40], "name": [*map(str, range(38)), None, None]}), source)
    cli("embed", source, tmp_path / "out", *BASE)
    assert "--id name: null in row 18 and row 19 of " in told(*arguments, code=1)
    assert "not among the kept columns (name, text)" in told(*arguments[:-1], "nose", code=2)
    with pytest.raises((psycopg.Error, ValueError)):  # there is no table
        store.read("docs_bad")


def test_what_does_not_fit_is_refused_before_the_first_write(cli, told, store: Store, tmp_path: Path) -> None:
    source = tmp_path / "in.parquet"
    nested = pa.array([{"a": [{"b": 1}]}] * 30) if store.kind != "lancedb" else pa.array([1] * 30)
    pq.write_table(pa.table({"text": SENTENCES[:30], "nested": nested}), source)
    outs = {name: tmp_path / name for name in ("nested", "int8", "long", "mini")}
    cli("embed", source, outs["nested"], *BASE, "--keep", "nested")
    arguments = ["--table", "docs_fit"]
    if store.kind != "lancedb":
        for option in ([], ["--dry-run"]):
            message = told("load", outs["nested"], store.address, *arguments, *option, code=2)
            assert "column 'nested' is struct<a: list<" in message
    cli("embed", source, outs["int8"], *BASE, "--set", "output.dtype=int8,float16")
    message = told("load", outs["int8"], store.address, *arguments, code=2)
    assert "column 'embedding' holds int8 codes with a range for each dimension" in message
    assert "load --column embedding_float16" in message
    cli("load", outs["int8"], store.address, "--table", "docs_half", "--column", "embedding_float16")
    cli("embed", source, outs["long"], *BASE, "--set", "long_text=chunk")
    cli("load", outs["long"], store.address, *arguments)
    # Of another model, and of another schema.
    cli("embed", source, outs["mini"], "--set", "long_text=chunk", "--model", TINY, "--set", "model.prompt=query")
    assert "holds vectors of another model" in told("load", outs["mini"], store.address, *arguments, code=1)
    if store.kind != "qdrant":  # whose payloads have no schema
        message = told("load", outs["int8"], store.address, *arguments, "--column", "embedding_float16", code=1)
        assert "choose another with --table" in message
    store.drop("docs_fit")
    store.drop("docs_half")


def test_a_destination_that_was_emptied_or_changed_is_brought_up_to_date(cli, store: Store, folder: Path) -> None:
    arguments = ["load", folder / "out", store.address, "--table", "docs_empty"]
    cli(*arguments)
    store.drop("docs_empty")
    assert "150 rows added" in cli(*arguments).stdout
    require_same(store, "docs_empty", folder / "out")
    shard = store.read("docs_empty")[0]["kosbert_shard"]
    if store.kind == "postgresql":
        store.execute(f"DELETE FROM docs_empty WHERE kosbert_shard = '{shard}'")
    store.delete_two_rows("docs_empty")
    assert "replaced" in cli(*arguments).stdout
    require_same(store, "docs_empty", folder / "out")
    store.drop("docs_empty")


def test_only_one_load_of_an_output_runs_at_once(cli, store: Store, folder: Path) -> None:
    arguments = ["load", folder / "out", store.address, "--table", "docs_both"]
    processes = [
        subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    ends = [process.communicate()[1] for process in processes]
    assert not any("Traceback" in end for end in ends), ends
    assert 0 in [process.returncode for process in processes], ends
    cli(*arguments)
    require_same(store, "docs_both", folder / "out")
    store.drop("docs_both")


@pytest.mark.slow  # test_load_kinds kills a load into each database
@pytest.mark.parametrize("kills", [1, 10])
def test_kills_lose_and_repeat_nothing(cli, store: Store, folder: Path, kills: int) -> None:
    """In a first load, and in one that replaces and deletes."""
    seed = random.Random(kills)
    arguments = ["load", folder / "out", store.address, "--table", f"docs_kills{kills}"]
    for round_ in ("first", "later"):
        if round_ == "later":
            change(cli, folder)
        kill_at_random(arguments, kills, seed, 1.3)
        cli(*arguments)
        require_same(store, f"docs_kills{kills}", folder / "out")
    store.drop(f"docs_kills{kills}")


def test_passwords_are_refused_in_addresses_and_stand_nowhere(told, folder: Path) -> None:
    for address in ("postgresql://user:hunter2@127.0.0.1/db", "qdrant://:hunter2@127.0.0.1:1"):
        message = told("load", folder / "out", address, code=2)
        assert "out of the address" in message
        assert "hunter2" not in message
    assert not any(b"hunter2" in path.read_bytes() for path in (folder / "out").rglob("*") if path.is_file())


def test_a_destination_that_is_not_there_is_named(told, folder: Path) -> None:
    assert "mysql://x: no destination; addresses begin with" in told("load", folder / "out", "mysql://x", code=2)
    message = told("load", folder / "out", "postgresql://nobody@127.0.0.1:1/db", code=1)
    assert message.startswith("postgresql://nobody@127.0.0.1:1/db, table out: cannot connect")
    assert "qdrant://127.0.0.1:1, collection out" in told("load", folder / "out", "qdrant://127.0.0.1:1", code=1)


def test_postgresql_keeps_every_type(cli, postgresql: str, tmp_path: Path) -> None:
    import datetime as dt
    from decimal import Decimal

    values = {
        "b": pa.array([True, None], pa.bool_()),
        "i8": pa.array([-128, None], pa.int8()),
        "u16": pa.array([65535, None], pa.uint16()),
        "u32": pa.array([4294967295, None], pa.uint32()),
        "i64": pa.array([-(2**63), None], pa.int64()),
        "u64": pa.array([2**64 - 1, None], pa.uint64()),
        "f32": pa.array([1.5, None], pa.float32()),
        "f64": pa.array([0.1, None], pa.float64()),
        "dec": pa.array([Decimal("12.50"), None], pa.decimal128(9, 2)),
        "day": pa.array([dt.date(2026, 11, 27), None], pa.date32()),
        "at": pa.array([dt.datetime(2026, 11, 27, 1, 2, 3, 4), None], pa.timestamp("us")),
        "atz": pa.array([dt.datetime(2026, 11, 27, 1, 2, 3, 4, dt.UTC), None], pa.timestamp("us", "Asia/Seoul")),
        "raw": pa.array([b"\x00\xff", None], pa.binary()),
        "tags": pa.array([["가", "나"], None], pa.list_(pa.string())),
        "nums": pa.array([[1, 2], None], pa.list_(pa.int64())),
        "한글 열": pa.array(["따옴표 \"'", None], pa.string()),
    }
    pq.write_table(pa.table({"text": SENTENCES[:2], **values}), tmp_path / "in.parquet")
    cli("embed", tmp_path / "in.parquet", tmp_path / "out", *BASE, "--keep", ",".join(values))
    for _ in range(2):  # the second time the table is compared
        cli("load", tmp_path / "out", postgresql, "--table", "docs_types")
    with psycopg.connect(postgresql, row_factory=psycopg.rows.dict_row) as connection:
        rows = connection.execute("SELECT * FROM docs_types ORDER BY i64 NULLS LAST").fetchall()
        connection.execute("DROP TABLE docs_types")
    for name, column in values.items():
        assert [row[name] for row in rows] == column.to_pylist(), name


def test_nul_in_a_text_is_named_or_stripped(cli, told, postgresql: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [*SENTENCES[:5], "앞\0뒤"]}), tmp_path / "in.parquet")
    cli("embed", tmp_path / "in.parquet", tmp_path / "out", *BASE)
    arguments = ["load", tmp_path / "out", postgresql, "--table", "docs_nul"]
    assert "row 5: column 'text' contains NUL" in told(*arguments, code=1)
    cli(*arguments, "--strip-nul")
    with psycopg.connect(postgresql) as connection:
        assert connection.execute("SELECT count(*) FROM docs_nul WHERE text = '앞뒤'").fetchone() == (1,)
        connection.execute("DROP TABLE docs_nul")


@pytest.mark.parametrize("dtype", ["float32", "float16", "ubinary"])
def test_pgvector_searches_what_was_loaded(cli, postgresql: str, tmp_path: Path, dtype: str) -> None:
    pq.write_table(pa.table({"text": SENTENCES[:60]}), tmp_path / "in.parquet")
    cli("embed", tmp_path / "in.parquet", tmp_path / "out", *BASE, "--set", f"output.dtype={dtype}")
    cli("load", tmp_path / "out", postgresql, "--table", "docs_find")
    operator = "<~>" if dtype == "ubinary" else "<=>"
    with psycopg.connect(postgresql, autocommit=True) as connection:
        indexes = connection.execute("SELECT indexdef FROM pg_indexes WHERE tablename = 'docs_find'").fetchall()
        assert any("USING hnsw" in definition for (definition,) in indexes)
        assert any("UNIQUE" in definition for (definition,) in indexes)
        connection.execute("SET enable_seqscan = off")
        one = "(SELECT embedding FROM docs_find WHERE text = %s)"
        query = f"SELECT text FROM docs_find ORDER BY embedding {operator} {one} LIMIT 1"
        assert connection.execute(query, [SENTENCES[7]]).fetchone() == (SENTENCES[7],)
        connection.execute("DROP TABLE docs_find")


def test_dimensions_that_pgvector_does_not_index_are_told(monkeypatch, told, cli, postgresql: str, folder: Path) -> None:
    from kosbert_ray.outputs.load import postgresql as module

    monkeypatch.setattr(module, "INDEXED", {**module.INDEXED, "vector": 64})
    arguments = ["load", folder / "out", postgresql, "--table", "docs_wide"]
    message = told(*arguments, code=2)
    assert "has 128 dimensions, and pgvector indexes vector up to 64; embed with output.dtype=float32,float16" in message
    cli(*arguments, "--no-index")
    with psycopg.connect(postgresql, autocommit=True) as connection:
        connection.execute("DROP TABLE docs_wide")


def test_an_object_store_on_both_sides(cli, s3, folder: Path) -> None:
    files = s3.filesystem()
    files.mkdir("loads")
    files.put(str(folder / "out"), "loads/out", recursive=True)
    arguments = ["load", "s3://loads/out", "lancedb:s3://loads/lance", "--table", "docs"]
    for _ in range(2):
        done = cli(*arguments, env=s3.env)
    assert "0 rows added" in done.stdout
    assert ": 150 rows of this output" in done.stdout


def test_much_is_copied_by_several_processes(monkeypatch, cli, postgresql: str, folder: Path, tmp_path: Path) -> None:
    from kosbert_ray.outputs.load import postgresql as module

    monkeypatch.setattr(module, "MANY_ROWS", 1)
    cli("load", folder / "out", postgresql, "--table", "docs_much")
    store = store_of("postgresql", tmp_path, lambda _: postgresql)
    require_same(store, "docs_much", folder / "out")
    store.drop("docs_much")


@pytest.mark.parametrize(("kind", "long_text"), [*((kind, "chunk") for kind in KINDS), ("lancedb", "late")])
def test_chunks_are_rows_of_their_own(kind: str, long_text: str, request, cli, tmp_path: Path) -> None:
    store = store_of(kind, tmp_path / "store", request.getfixturevalue)
    texts = [" ".join(SENTENCES[first : first + 10]) for first in range(0, 100, 10)]
    write(tmp_path / "in", "a", [texts[0], None, *texts[1:]])
    settings = ["chunk.size=40", "chunk.overlap=0", "max_rejected=1", f"long_text={long_text}"]
    settings = [part for setting in settings for part in ("--set", setting)]
    cli("embed", tmp_path / "in", tmp_path / "out", *BASE, *settings, "--keep", "key")
    for name, options in (("uuids", []), ("keys", ["--id", "key"])):
        table = f"docs_chunks_{name}"
        cli("load", tmp_path / "out", store.address, "--table", table, *options)
        rows = store.read(table)
        chunks = [(row["key"], row["chunk"]) for row in rows]
        assert len(rows) == len({*chunks}) == Output.open(tmp_path / "out").totals.rows > len(texts)
        if not options:
            wanted = {str(uuid.uuid5(NAMESPACE, f"a.jsonl\n{key}\n{chunk}")) for key, chunk in chunks}
            assert {str(row["kosbert_id"]) for row in rows} == wanted
        store.drop(table)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_a_vector_are_left_out(kind: str, request, cli, tmp_path: Path) -> None:
    store = store_of(kind, tmp_path / "store", request.getfixturevalue)
    write(tmp_path / "in", "a", [*SENTENCES[:10], None, *SENTENCES[10:25], ""])
    settings = ["--set", "on_bad_row=null_vector", "--set", "max_rejected=5"]
    cli("embed", tmp_path / "in", tmp_path / "out", *BASE, *settings, "--keep", "key")
    done = cli("load", tmp_path / "out", store.address, "--table", "docs_null")
    assert "25 rows added" in done.stdout and "2 rows left out (rejected)" in done.stdout
    require_same(store, "docs_null", tmp_path / "out")
    for row in store.read("docs_null"):
        assert str(row["kosbert_id"]) == str(uuid.uuid5(NAMESPACE, f"a.jsonl\n{row['key']}\n0"))
    store.drop("docs_null")


# -- found by trials ---------------------------------------------------------------------------------------------------


def test_rows_of_other_outputs_are_told(cli, store: Store, folder: Path) -> None:
    cli("load", folder / "out", store.address, "--table", "docs_others")
    shutil.copytree(folder / "in", folder / "in2")
    cli("embed", folder / "in2", folder / "out2", *BASE, "--keep", "key", "--set", "max_rejected=0.5")
    found = cli("load", folder / "out2", store.address, "--table", "docs_others").stdout
    assert found.endswith(": 150 rows of this output, and 150 rows of other outputs\n")
    store.drop("docs_others")


def test_an_output_whose_rows_are_gone_empties_its_table_and_fills_it_again(cli, store: Store, folder: Path) -> None:
    arguments = ["load", folder / "out", store.address, "--table", "docs_gone"]
    cli(*arguments)
    kept = {path: path.read_bytes() for path in (folder / "in").iterdir()}
    for path in kept:
        path.write_text('{"key": 1, "text": null}\n', "utf-8")
    cli("embed", folder / "in", folder / "out", *BASE, "--set", "max_rejected=10")
    assert "150 removed" in cli(*arguments).stdout
    assert store.read("docs_gone") == []
    store.drop("docs_gone")
    cli(*arguments)  # makes an empty table, or none
    for path, content in kept.items():
        path.write_bytes(content)
    cli("embed", folder / "in", folder / "out", *BASE, "--set", "max_rejected=10")
    cli(*arguments)
    require_same(store, "docs_gone", folder / "out")
    store.drop("docs_gone")


def test_a_load_that_began_before_a_run_ended_deletes_nothing_of_it(cli, store: Store, folder: Path) -> None:
    source = Source.of(Output.open(folder / "out"), LoadOptions("docs_race"))
    assert source.schema.names == ["kosbert_id", "key", "text"]  # reads what the load is about to need
    change(cli, folder)
    cli("load", folder / "out", store.address, "--table", "docs_race")
    with pytest.raises(JobFailed, match="another run has ended meanwhile; run the same command again"):
        load(source, store.address)
    require_same(store, "docs_race", folder / "out")
    store.drop("docs_race")


def test_another_choice_of_ids_is_told(cli, told, folder: Path, tmp_path: Path) -> None:
    store = store_of("lancedb", tmp_path / "store", lambda _: None)
    cli("load", folder / "out", store.address, "--table", "docs_uuid")
    message = told("load", folder / "out", store.address, "--table", "docs_uuid", "--id", "key", code=1)
    assert "was loaded with UUIDs, and this load has others" in message


def test_tables_with_similar_and_long_names_have_indexes_of_their_own(cli, postgresql: str, folder: Path) -> None:
    names = [
        "documents_of_the_company_2023",
        "documents_of_the_company_2024",
        "a-b",
        "a_b",
        "우리회사의전체문서모음벡터테이블이천",
    ]
    for name in names:
        cli("load", folder / "out", postgresql, "--table", name)
    with psycopg.connect(postgresql, autocommit=True) as connection:
        for name in names:
            found = connection.execute("SELECT indexdef FROM pg_indexes WHERE tablename = %s", [name]).fetchall()
            assert len(found) == 3, found
            assert any("UNIQUE" in definition for (definition,) in found)
            assert any("hnsw" in definition for (definition,) in found)
            connection.execute(f'DROP TABLE "{name}"')


def test_addresses_that_name_nothing_are_refused(told, folder: Path) -> None:
    for address in ("qdrant://", "qdrant:"):
        assert "name a server or a folder" in told("load", folder / "out", address, code=2)
    message = told("load", folder / "out", "postgresql://u@127.0.0.1/db?password=hunter2", code=2)
    assert "leave the password out of the address" in message


def test_names_that_lancedb_does_not_take_are_refused(cli, told, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": SENTENCES[:30], "a.b": [1] * 30}), tmp_path / "in.parquet")
    cli("embed", tmp_path / "in.parquet", tmp_path / "out", *BASE, "--keep", "a.b")
    assert "LanceDB takes no '.' in names" in told("load", tmp_path / "out", f"lancedb:{tmp_path}/x", code=2)


def test_keep_may_be_repeated(cli, tmp_path: Path) -> None:
    write(tmp_path / "in", "a", SENTENCES[:5])
    cli("embed", tmp_path / "in", tmp_path / "out", "--model", TINY, "--keep", "key", "--keep", "text")
    assert Output.open(tmp_path / "out").columns == ("key", "text")
