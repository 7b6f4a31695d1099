"""Which columns are read and of what type they are, settled before anything runs.

Every shard of a job has the same schema, so the types of the columns to keep cannot be left to what a slice happens to
hold: Parquet says them, CSV and plain text have strings, and JSONL is looked at once, at the start of its first file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kosbert_ray.corpus.lines import LineOptions, first_lines
from kosbert_ray.corpus.listing import Corpus, InputFile, RowGroup
from kosbert_ray.corpus.records import csv_header, json_objects
from kosbert_ray.errors import InputError, StorageError, first_line

SAMPLE_LINES = 1000
FOOTER_THREADS = 16
LOCAL_FOOTER_THREADS = 2  # more of them only wait for each other: 100,000 footers took 10 s with 2, 15 s with 16
FOOTERS_AT_ONCE = 256
FOOTER_BYTES = 64 * 2**10  # of a file's end; most footers are smaller

Look = tuple[tuple[RowGroup, ...], pa.Schema]  # what the plan needs of a Parquet file


@dataclass(frozen=True)
class Columns:
    """The text column and the columns carried through, with their types. May hold the text column again."""

    text: str
    keep: pa.Schema

    @property
    def read(self) -> list[str]:
        """Names of the columns to read, each once."""
        return list(dict.fromkeys([self.text, *self.keep.names]))


def inspect(corpus: Corpus, text: str, keep: Sequence[str], options: LineOptions) -> tuple[Corpus, Columns]:
    """Reads what the plan needs from inside the files: Parquet footers, a CSV header, the first JSON lines.

    Args:
        corpus: the listing.
        text: name of the text column.
        keep: names of the columns to carry through.
        options: how line formats are read.

    Returns:
        The corpus with every Parquet file's row groups filled in, and the columns with their types.

    Raises:
        InputError: a file is broken, lacks a column (the message lists what it has), or has the wrong type.
    """
    parquet = [file for file in corpus.files if file.format == "parquet"]
    # Many at a time: of a hundred thousand files, the threads' own queue would take longer than the footers.
    threads = FOOTER_THREADS if corpus.storage.remote else LOCAL_FOOTER_THREADS
    each = min(FOOTERS_AT_ONCE, -(-len(parquet) // (4 * threads)) or 1)
    runs = [parquet[start : start + each] for start in range(0, len(parquet), each)]
    with ThreadPoolExecutor(threads) as pool:
        looks = chain.from_iterable(pool.map(lambda run: _inspect_parquets(corpus, run, text, keep), runs))
        inspected = {file.name: look for file, look in zip(parquet, looks, strict=True)}
    schemas: list[tuple[InputFile, pa.Schema]] = [(file, inspected[file.name][1]) for file in parquet]
    for kind in dict.fromkeys(file.format for file in corpus.files if file.format != "parquet"):
        first = next(file for file in corpus.files if file.format == kind)
        schemas.append((first, _inspect_lines(corpus, first, text, keep, options)))
    (first, schema), *others = schemas
    for file, other in others:
        if other != schema:
            raise InputError(
                f"{corpus.storage.url(file.name)}: the columns to keep are ({_describe(other)}), "
                f"but in {first.name} they are ({_describe(schema)}); embed such files into separate outputs"
            )
    files = tuple(
        replace(file, row_groups=inspected[file.name][0]) if file.name in inspected else file for file in corpus.files
    )
    return replace(corpus, files=files), Columns(text, schema)


def _describe(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)


def _inspect_parquets(corpus: Corpus, files: Sequence[InputFile], text: str, keep: Sequence[str]) -> list[Look]:
    """What the plan needs of each file, from an object store by one request a file: its size is known already."""
    ends: Sequence[bytes | None] = [None] * len(files)
    if corpus.storage.remote:
        ends = corpus.storage.read_ends({file.name: file.size for file in files}, FOOTER_BYTES)
    return [
        _look(corpus.storage.url(file.name), _footer(corpus, file, end), text, keep)
        for file, end in zip(files, ends, strict=True)
    ]


def _footer(corpus: Corpus, file: InputFile, end: bytes | None) -> pq.FileMetaData:
    """A file's footer, from its last bytes if they are there and suffice."""
    if end is not None:
        with contextlib.suppress(pa.ArrowException, OSError):
            return pq.read_metadata(pa.BufferReader(end))
    try:
        with corpus.storage.open(file.name) as handle:
            return pq.read_metadata(handle)
    except StorageError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{corpus.storage.url(file.name)}: broken Parquet ({first_line(error)})") from error


def _look(where: str, metadata: pq.FileMetaData, text: str, keep: Sequence[str]) -> Look:
    schema = metadata.schema.to_arrow_schema()
    _require([text, *keep], schema.names, where)
    kind = schema.field(text).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise InputError(f"{where}: column {text!r} is {kind}, not a string; name the text column with input.text")
    column = [metadata.schema.column(number).path for number in range(metadata.num_columns)].index(text)
    groups = tuple(
        RowGroup(metadata.row_group(number).num_rows, metadata.row_group(number).column(column).total_uncompressed_size)
        for number in range(metadata.num_row_groups)
    )
    return groups, pa.schema([_plain(schema.field(name)) for name in keep])


def _plain(field: pa.Field) -> pa.Field:
    """The field as it is written: nullable, without metadata, and no dictionary, whose values differ from file to file."""
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    return pa.field(field.name, kind)


def _inspect_lines(corpus: Corpus, file: InputFile, text: str, keep: Sequence[str], options: LineOptions) -> pa.Schema:
    where = corpus.storage.url(file.name)
    if file.format == "text":
        _require([text, *keep], [text], where)
        return pa.schema([pa.field(name, pa.string()) for name in keep])
    if file.format in ("csv", "tsv"):
        _require([text, *keep], csv_header(corpus.storage, file, options), where)
        return pa.schema([pa.field(name, pa.string()) for name in keep])
    objects = json_objects(first_lines(corpus.storage, file, SAMPLE_LINES), options)
    if not objects:
        return pa.schema([pa.field(name, pa.string()) for name in keep])
    _require([text, *keep], list(dict.fromkeys(name for item in objects for name in item)), where)
    return pa.schema([pa.field(name, _json_type([item.get(name) for item in objects])) for name in keep])


def _json_type(values: list[Any]) -> pa.DataType:
    """int64, double, bool or string; what is mixed or nested is kept as a string of JSON."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pa.bool_()
    if kinds == {int}:
        return pa.int64()
    if kinds in ({float}, {int, float}):
        return pa.float64()
    return pa.string()


def _require(names: Sequence[str], present: Sequence[str], where: str) -> None:
    for name in names:
        if name not in present:
            option = "input.text" if name == names[0] else "input.keep"
            raise InputError(
                f"{where}: no column {name!r}; it has {', '.join(map(repr, present)) or 'none'} (set {option})"
            )
