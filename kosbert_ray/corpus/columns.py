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
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from kosbert_ray.corpus.arrow import open_arrow
from kosbert_ray.corpus.lines import LineOptions, first_lines
from kosbert_ray.corpus.listing import Corpus, InputFile, RowGroup
from kosbert_ray.corpus.records import csv_header, json_objects
from kosbert_ray.corpus.text import RowText, require_strings
from kosbert_ray.errors import InputError, StorageError, first_line

SAMPLE_LINES = 1000
FOOTER_THREADS = 16
LOCAL_FOOTER_THREADS = 2  # more of them only wait for each other: 100,000 footers took 10 s with 2, 15 s with 16
FOOTERS_AT_ONCE = 256
FOOTER_BYTES = 64 * 2**10  # of a file's end; most footers are smaller

HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"

Look = tuple[tuple[RowGroup, ...], pa.Schema]  # what the plan needs of a Parquet file


@dataclass(frozen=True)
class Columns:
    """How the text is made, and the columns carried through, with their types. These may hold the text's again.

    ``partitions`` are those of them that no file holds: they are keys in the files' paths (``year=2026/``), and strings.
    """

    source: RowText
    keep: pa.Schema
    partitions: tuple[str, ...] = ()

    @property
    def stored(self) -> pa.Schema:
        """The columns carried through that the files hold."""
        return pa.schema([field for field in self.keep if field.name not in self.partitions])

    @property
    def read(self) -> list[str]:
        """Names of the columns to read, each once."""
        return list(dict.fromkeys([*self.source.columns, *self.stored.names]))


def path_keys(path: str) -> dict[str, str | None]:
    """Hive's keys in a path: ``a/year=2026/part.jsonl`` has year."""
    pairs = [part.partition("=") for part in path.split("/")[:-1] if "=" in part.lstrip("=")]
    return {key: None if value == HIVE_NULL else unquote(value) for key, _, value in pairs}


def inspect(corpus: Corpus, text: str | RowText, keep: Sequence[str], options: LineOptions) -> tuple[Corpus, Columns]:
    """Reads what the plan needs from inside the files: Parquet footers, a CSV header, the first JSON lines.

    Args:
        corpus: the listing.
        text: name of the text column, or how the text is made.
        keep: names of the columns to carry through.
        options: how line formats are read.

    Returns:
        The corpus with every Parquet file's row groups filled in, and the columns with their types.

    Raises:
        InputError: a file is broken, lacks a column (the message lists what it has), or has the wrong type.
    """
    text = RowText(text) if isinstance(text, str) else text
    partitions = _partitions(corpus, keep, options)
    wanted, keep = keep, [name for name in keep if name not in partitions]
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
        schemas.append((first, _inspect_others(corpus, first, text, keep, options)))
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
    order = {field.name: field for field in schema} | {name: pa.field(name, pa.string()) for name in partitions}
    return replace(corpus, files=files), Columns(text, pa.schema([order[name] for name in wanted]), partitions)


def _partitions(corpus: Corpus, keep: Sequence[str], options: LineOptions) -> tuple[str, ...]:
    """Which of the columns to keep are keys in the paths and not in the first file."""
    first = path_keys(corpus.storage.url(corpus.files[0].name))
    keys = [name for name in keep if name in first]
    if not keys:
        return ()
    present = _names(corpus, corpus.files[0], options)
    partitions = tuple(name for name in keys if name not in present)
    for file in corpus.files if partitions else ():
        there = path_keys(corpus.storage.url(file.name))
        for name in partitions:
            if name not in there:
                raise InputError(
                    f"{corpus.storage.url(file.name)}: there is no {name}= in its path, as in the first file's"
                )
    return partitions


def _names(corpus: Corpus, file: InputFile, options: LineOptions) -> list[str]:
    """The columns that a file holds."""
    if file.format == "parquet":
        return list(_footer(corpus, file, None).schema.to_arrow_schema().names)
    if file.format == "arrow":
        with open_arrow(corpus.storage, file) as stream:
            return list(stream.schema.names)
    if file.format in ("csv", "tsv"):
        return csv_header(corpus.storage, file, options)
    if file.format == "jsonl":
        objects = json_objects(first_lines(corpus.storage, file, SAMPLE_LINES), options)
        return list(dict.fromkeys(name for item in objects for name in item))
    return []


def _describe(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)


def _inspect_parquets(corpus: Corpus, files: Sequence[InputFile], text: RowText, keep: Sequence[str]) -> list[Look]:
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


def _look(where: str, metadata: pq.FileMetaData, text: RowText, keep: Sequence[str]) -> Look:
    schema = metadata.schema.to_arrow_schema()
    kept = _check_schema(where, schema, text, keep)
    paths = [metadata.schema.column(number).path for number in range(metadata.num_columns)]
    columns = [paths.index(name) for name in text.columns]
    groups = tuple(
        RowGroup(
            metadata.row_group(number).num_rows,
            sum(metadata.row_group(number).column(column).total_uncompressed_size for column in columns),
        )
        for number in range(metadata.num_row_groups)
    )
    return groups, kept


def _check_schema(where: str, schema: pa.Schema, text: RowText, keep: Sequence[str]) -> pa.Schema:
    """The columns to keep, as they are written; raises InputError where one is missing or the text is no string."""
    _require(text, keep, schema.names, where)
    problem = require_strings(text, [(name, schema.field(name).type) for name in text.columns])
    if problem:
        raise InputError(f"{where}: {problem}")
    return pa.schema([_plain(schema.field(name)) for name in keep])


def _plain(field: pa.Field) -> pa.Field:
    """The field as it is written: nullable, without metadata, and no dictionary, whose values differ from file to file."""
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    return pa.field(field.name, kind)


def _inspect_others(corpus: Corpus, file: InputFile, text: RowText, keep: Sequence[str], options: LineOptions) -> pa.Schema:
    where = corpus.storage.url(file.name)
    strings = pa.schema([pa.field(name, pa.string()) for name in keep])
    if file.format == "arrow":
        with open_arrow(corpus.storage, file) as stream:
            return _check_schema(where, stream.schema, text, keep)
    if file.format == "text":
        if text.joined:
            raise InputError(f"{where}: a line of text has no columns for the template {text.template!r} (set input.text)")
        _require(text, keep, text.columns, where)
        return strings
    if file.format in ("csv", "tsv"):
        _require(text, keep, csv_header(corpus.storage, file, options), where)
        return strings
    objects = json_objects(first_lines(corpus.storage, file, SAMPLE_LINES), options)
    if not objects:
        return strings
    _require(text, keep, list(dict.fromkeys(name for item in objects for name in item)), where)
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


def _require(text: RowText, keep: Sequence[str], present: Sequence[str], where: str) -> None:
    for option, names in (("input.text", text.columns), ("input.keep", keep)):
        for name in names:
            if name not in present:
                raise InputError(
                    f"{where}: no column {name!r}; it has {', '.join(map(repr, present)) or 'none'} (set {option})"
                )
