"""``kosbert-ray publish``: each table shows every row of the manifest once, whatever happens."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import TINY, command, everyday, shards
from keyed_rows import write
from kills import kill_at_random

from kosbert_ray.outputs.output import Output

SENTENCES = everyday()
BASE = ["--model", TINY, "--set", "slice.max_rows=20", "--prune", "--set", "max_rejected=5"]
FORMATS = ("iceberg", "delta")
OLD = Path(__file__).parents[1] / "outputs_0_1_0"


@pytest.fixture(scope="module", autouse=True)
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """pyiceberg's configuration, which it reads once: catalog ``lake`` in SQLite."""
    folder = tmp_path_factory.mktemp("lake")
    (folder / "창고").mkdir()
    variables = {
        "PYICEBERG_CATALOG__LAKE__URI": f"sqlite:///{folder}/catalog.db",
        "PYICEBERG_CATALOG__LAKE__WAREHOUSE": f"file://{folder}/창고",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield variables


@dataclass(frozen=True)
class Place:
    """A table of an output, and how others read and change it."""

    kind: str
    address: str
    out: Path

    def open(self) -> Any:
        """The table, as another program opens it."""
        if self.kind == "delta":
            from deltalake import DeltaTable

            return DeltaTable(self.out)
        from pyiceberg.catalog import load_catalog

        return load_catalog("lake").load_table(self.address.rpartition("/")[2])

    def rows(self) -> list[dict[str, Any]]:
        """Its rows: by pyiceberg, and of the files that deltalake names, whose own reader aborts processes that end."""
        table = self.open()
        if self.kind == "iceberg":
            return list(table.scan().to_arrow().to_pylist())
        names = [unquote(name) for name in pa.table(table.get_add_actions())["path"].to_pylist()]
        return [row for name in names for row in pq.read_table(self.out / name).to_pylist()]

    def by_polars(self) -> list[dict[str, Any]]:
        scanned = pl.scan_delta(str(self.out)) if self.kind == "delta" else pl.scan_iceberg(self.open())
        return list(scanned.collect().to_dicts())

    def drop(self) -> None:
        """As its owner drops it."""
        if self.kind == "delta":
            shutil.rmtree(self.out / "_delta_log")
            return
        from pyiceberg.catalog import load_catalog

        load_catalog("lake").drop_table(self.address.rpartition("/")[2])

    def commits(self) -> int:
        table = self.open()
        return table.version() + 1 if self.kind == "delta" else len(table.snapshots())

    def delete(self, key: int) -> None:
        """Deletes a row, which rewrites its file."""
        table = self.open()
        if self.kind == "delta":
            table.delete(f"key = {key}")
        else:
            table.delete(f"key == {key}")


def expected(out: Path) -> list[dict[str, Any]]:
    """The rows of the output's shards."""
    return [row for shard in Output.open(out).shards() for row in pq.read_table(out / shard).to_pylist()]


def ordered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: row["key"])


def require_same(place: Place) -> None:
    """The table shows each row of the output once."""
    assert ordered(place.rows()) == ordered(expected(place.out))


@pytest.fixture(scope="module")
def made(cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An input of three files, and its output; tests copy both."""
    folder = tmp_path_factory.mktemp("publish")
    write(folder / "in", "가 나", [*SENTENCES[:50], None, *SENTENCES[50:60], "", *SENTENCES[60:70]])
    write(folder / "in", "b", SENTENCES[70:130], 1000)
    write(folder / "in", "c", SENTENCES[130:150], 2000)
    cli("embed", folder / "in", folder / "out", *BASE, "--keep", "key")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "made")
    return tmp_path / "made"


@pytest.fixture(params=FORMATS)
def place(request: pytest.FixtureRequest, folder: Path) -> Place:
    """Each format in turn."""
    return place_of(request.param, folder)


def place_of(kind: str, folder: Path) -> Place:
    name = folder.parent.name.replace(".", "_").replace("[", "_").replace("]", "")
    return Place(kind, "delta" if kind == "delta" else f"iceberg://lake/검색.{name}", folder / "out")


def change(cli, folder: Path) -> str:
    """A file changes, one is removed and one is new; then the next run of the output, of which this returns the log."""
    write(folder / "in", "가 나", ["바뀐 문장입니다.", *SENTENCES[1:40]])
    (folder / "in" / "b.jsonl").unlink()
    write(folder / "in", "d", SENTENCES[200:230], 3000)
    return str(cli("embed", folder / "in", folder / "out", *BASE).stderr)


def test_every_row_is_there_once_and_again_after_later_runs(cli, place: Place, folder: Path) -> None:
    arguments = ["publish", place.out, place.address]
    dry = cli(*arguments, "--dry-run").stdout
    assert dry.startswith(f"to publish: {place.address}, new: 150 rows in 8 shards; 8 shards added, 0 removed")
    with pytest.raises(Exception, match=r"(?i)no such|does not exist|not.*found|no files"):
        place.open()
    done = cli(*arguments)
    assert done.stdout.startswith(f"published: {place.address}, ")
    assert done.stdout.endswith(": 150 rows in 8 shards; 8 shards added, 0 removed\n")
    require_same(place)
    assert "; 0 shards added, 0 removed" in cli(*arguments).stdout
    assert place.commits() == 1
    before = shards(place.out)
    change(cli, folder)
    assert "; 4 shards added, 7 removed" in cli(*arguments, "--dry-run").stdout
    found = json.loads(cli(*arguments, "--json").stdout)
    assert (found["rows"], found["added"], found["removed"], found["deleted"]) == (90, 4, 7, 0)
    require_same(place)
    assert ordered(place.by_polars()) == ordered(expected(place.out))
    assert place.commits() == 2
    assert before.items() <= shards(place.out).items()  # what earlier snapshots read


def test_embed_keeps_what_a_table_names_until_it_was_published_and_the_time_is_over(
    cli, place: Place, folder: Path
) -> None:
    cli("publish", place.out, place.address)
    old = {*shards(place.out)}
    assert "kept 4 shards of changed inputs and 3 shards of removed inputs" in change(cli, folder)
    assert old <= {*shards(place.out)}
    assert len(place.rows()) == 150  # the table is as it was
    # Nothing that looks into the folder takes the retired shards for the output's.
    assert "verified" in cli("verify", place.out, "--input", folder / "in").stdout
    assert cli("embed", folder / "in", folder / "out", *BASE).stdout.startswith("done: 90 rows")
    assert json.loads(cli("status", place.out, "--json").stdout)["state"] == "done"
    assert len(Output.open(place.out).shards()) == 5
    cli("publish", place.out, place.address)
    assert old <= {*shards(place.out)}
    assert "7 retired shards deleted" in cli("publish", place.out, place.address, "--retain", "0").stdout
    assert {*shards(place.out)} == {*Output.open(place.out).shards()}
    require_same(place)
    assert "retired" not in cli("publish", place.out, place.address, "--retain", "0").stdout


def test_shards_that_come_back_are_no_longer_retired(cli, folder: Path) -> None:
    place = place_of("delta", folder)
    cli("publish", place.out, place.address)
    rows, kept = expected(place.out), (folder / "in" / "b.jsonl").read_bytes()
    written = shards(place.out)
    change(cli, folder)
    write(folder / "in", "가 나", [*SENTENCES[:50], None, *SENTENCES[50:60], "", *SENTENCES[60:70]])
    (folder / "in" / "b.jsonl").write_bytes(kept)
    (folder / "in" / "d.jsonl").unlink()
    cli("embed", folder / "in", folder / "out", *BASE)
    cli("publish", place.out, place.address, "--retain", "0")
    assert ordered(place.rows()) == ordered(rows)
    assert written.items() <= shards(place.out).items()
    cli("verify", place.out)


def test_shards_stay_for_the_slower_of_two_tables(cli, folder: Path) -> None:
    places = [place_of(kind, folder) for kind in FORMATS]
    for place in places:
        cli("publish", place.out, place.address)
    change(cli, folder)
    assert "deleted" not in cli("publish", places[0].out, places[0].address, "--retain", "0").stdout
    assert len(places[1].rows()) == 150
    assert "7 retired shards deleted" in cli("publish", places[1].out, places[1].address, "--retain", "0").stdout
    for place in places:
        require_same(place)


def test_a_table_that_is_forgotten_keeps_nothing(cli, told, folder: Path) -> None:
    place = place_of("delta", folder)
    assert "is not published as delta" in told("publish", place.out, "delta", "--forget", code=1)
    cli("publish", place.out, "delta")
    change(cli, folder)
    assert len(shards(place.out)) > 5
    place.drop()
    for option in ("--dry-run", "--retain=7"):
        assert ("not allowed with" if option == "--dry-run" else "write a unit, such as 7d") in told(
            "publish", place.out, "delta", "--forget", option, code=2
        )
    assert cli("publish", place.out, "delta", "--forget").stdout == "forgotten: delta; 7 retired shards deleted\n"
    cli("publish", place.out, "delta")
    assert json.loads(cli("publish", place.out, "delta", "--forget", "--json").stdout) == {"table": "delta", "deleted": 0}
    assert {*shards(place.out)} == {*Output.open(place.out).shards()}
    write(folder / "in", "c", SENTENCES[5:10])
    cli("embed", folder / "in", folder / "out", *BASE)  # deletes again what it replaces
    assert {*shards(place.out)} == {*Output.open(place.out).shards()}


def test_a_table_that_was_dropped_is_published_again(cli, place: Place) -> None:
    cli("publish", place.out, place.address)
    place.drop()
    assert "8 shards added" in cli("publish", place.out, place.address).stdout
    require_same(place)


def test_files_that_others_removed_are_refused_and_not_added_back(cli, told, place: Place, folder: Path) -> None:
    cli("publish", place.out, place.address)
    place.delete(1003)
    message = told("publish", place.out, place.address, code=1)
    assert message.startswith(f"{place.address}: b.00000-00000.")
    assert "(1 of 8 files): somebody rewrote or deleted it (" in message
    names = "version 1, DELETE" if place.kind == "delta" else f"snapshot {place.open().current_snapshot().snapshot_id}"
    assert names in message
    change(cli, folder)
    assert "somebody rewrote or deleted it" in told("publish", place.out, place.address, "--retain", "0", code=1)
    assert 1003 not in {row["key"] for row in place.rows()}
    assert len(place.rows()) == 149


def test_a_shard_that_was_embedded_again_with_another_size_is_replaced(cli, told, place: Place, folder: Path) -> None:
    """Readers of Iceberg look for the end of a file by the size in the table."""
    cli("publish", place.out, place.address)
    path = place.out / Output.open(place.out).shards()[0]
    pq.write_table(pq.read_table(path), path, compression="snappy")  # as another machine might have written it
    for file in (place.out / "_kosbert" / "receipts").glob("*.parquet"):
        file.unlink()
    (place.out / "_SUCCESS").unlink()
    cli("embed", folder / "in", place.out, *BASE)
    assert "0 shards added, 0 removed, 1 replaced" in cli("publish", place.out, place.address).stdout
    require_same(place)
    assert "0 shards added, 0 removed\n" in cli("publish", place.out, place.address).stdout
    shutil.rmtree(place.out / "_kosbert" / "manifests")
    (place.out / "_SUCCESS").unlink()
    cli("embed", folder / "in", place.out, *BASE)
    assert "drop the table and publish again" in told("publish", place.out, place.address, code=1)


def test_only_one_publish_of_a_table_runs_at_once(cli, place: Place) -> None:
    arguments = ["publish", place.out, place.address]
    processes = [
        subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    ends = [process.communicate()[1] for process in processes]
    assert not any("Traceback" in end for end in ends), ends
    assert 0 in [process.returncode for process in processes], ends
    cli(*arguments)
    require_same(place)
    assert place.commits() == 1


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_kills_lose_and_repeat_nothing(cli, place: Place, folder: Path, kills: int) -> None:
    """In a first publish, and in one that adds and removes."""
    seed = random.Random(kills)
    arguments = ["publish", place.out, place.address]
    for round_ in ("first", "later"):
        if round_ == "later":
            change(cli, folder)
        kill_at_random(arguments, kills, seed, 1.1)
        cli(*arguments)
        require_same(place)
    assert place.commits() == 2
    cli(*arguments, "--retain", "0")
    assert {*shards(place.out)} == {*Output.open(place.out).shards()}


def test_others_may_commit_meanwhile(cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit that loses the race is compared again."""
    place = place_of("iceberg", folder)
    cli("publish", place.out, place.address)
    change(cli, folder)
    from kosbert_ray.outputs.publish.iceberg import IcebergTable

    commit, others = IcebergTable.commit, []

    def slower(self: IcebergTable, changes: Any) -> str:
        if not others:
            others.append(place.open().append(pa.table({"key": [9], "text": ["남의 행"], "embedding": [[1.0]]}, SCHEMA)))
        return commit(self, changes)

    monkeypatch.setattr(IcebergTable, "commit", slower)
    assert "4 shards added, 7 removed" in cli("publish", place.out, place.address).stdout
    assert [row["text"] for row in place.rows() if row["key"] == 9 and row["embedding"] == [1.0]] == ["남의 행"]
    assert len(place.rows()) == 91


SCHEMA = pa.schema(
    [("key", pa.int64()), ("text", pa.string()), pa.field("embedding", pa.list_(pa.float32()), nullable=False)]
)


def test_two_outputs_in_a_table_do_not_touch_each_other(cli, told, folder: Path, tmp_path: Path) -> None:
    place = place_of("iceberg", folder)
    write(tmp_path / "in2", "a", SENTENCES[300:330], 5000)
    cli("embed", tmp_path / "in2", tmp_path / "out2", *BASE, "--keep", "key")
    for name in (folder / "out", tmp_path / "out2"):
        cli("publish", name, place.address)
    change(cli, folder)
    cli("publish", folder / "out", place.address)
    assert ordered(place.rows()) == ordered([*expected(folder / "out"), *expected(tmp_path / "out2")])
    # Another order of columns has other field ids, another model other vectors.
    cli("embed", tmp_path / "in2", tmp_path / "out3", *BASE, "--keep", "text,key")
    assert "its column 'text' has id 2, and in the files of the output 1" in told(
        "publish", tmp_path / "out3", place.address, code=1
    )
    cli("embed", tmp_path / "in2", tmp_path / "out4", *BASE, "--keep", "key", "--set", "model.prompt=query")
    assert "has vectors of another model" in told("publish", tmp_path / "out4", place.address, code=1)
    cli("embed", tmp_path / "in2", tmp_path / "out5", *BASE, "--keep", "key", "--no-text")
    require = told("publish", tmp_path / "out5", place.address, code=1)
    assert "its column 'embedding' has id 3, and in the files of the output 2" in require


def test_tables_of_others_are_refused(told, folder: Path) -> None:
    from deltalake import write_deltalake
    from pyiceberg.catalog import load_catalog

    iceberg, delta = place_of("iceberg", folder), place_of("delta", folder)
    name = iceberg.address.rpartition("/")[2]
    load_catalog("lake").create_namespace_if_not_exists("검색")
    load_catalog("lake").create_table(name, SCHEMA)
    assert "was not made by kosbert-ray publish" in told("publish", iceberg.out, iceberg.address, code=1)
    write_deltalake(delta.out, pa.table({"key": [1]}))
    assert "was not made by kosbert-ray publish" in told("publish", delta.out, "delta", code=1)


def test_addresses_that_are_wrong_are_named(told, folder: Path) -> None:
    out = folder / "out"
    assert told("publish", out, "hudi", code=2).startswith("'hudi' is no table; write delta or iceberg://")
    assert "write iceberg://CATALOG/NAMESPACE.TABLE" in told("publish", out, "iceberg://lake/vectors", code=2)
    assert "write delta; the table is the output's own folder" in told("publish", out, "delta:x", code=2)
    message = told("publish", out, "iceberg://nowhere/a.b", code=2)
    assert "there is no catalog 'nowhere'" in message
    assert "PYICEBERG_CATALOG__NOWHERE__URI" in message
    assert not (out / "_kosbert" / "published").exists() or not [*(out / "_kosbert" / "published").iterdir()]
    (out / "_SUCCESS").unlink()
    assert "not complete" in told("publish", out, "delta", code=1)


def test_files_that_come_and_go_are_in_the_output_and_the_table_each_time(cli, place: Place, folder: Path) -> None:
    """A shard that is retired and planned again is no longer retired, and may be retired again."""
    one, other = (folder / "in" / "b.jsonl").read_bytes(), '{"key": 9000, "text": "다른 문장"}\n'.encode()
    for content in (one, other, one, other, None, other):
        path = folder / "in" / "b.jsonl"
        path.unlink(missing_ok=True) if content is None else path.write_bytes(content)
        rows = 90 + (0 if content is None else 60 if content == one else 1)
        assert cli("embed", folder / "in", place.out, *BASE).stdout.startswith(f"done: {rows} rows")
        assert sum(receipt.rows for receipt in Output.open(place.out).manifest or ()) == rows
        cli("publish", place.out, place.address)
        require_same(place)
        cli("verify", place.out, "--input", folder / "in")
    cli("publish", place.out, place.address, "--retain", "0")
    assert {*shards(place.out)} == {*Output.open(place.out).shards()}
    require_same(place)


def test_a_dry_run_tells_of_deletions(cli, folder: Path) -> None:
    place = place_of("delta", folder)
    cli("publish", place.out, place.address)
    (folder / "in" / "b.jsonl").unlink()
    preview = cli("embed", folder / "in", place.out, *BASE, "--dry-run").stdout
    assert "to retire: 3 shards" in preview
    assert "delete " not in preview
    cli("embed", folder / "in", place.out, *BASE)
    assert "published as delta, of an earlier run (kosbert-ray publish" in cli("status", place.out).stdout
    arguments = ["publish", place.out, "delta", "--retain", "0"]
    assert "0 added, 3 removed" not in cli(*arguments, "--dry-run").stdout
    assert cli(*arguments, "--dry-run").stdout.endswith("0 shards added, 3 removed, 3 retired shards to delete\n")
    assert cli(*arguments).stdout.endswith("0 shards added, 3 removed, 3 retired shards deleted\n")
    assert "published as delta\n" in cli("status", place.out).stdout


def test_a_table_that_somebody_rolled_back_is_brought_up_to_date(cli, place: Place, folder: Path) -> None:
    cli("publish", place.out, place.address)
    table = place.open()
    first = None if place.kind == "delta" else table.current_snapshot().snapshot_id
    (folder / "in" / "b.jsonl").unlink()
    cli("embed", folder / "in", place.out, *BASE)
    cli("publish", place.out, place.address)
    table = place.open()
    table.restore(0) if place.kind == "delta" else table.manage_snapshots().rollback_to_snapshot(first).commit()
    assert len(place.rows()) == 150
    assert "0 shards added, 3 removed" in cli("publish", place.out, place.address).stdout
    require_same(place)


def test_a_run_that_ends_during_a_publish_is_published_too(
    cli, place: Place, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read before is not what is committed in the end, and no shard of the new run is deleted."""
    from kosbert_ray.outputs.publish import core

    compare, runs = core.Changes.of, []

    def slower(*arguments: Any) -> Any:
        found = compare(*arguments)
        if not runs:
            runs.append(change(cli, folder))
        return found

    monkeypatch.setattr(core.Changes, "of", slower)
    assert ": 90 rows in 5 shards" in cli("publish", place.out, place.address, "--retain", "0").stdout
    require_same(place)
    assert {*shards(place.out)} == {*Output.open(place.out).shards()}


def test_a_damaged_record_of_a_table_keeps_its_shards(cli, folder: Path) -> None:
    place = place_of("delta", folder)
    cli("publish", place.out, "delta")
    for path in (place.out / "_kosbert" / "published").iterdir():
        path.write_bytes(path.read_bytes()[:20])
    change(cli, folder)
    assert len(place.rows()) == 150
    cli("publish", place.out, "delta")  # writes it again
    require_same(place)
    assert "7 retired shards deleted" in cli("publish", place.out, "delta", "--retain", "0").stdout


def test_what_is_forgotten_while_the_output_is_incomplete_is_deleted_by_the_next_run(cli, folder: Path) -> None:
    place = place_of("delta", folder)
    cli("publish", place.out, "delta")
    change(cli, folder)
    (place.out / "_SUCCESS").unlink()  # as a run that was killed leaves it
    assert "output is not complete" in cli("publish", place.out, "delta", "--forget").stderr
    cli("embed", folder / "in", place.out, *BASE)
    assert {*shards(place.out)} == {*Output.open(place.out).shards()}


def test_an_output_that_was_moved_is_told(cli, told, folder: Path) -> None:
    place = place_of("iceberg", folder)
    cli("publish", place.out, place.address)
    place.out.rename(folder / "moved")
    assert "if the output was moved or copied" in told("publish", folder / "moved", place.address, code=1)


def test_addresses_that_readers_misread_are_refused(cli, told, folder: Path) -> None:
    for name, table in (("a#b", "iceberg://lake/a.b"), ("a%20b", "delta")):
        shutil.copytree(folder / "out", folder / name)
        assert f"take no {name[1]} in" in told("publish", folder / name, table, code=2).replace("takes", "take")
        assert not (folder / name / "_delta_log").exists()
    assert "write iceberg://" in told("publish", folder / "out", "iceberg://lake/a.b#1", code=2)


# -- types -------------------------------------------------------------------------------------------------------------

REFUSED = {
    "float16": pa.float16(),
    "uint8": pa.uint8(),
    "uint64": pa.uint64(),
    "nanoseconds": pa.timestamp("ns"),
    "zone": pa.timestamp("us", "Asia/Seoul"),
    "time": pa.time64("us"),
    "duration": pa.duration("us"),
    "null": pa.null(),
    "long decimal": pa.decimal256(50, 2),
    "nested": pa.struct([("a", pa.list_(pa.uint16()))]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_types_that_tables_do_not_have_are_refused_with_a_remedy(name: str, cli, told, tmp_path: Path) -> None:
    column = pa.nulls(30, REFUSED[name])
    pq.write_table(pa.table({"text": SENTENCES[:30], "열": column}), tmp_path / "in.parquet")
    cli("embed", tmp_path / "in.parquet", tmp_path / "out", *BASE, "--keep", "열")
    for address in ("delta", "iceberg://lake/a.refused"):
        message = told("publish", tmp_path / "out", address, code=2)
        assert message.startswith("column '열' is ")
        assert "embed into another output with" in message
    assert not (tmp_path / "out" / "_delta_log").exists()
    if "--set" in message:  # the remedy works
        setting = message.partition("--set '")[2].partition("'")[0]
        cli("embed", tmp_path / "in.parquet", tmp_path / "out2", *BASE, "--keep", "열", "--set", setting)
        cli("publish", tmp_path / "out2", "delta")


@pytest.mark.parametrize("dtype", ["float16", "ubinary", "int8,float16"])
def test_vectors_that_tables_do_not_have_are_refused(dtype: str, cli, told, folder: Path, tmp_path: Path) -> None:
    arguments = [folder / "in", tmp_path / "out", *BASE, "--set", f"output.dtype={dtype}", "--set", "max_rejected=5"]
    assert "output.publish: delta has no " in told("embed", *arguments, "--set", "output.publish=delta", code=2)
    cli("embed", *arguments)
    assert "embed into another output with --set output.dtype=float32" in told("publish", tmp_path / "out", "delta", code=2)


@pytest.mark.parametrize("types", ["float32,int8", "int8"])
def test_kept_types_come_back(cli, types: str, place: Place, tmp_path: Path) -> None:
    import datetime as dt
    from decimal import Decimal

    values = {
        "b": pa.array([True, None], pa.bool_()),
        "i8": pa.array([-128, None], pa.int8()),
        "i64": pa.array([2**62, None], pa.int64()),
        "f": pa.array([0.5, None], pa.float32()),
        "d": pa.array([Decimal("12.34"), None], pa.decimal128(10, 2)),
        "day": pa.array([dt.date(2026, 11, 27), None], pa.date32()),
        "at": pa.array([dt.datetime(2026, 11, 27, 1, 2, 3, 4000), None], pa.timestamp("ms")),
        "utc": pa.array([dt.datetime(2026, 11, 27, 1, 2, 3, 4, dt.UTC), None], pa.timestamp("us", "UTC")),
        "bytes": pa.array([b"\x00\xff", None], pa.binary()),
        "fixed": pa.array([b"1234", None], pa.binary(4)),
        "tags": pa.array([["가", None], None], pa.list_(pa.large_string())),
        "pair": pa.array([{"x": 1, "y": ["z"]}, None], pa.struct([("x", pa.int16()), ("y", pa.list_(pa.string()))])),
        "map": pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int32())),
    }
    pq.write_table(pa.table({"key": [0, 1], "text": SENTENCES[:2], **values}), tmp_path / "in.parquet")
    out = tmp_path / "out"
    settings = ["--keep", ",".join(["key", *values]), "--set", f"output.dtype={types}"]
    cli("embed", tmp_path / "in.parquet", out, *BASE, *settings)
    there = Place(place.kind, place.address, out)
    cli("publish", out, there.address)
    rows = ordered(there.rows())
    truth = ordered(expected(out))
    for row in (*rows, *truth):  # an array of pairs or a dict
        row["map"] = dict(row["map"]) if row["map"] else None
    assert rows == truth
    assert ordered(there.by_polars())[0]["at"] == truth[0]["at"]


def test_names_that_delta_does_not_take_are_refused(cli, told, tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"text": SENTENCES[:30], "a b": [1] * 30, "ID": [2] * 30, "id": [3] * 30}), tmp_path / "in.parquet"
    )
    cli("embed", tmp_path / "in.parquet", tmp_path / "one", *BASE, "--keep", "a b")
    cli("embed", tmp_path / "in.parquet", tmp_path / "two", *BASE, "--keep", "ID,id")
    assert "column 'a b': Delta takes no ' ' in names" in told("publish", tmp_path / "one", "delta", code=2)
    assert "columns 'ID' and 'id': Delta takes no names" in told("publish", tmp_path / "two", "delta", code=2)
    cli("publish", tmp_path / "one", "iceberg://lake/names.space")
    assert place_of("iceberg", tmp_path / "x").open  # the address is another one
    from pyiceberg.catalog import load_catalog

    assert load_catalog("lake").load_table("names.space").scan().to_arrow()["a b"].to_pylist() == [1] * 30


# -- older outputs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", ["whole", "chunk", "rejected"])
def test_outputs_of_version_0_1_0_are_published(cli, kind: str, name: str, tmp_path: Path) -> None:
    shutil.copytree(OLD / name, tmp_path / "out")
    place = Place(kind, "delta" if kind == "delta" else f"iceberg://lake/old.{name}", tmp_path / "out")
    before = shards(place.out)
    cli("publish", place.out, place.address)
    found = pa.Table.from_pylist(place.rows())
    truth = pa.Table.from_pylist(expected(place.out))
    assert sorted(map(str, found.to_pylist())) == sorted(map(str, truth.to_pylist()))
    assert shards(place.out) == before
    assert "0 shards added" in cli("publish", place.out, place.address).stdout


def test_an_older_output_that_goes_on_gets_no_field_ids(cli, tmp_path: Path) -> None:
    """Its shards stay alike; a new output has them, and job.json tells which."""
    write(tmp_path / "in", "a", SENTENCES[:30])
    cli("embed", tmp_path / "in", tmp_path / "out", *BASE, "--keep", "key")
    job = tmp_path / "out" / "_kosbert" / "job.json"
    content = json.loads(job.read_text())
    assert content["field_ids"] == {"key": 1, "text": 2, "embedding": 3, "embedding.element": 4}
    del content["field_ids"]  # as an older version wrote it
    job.write_text(json.dumps(content))
    write(tmp_path / "in", "b", SENTENCES[30:40])
    cli("embed", tmp_path / "in", tmp_path / "out", *BASE)
    numbered = {
        path.name[0]: b"PARQUET:field_id" in (pq.read_schema(path).field("key").metadata or {})
        for path in sorted((tmp_path / "out").glob("*.parquet"))
    }
    assert numbered == {"a": True, "b": False}
    job.unlink()  # recreated by the next run: the first shard decides
    for path in (tmp_path / "out").glob("a.*.parquet"):
        path.unlink()
    cli("embed", tmp_path / "in", tmp_path / "out", *BASE, "--keep", "key")
    assert "field_ids" not in json.loads(job.read_text())


# -- after a run, and on S3 --------------------------------------------------------------------------------------------


def test_embed_publishes_and_its_failure_does_not_undo_the_run(cli, folder: Path, tmp_path: Path) -> None:
    told = tmp_path / "told.json"
    out, place = tmp_path / "out", place_of("iceberg", folder)
    arguments = ["embed", folder / "in", out, *BASE, "--keep", "key"]
    publish = ["--set", f"output.publish=delta,{place.address}", "--set", f"on_finish=cat > {told}"]
    done = cli(*arguments, *publish)
    assert done.stdout.startswith("done: 150 rows")
    assert f"published: {place.address}, snapshot" in done.stderr
    for kind, address in (("delta", "delta"), ("iceberg", place.address)):
        require_same(Place(kind, address, out))
    assert json.loads(told.read_text())["unpublished"] == []
    # Somebody changes a table: the run is done, and the other table is published.
    Place("iceberg", place.address, out).delete(1003)
    write(folder / "in", "e", SENTENCES[300:310], 7000)
    done = cli(*arguments, *publish, code=7)
    assert done.stdout.startswith("done: 160 rows")
    assert "error: not published: iceberg://lake/" in done.stderr
    assert (out / "_SUCCESS").exists()
    require_same(Place("delta", "delta", out))
    assert "somebody rewrote" in json.loads(told.read_text())["unpublished"][0]
    assert json.loads(told.read_text())["status"] == "done"


def test_a_publish_that_cannot_work_is_refused_before_the_run(told, folder: Path, tmp_path: Path) -> None:
    arguments = ["embed", folder / "in", tmp_path / "out", *BASE, "--set"]
    assert "is no table; write delta" in told(*arguments, "output.publish=parquet", code=2)
    assert "there is no catalog 'nowhere'" in told(*arguments, "output.publish=iceberg://nowhere/a.b", code=2)
    assert not (tmp_path / "out").exists()


def test_python_publishes_after_a_run(folder: Path, tmp_path: Path) -> None:
    import kosbert_ray

    done = kosbert_ray.embed(
        folder / "in", tmp_path / "out", model=TINY, keep="key", max_rejected=5, output={"publish": ["delta"]}
    )
    assert done.unpublished == ()
    require_same(Place("delta", "delta", tmp_path / "out"))
    write(folder / "in", "e", SENTENCES[300:310], 7000)
    kosbert_ray.embed(folder / "in", tmp_path / "out", max_rejected=5)  # job.json remembers what to publish
    require_same(Place("delta", "delta", tmp_path / "out"))


@pytest.mark.parametrize("kind", FORMATS)
def test_tables_on_s3(kind: str, cli, s3, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written in a process of its own, whose variables are those of the store, and read by the format's own library."""
    bucket = f"publish-{kind}"
    files = s3.filesystem()
    files.mkdir(bucket)
    files.put(str(folder / "in"), f"{bucket}/말뭉치", recursive=True)
    env = {
        **s3.env,
        "PYICEBERG_CATALOG__LAKE__URI": f"sqlite:///{folder}/s3.db",
        "PYICEBERG_CATALOG__LAKE__WAREHOUSE": f"s3://{bucket}/warehouse",
        "PYICEBERG_CATALOG__LAKE__S3__ENDPOINT": s3.endpoint,
        "PYICEBERG_CATALOG__LAKE__S3__ACCESS_KEY_ID": "admin",
        "PYICEBERG_CATALOG__LAKE__S3__SECRET_ACCESS_KEY": "secret",
        "PYICEBERG_CATALOG__LAKE__S3__REGION": "us-east-1",
    }
    source, out = f"s3://{bucket}/말뭉치", f"s3://{bucket}/벡터"
    address = "delta" if kind == "delta" else "iceberg://lake/s3.vectors"
    settings = ["--keep", "key", "--set", "max_rejected=5", "--set", f"output.publish={address}"]
    cli("embed", source, out, *BASE, *settings, env=env)
    files.rm(f"{bucket}/말뭉치/b.jsonl")
    files.pipe_file(f"{bucket}/말뭉치/c.jsonl", '{"key": 1, "text": "바뀐 문장"}\n'.encode())
    cli("embed", source, out, *BASE, *settings, "--set", "output.retain=0", env=env)
    script = READ_DELTA if kind == "delta" else READ_ICEBERG
    done = subprocess.run(
        [sys.executable, "-c", script, out], env={**os.environ, **env}, capture_output=True, text=True, check=True
    )
    truth = [row["key"] for row in Output.open(out, storage=storage_of(s3)).to_arrow(["key"]).to_pylist()]
    assert json.loads(done.stdout) == sorted(truth)
    assert len(truth) == 71


def storage_of(s3) -> dict[str, Any]:
    return {"endpoint_url": s3.endpoint, "access_key_id": "admin", "secret_access_key": "secret", "region": "us-east-1"}


READ_ICEBERG = """
import json
from pyiceberg.catalog import load_catalog
print(json.dumps(sorted(load_catalog("lake").load_table("s3.vectors").scan().to_arrow()["key"].to_pylist())))
"""
READ_DELTA = """
import json, sys
import pyarrow as pa, s3fs
import pyarrow.parquet as pq
from urllib.parse import unquote
from deltalake import DeltaTable
table = DeltaTable(sys.argv[1], storage_options={"aws_allow_http": "true", "allow_http": "true"})
files = [f"{sys.argv[1]}/{unquote(name)}" for name in pa.table(table.get_add_actions())["path"].to_pylist()]
store = s3fs.S3FileSystem()
tables = [pq.read_table(name.removeprefix("s3://"), filesystem=store) for name in files]
rows = [key for table in tables for key in table["key"].to_pylist()]
print(json.dumps(sorted(rows)))
"""
