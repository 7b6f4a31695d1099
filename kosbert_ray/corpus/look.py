"""What the plan needs to know of one file: its columns and their types, and of Parquet its row groups.

Parquet and Arrow files say it in their footer or head; of a line file the first lines are read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kosbert_ray.corpus.arrow import open_arrow
from kosbert_ray.corpus.lines import LineOptions, first_lines, read_lines
from kosbert_ray.corpus.listing import InputFile, RowGroup
from kosbert_ray.corpus.names import MISSING, locate, own_name, pick, require, type_at
from kosbert_ray.corpus.records import csv_layout, decode, json_objects, other_codec
from kosbert_ray.corpus.sniff import HEAD_BYTES, recognise
from kosbert_ray.corpus.text import RowText, require_strings
from kosbert_ray.corpus.types import EXACT_INTEGERS, Seen, plain
from kosbert_ray.errors import InputError, StorageError, first_line
from kosbert_ray.storage import Storage

SAMPLE_LINES = 1000
SAMPLE_AHEAD = 2**18  # bytes to fetch at a time for them
LATE_BYTES = 16 * 2**20  # of a JSON lines file to search for a column that its first lines lack
INT96_UNIT = "us"  # Spark's old timestamps; in nanoseconds those after 2262 would overflow
OWN_MAGIC = {"parquet": (b"PAR1",), "arrow": (b"ARROW1", b"\xff\xff\xff\xff")}


@dataclass(frozen=True)
class Wanted:
    """What is asked of each file: how the text is made, the columns to keep, and how lines are read."""

    text: RowText
    keep: Sequence[str]
    options: LineOptions


@dataclass(frozen=True)
class Look:
    """What was seen in one file.

    Attributes:
        file: the file, with its row groups if it is Parquet.
        names: the columns that it has.
        types: what was seen of the columns to keep; those that it lacks are not there.
        notices: what the user should know of it, without its address.
        empty: whether it is known to have no rows, so that the types of its columns mean little.
        absent: columns of the text that none of the rows looked at has; in JSON lines a later row may.
    """

    file: InputFile
    names: tuple[str, ...]
    types: Mapping[str, Seen] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
    empty: bool = False
    absent: tuple[str, ...] = ()


def look(storage: Storage, file: InputFile, wanted: Wanted, end: bytes | None = None) -> Look:
    """Looks into one file that is not empty.

    Args:
        storage: the input folder.
        file: the file.
        wanted: what is asked of it.
        end: its last bytes, if they were read already.

    Raises:
        InputError: it is broken, is not what its name says, or lacks the text column.
        StorageError: it cannot be read.
    """
    looks = {"parquet": _look_parquet, "arrow": _look_arrow, "jsonl": _look_jsonl, "text": _look_text}
    try:
        return looks.get(file.format, _look_csv)(storage, file, wanted, end)
    except InputError as error:
        where = storage.url(file.name)
        text = str(error)
        raise type(error)(text if text.startswith(where) else f"{where}: {text}") from error


# -- columnar formats ----------------------------------------------------------------------------------------------


def parquet_schema(metadata: pq.FileMetaData) -> pa.Schema:
    """The file's columns as they are read."""
    columns = (metadata.schema.column(number) for number in range(metadata.num_columns))
    if any(column.physical_type == "INT96" for column in columns):
        nothing = pa.BufferReader(b"")
        return pq.ParquetFile(nothing, metadata=metadata, coerce_int96_timestamp_unit=INT96_UNIT).schema_arrow
    return metadata.schema.to_arrow_schema()


def _look_parquet(storage: Storage, file: InputFile, wanted: Wanted, end: bytes | None) -> Look:
    metadata = _footer(storage, file, end)
    schema = parquet_schema(metadata)
    if not metadata.num_rows:
        return Look(file, tuple(schema.names), _kept_types(schema, wanted), empty=True)
    types = _check_schema(schema, wanted)
    paths = [metadata.schema.column(number).path for number in range(metadata.num_columns)]
    columns = [paths.index(".".join(locate(name, schema) or ())) for name in wanted.text.columns]
    groups = tuple(
        RowGroup(
            metadata.row_group(number).num_rows,
            sum(metadata.row_group(number).column(column).total_uncompressed_size for column in columns),
        )
        for number in range(metadata.num_row_groups)
    )
    for name, seen in types.items():
        if pa.types.is_integer(seen.type) and seen.type.bit_width == 64:
            path = ".".join(locate(name, schema) or ())
            types[name] = replace(seen, wide=_is_wide(metadata, paths.index(path)))
    return Look(replace(file, row_groups=groups), tuple(schema.names), types)


def _footer(storage: Storage, file: InputFile, end: bytes | None) -> pq.FileMetaData:
    """A file's footer, from its last bytes if they are there and suffice."""
    if end is not None:
        with contextlib.suppress(pa.ArrowException, OSError):
            return pq.read_metadata(pa.BufferReader(end))
    try:
        with storage.open(file.name) as handle:
            return pq.read_metadata(handle)
    except StorageError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise InputError(_not_what_it_says(storage, file) or f"broken Parquet ({first_line(error)})") from error


def _not_what_it_says(storage: Storage, file: InputFile) -> str | None:
    """What a file really is that could not be read as its name says."""
    with contextlib.suppress(StorageError):
        head = storage.read_head(file.name, HEAD_BYTES)
        if not head.startswith(OWN_MAGIC[file.format]):
            return recognise(head)
        if file.format == "parquet":
            return "broken Parquet (it has no footer: cut short, or still being written); copy it again"
    return None


def _is_wide(metadata: pq.FileMetaData, column: int) -> bool:
    """Whether integers of a column may be too large for a double, by the file's statistics."""
    for number in range(metadata.num_row_groups):
        statistics = metadata.row_group(number).column(column).statistics
        if statistics is None or not statistics.has_min_max:
            return True
        if not -EXACT_INTEGERS <= statistics.min <= statistics.max <= EXACT_INTEGERS:
            return True
    return False


def _look_arrow(storage: Storage, file: InputFile, wanted: Wanted, _end: bytes | None) -> Look:
    with _naming(storage, file), open_arrow(storage, file) as stream:
        schema = stream.schema
        names = tuple(schema.names)
        try:
            return Look(file, names, _check_schema(schema, wanted))
        except InputError:
            if any(len(batch) for batch in stream.batches):
                raise
            return Look(file, names, _kept_types(schema, wanted), empty=True)


@contextlib.contextmanager
def _naming(storage: Storage, file: InputFile) -> Iterator[None]:
    """Where a file cannot be read, says what it really is, if that is known."""
    try:
        yield
    except InputError as error:
        found = _not_what_it_says(storage, file)
        if not found:
            raise
        raise InputError(found) from error


def _check_schema(schema: pa.Schema, wanted: Wanted) -> dict[str, Seen]:
    """The types of the columns to keep; raises InputError if the text's are missing or of the wrong type."""
    places = {name: locate(name, schema) for name in wanted.text.columns}
    require(wanted.text.columns, lambda name: places[name] is not None, schema.names, "input.text")
    problem = require_strings(wanted.text, [(name, type_at(place, schema)) for name, place in places.items() if place])
    if problem:
        raise InputError(problem)
    return _kept_types(schema, wanted)


def _kept_types(schema: pa.Schema, wanted: Wanted) -> dict[str, Seen]:
    types = {}
    for name in wanted.keep:
        place = locate(name, schema)
        if place:
            kind = plain(type_at(place, schema))
            types[name] = Seen(kind, wide=bool(pa.types.is_integer(kind) and kind.bit_width == 64))
    return types


# -- line formats --------------------------------------------------------------------------------------------------


def _first_lines(storage: Storage, file: InputFile, wanted: Wanted) -> list[bytes]:
    return first_lines(storage, file, SAMPLE_LINES, SAMPLE_AHEAD, header=not wanted.options.columns)


def _encoding_notices(lines: Sequence[bytes], options: LineOptions) -> tuple[str, ...]:
    bad = [line for line in lines if decode(line, options)[1]]
    other = other_codec(lines, options) if bad else None
    if not other:
        return ()
    return (
        f"{len(bad):,} of its first {len(lines):,} lines are not {options.encoding}, but all are valid {other}; "
        f"set input.encoding={other} if that is what it is",
    )


def _look_text(storage: Storage, file: InputFile, wanted: Wanted, _end: bytes | None) -> Look:
    text = wanted.text
    if text.joined:
        raise InputError(f"a line of text has no columns for the template {text.template!r} (set input.text)")
    lines = _first_lines(storage, file, wanted)
    notices = list(_encoding_notices(lines, wanted.options))
    tabs = {line.count(b"\t") for line in lines if line.strip()}
    if len(tabs) == 1 and tabs != {0} and len(lines) > 1:
        (count,) = tabs
        first = decode(lines[0], wanted.options)[0].strip("\ufeff\r").split("\t")
        header = f", and its first line names {text.template!r}" if text.template in first else ""
        notices.append(
            f"every line has {count:,} tabs{header}, and each line is embedded as a whole; "
            "set input.format=tsv if these are columns"
        )
    types = {name: Seen(pa.string()) for name in wanted.keep if name in text.columns}
    return Look(file, text.columns, types, tuple(notices))


def _look_csv(storage: Storage, file: InputFile, wanted: Wanted, _end: bytes | None) -> Look:
    lines = _first_lines(storage, file, wanted)
    layout = csv_layout(storage, file, wanted.options, lines)
    present = layout.names
    if not present:
        return Look(file, (), empty=True)
    notices = list(_encoding_notices(lines, wanted.options))
    needed = [*wanted.text.columns, *wanted.keep]
    check_csv_names(present, needed)
    try:
        require(wanted.text.columns, lambda name: own_name(name, present) is not None, present, "input.text")
    except InputError as error:
        if notices:
            raise InputError(f"{_named(present)}; {notices[0]}") from error
        raise InputError(f"{error}{_header_hint(present, layout.in_file)}") from error
    quoted = sum(line.count(b'""') > 0 and (b'\t"' in line or line.startswith(b'"')) for line in lines)
    if file.format == "tsv" and wanted.options.quoting is None and quoted:
        notices.append(
            f"{quoted:,} of its first {len(lines):,} lines have values in doubled quotes, which TSV takes as they are; "
            "set input.quoting=minimal to read them as CSV does"
        )
    if layout.in_file and len(present) > 1 and lines and lines[0] in lines[1:]:
        notices.append("its header line is repeated between the rows; the repetitions are not embedded")
    types = {name: Seen(pa.string(), loose=True) for name in wanted.keep if own_name(name, present) is not None}
    return Look(file, present, types, tuple(notices))


def _header_hint(present: Sequence[str], in_file: bool) -> str:
    """What may be wrong with a header that lacks the column asked for."""
    if len(present) == 1:
        for delimiter in (";", "\t", "|", ","):
            if delimiter in present[0]:
                return f"; if its values are separated by {delimiter!r}, set input.delimiter"
    return "; if it has no header line, name its columns with input.columns" if in_file else ""


def check_csv_names(present: Sequence[str], needed: Iterable[str]) -> None:
    """Raises InputError if a column that is needed stands twice in a header."""
    for name in needed:
        own = own_name(name, present)
        if own is not None and present.count(own) > 1:
            raise InputError(f"column {own!r} stands {present.count(own)} times in its header; give each its own name")


def _named(present: Sequence[str]) -> str:
    return f"its header cannot be read ({', '.join(name.encode('utf-8', 'replace').decode() for name in present[:5])})"


def _look_jsonl(storage: Storage, file: InputFile, wanted: Wanted, _end: bytes | None) -> Look:
    lines = _first_lines(storage, file, wanted)
    objects = json_objects(lines, wanted.options)
    names = tuple(dict.fromkeys(name for item in objects for name in item))
    types = {}
    for name in wanted.keep:
        values = [value for item in objects if (value := pick(item, name)) is not MISSING]
        if values:
            types[name] = json_type(values)
    texts = wanted.text.columns
    if objects and not any(pick(item, name) is not MISSING for name in texts for item in objects):
        require(texts, lambda _: False, names, "input.text")
    for name in texts:
        values = [value for item in objects if (value := pick(item, name)) not in (MISSING, None)]
        nested = {type(value) for value in values}
        if nested == {dict}:
            inner = next((key for value in values for key, item in value.items() if isinstance(item, str)), None)
            hint = f", such as {name}.{inner}" if inner else ""
            raise InputError(
                f"column {name!r} is a JSON object, not a string; name one of its fields with input.text{hint}"
            )
        if nested == {list}:
            raise InputError(
                f"column {name!r} is a JSON list, not a string; make one string of it in a column of its own "
                "and name that with input.text"
            )
    absent = tuple(name for name in texts if objects and all(pick(item, name) is MISSING for item in objects))
    return Look(file, names, types, _encoding_notices(lines, wanted.options), absent=absent)


def json_type(values: Sequence[Any]) -> Seen:
    """bool, int64, uint64 or double; what is mixed or nested is kept as a string of JSON."""
    kinds = {type(value) for value in values if value is not None}
    if not kinds:
        return Seen(pa.null(), loose=True)
    if kinds == {bool}:
        return Seen(pa.bool_(), loose=True)
    if kinds <= {int, float}:
        integers = [value for value in values if type(value) is int]
        low, high = (min(integers), max(integers)) if integers else (0, 0)
        wide = not -EXACT_INTEGERS <= low <= high <= EXACT_INTEGERS
        if float in kinds:
            return Seen(pa.string(), wide, True, spelled=True) if wide else Seen(pa.float64(), loose=True)
        if low >= -(2**63) and high < 2**63:
            return Seen(pa.int64(), wide, loose=True)
        if low >= 0 and high < 2**64:
            return Seen(pa.uint64(), wide, loose=True)
        return Seen(pa.string(), wide, True, spelled=True)
    return Seen(pa.string(), loose=True)


def look_later(storage: Storage, file: InputFile, wanted: Wanted, names: Collection[str]) -> dict[str, Seen]:
    """What is seen of columns beyond the first lines of a JSON lines file, as far as ``LATE_BYTES`` reach."""
    found: dict[str, Seen] = {}
    read = 0
    with contextlib.suppress(InputError, StorageError):  # what is broken further on is told when it is read
        for block in read_lines(storage, file, 0, min(file.size, LATE_BYTES), SAMPLE_AHEAD):
            objects = json_objects(block.lines, wanted.options)
            for name in names:
                values = [value for item in objects if (value := pick(item, name)) is not MISSING]
                seen = json_type(values) if values else None
                if seen and not pa.types.is_null(seen.type):
                    found[name] = seen
            read += block.read
            if len(found) == len(names) or read > LATE_BYTES:
                break
    return found
