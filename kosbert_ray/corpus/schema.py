"""Inspects the files and settles the columns to read and their types, before the run starts.

Every shard of a job has the same schema, so column types must not depend on the values of a slice. Parquet and Arrow files
declare theirs, and line files are sampled; a column gets the narrowest type that holds the values of all files. A file that
cannot be read, or whose values do not fit, is reported and skipped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain

import pyarrow as pa

from kosbert_ray.corpus.columns import Columns, path_keys
from kosbert_ray.corpus.files import InputFile
from kosbert_ray.corpus.footers import Footers
from kosbert_ray.corpus.formats.base import Look, Wanted
from kosbert_ray.corpus.formats.table import format_of, info_of
from kosbert_ray.corpus.listing import Corpus, FailedFile, forced_format
from kosbert_ray.corpus.names import composed, require
from kosbert_ray.corpus.options import LineOptions
from kosbert_ray.corpus.text import RowText
from kosbert_ray.corpus.types import Seen, as_parquet, may_cast
from kosbert_ray.errors import InputError, KosbertError, StorageError, UsageError, shown_names
from kosbert_ray.units import plural

FOOTER_THREADS = 16
LOCAL_FOOTER_THREADS = 2  # more threads only contend: 100,000 footers took 10 s with 2, 15 s with 16
FOOTERS_AT_ONCE = 256
MANY_FOOTERS = 512  # from here on, connecting another client to the store pays
SAMPLE_FILES = 256  # line files to inspect
LATE_FILES = 8  # files to search further for a column that no sample has


def inspect(
    corpus: Corpus,
    text: str | RowText,
    keep: Sequence[str],
    options: LineOptions,
    types: Mapping[str, pa.DataType] | None = None,
    settled: pa.Schema | None = None,
    footers: Footers | None = None,
) -> tuple[Corpus, Columns]:
    """Inspects the files: Parquet footers, Arrow schemas, CSV headers and the first lines of other files.

    Args:
        corpus: the listing.
        text: name of the text column, or how the text is made.
        keep: names of the columns to carry through.
        options: how line formats are read.
        types: types of columns to keep that override those of the files (``input.types``).
        settled: the columns of an existing output. Files are cast to them without loss, or fail.
        footers: row groups of files that an earlier run of this output inspected with success; they are not read again.

    Returns:
        The corpus with the row groups of Parquet files filled in and the files that failed moved to ``failed``; and the
        columns with their types.

    Raises:
        InputError: no file can be embedded (with the first file's message), or no file has a column.
        StorageError: no file can be read.
        UsageError: ``types`` names a column that is not kept, or a type that Parquet cannot store.
    """
    text = RowText(text) if isinstance(text, str) else text
    types = dict(types or {})
    for name in types:
        if name not in keep:
            raise UsageError(f"input.types: {name!r} is not among input.keep")
    wanted = Wanted(text, keep, options)
    chosen, notices = _chosen(corpus)
    # Whether a column to keep is in the files or in their paths is known from all of them only.
    remembered = _remembered(chosen, footers) if footers and not _path_columns(corpus, keep) else {}
    found = _look_into(corpus, [file for file in chosen if file.name not in remembered], wanted)
    if remembered and not any(isinstance(item, Look) for item in found.values()):
        remembered = {}
        found |= _look_into(corpus, [file for file in chosen if file.name not in found], wanted)
    looks = [item for item in found.values() if isinstance(item, Look)]
    errors = {name: item for name, item in found.items() if isinstance(item, KosbertError)}
    if errors and not looks:
        raise next(iter(errors.values()))
    for name, error in errors.items():
        errors[name] = _with_folder(error, name, looks)

    _require_text(corpus, wanted, looks)
    partitions = _partitions(corpus, keep, looks)
    held = [name for name in keep if name not in partitions]
    seen, misfits = _settle(corpus, wanted, looks, held, types, settled)
    errors |= misfits
    if looks and len(misfits) == len(looks):
        raise next(iter(misfits.values()))
    fields = {name: pa.field(name, kind) for name, kind in seen.items()}
    fields |= {name: pa.field(name, pa.string()) for name in partitions}

    failed = tuple(FailedFile(name, str(error)) for name, error in errors.items())
    files = tuple(
        item.file if isinstance(item := found.get(file.name), Look) else remembered.get(file.name, file)
        for file in corpus.files
        if file.name not in errors
    )
    notices += _notices(corpus, [item for item in looks if item.file.name not in errors], held, partitions)
    corpus = replace(
        corpus, files=files, failed=(*corpus.failed, *failed), notices=(*corpus.notices, *dict.fromkeys(notices))
    )
    kept = [fields[name] for name in keep]
    if text.copy:
        kept.append(pa.field(text.copy, pa.string()))
    return corpus, Columns(text, pa.schema(kept), partitions)


# -- inspecting ----------------------------------------------------------------------------------------------------


def _chosen(corpus: Corpus) -> tuple[list[InputFile], list[str]]:
    """The files to inspect (all with a schema, and line files at even distances), and notices about the others."""
    full = [file for file in corpus.files if file.size]
    notices = []
    if len(full) < len(corpus.files):
        empty = [file.name for file in corpus.files if not file.size]
        notices.append(f"skipped {plural(len(empty), 'empty file')} ({shown_names(empty)})")
    lines = [file for file in full if info_of(file).lines]
    if len(lines) > SAMPLE_FILES:
        places = {number * (len(lines) - 1) // (SAMPLE_FILES - 1) for number in range(SAMPLE_FILES)}
        notices.append(
            f"columns and types come from {len(places):,} of {plural(len(lines), 'line file')}; input.types overrides them"
        )
        lines = [lines[place] for place in sorted(places)]
    names = {file.name for file in lines}
    return [file for file in full if not info_of(file).lines or file.name in names], notices


def _remembered(files: Sequence[InputFile], footers: Footers) -> dict[str, InputFile]:
    """The files whose row groups are known, except the first: a run inspects one file at least."""
    candidates = (file for file in files[1:] if not info_of(file).lines)
    return {file.name: filled for file in candidates if (filled := footers.filled(file))}


def _look_into(corpus: Corpus, files: Sequence[InputFile], wanted: Wanted) -> dict[str, Look | KosbertError]:
    # Many at a time: with 100,000 files, queueing them one by one would take longer than reading the footers.
    threads = FOOTER_THREADS if corpus.storage.remote else LOCAL_FOOTER_THREADS
    each = min(FOOTERS_AT_ONCE, -(-len(files) // (4 * threads)) or 1)
    runs = [files[start : start + each] for start in range(0, len(files), each)]
    tails_first = corpus.storage.remote and (len(files) < MANY_FOOTERS or corpus.storage.arrow is None)
    with ThreadPoolExecutor(threads) as pool:
        found = chain.from_iterable(pool.map(lambda run: _look_at(corpus, run, wanted, tails_first), runs))
        return {file.name: item for file, item in zip(files, found, strict=True)}


def _look_at(corpus: Corpus, files: Sequence[InputFile], wanted: Wanted, tails_first: bool) -> list[Look | KosbertError]:
    """Inspects files.

    Args:
        corpus: the listing.
        files: the files.
        wanted: what the job asks of each.
        tails_first: fetch the ends of files with a footer together, in one request each, as sizes are known.
    """
    tails = _tails(corpus, files) if tails_first else {}
    looks: list[Look | KosbertError] = []
    for file in files:
        where = corpus.storage.url(file.name)
        try:
            looks.append(format_of(file).look(corpus.storage, file, wanted, tails.get(file.name)))
        except InputError as error:
            text = str(error) if str(error).startswith(where) else f"{where}: {error}"
            source = f"; read as {file.format} because of input.format={file.format}" if forced_format(file) else ""
            looks.append(type(error)(text + source))
        except StorageError as error:
            looks.append(error)
    return looks


def _tails(corpus: Corpus, files: Sequence[InputFile]) -> dict[str, bytes | None]:
    """The last bytes of the files whose formats can make use of them."""
    tails: dict[str, bytes | None] = {}
    for size in {format_of(file).tail_bytes for file in files} - {0}:
        sizes = {file.name: file.size for file in files if format_of(file).tail_bytes == size}
        tails |= zip(sizes, corpus.storage.read_ends(sizes, size), strict=True)
    return tails


def _with_folder(error: KosbertError, name: str, looks: Sequence[Look]) -> KosbertError:
    """Adds a hint to the error if only files of other folders are good: this folder may contain other data."""
    folder = name.rpartition("/")[0]
    if "no column" not in str(error) or any(item.file.name.rpartition("/")[0] == folder for item in looks):
        return error
    other = looks[0].file.name.rpartition("/")[0] or "."
    return type(error)(
        f"{error}; files in {other}/ have it, so {folder or '.'}/ may contain other data: name one folder as the input"
    )


def _require_text(corpus: Corpus, wanted: Wanted, looks: Sequence[Look]) -> None:
    """Raises InputError if no file has a text column: a misspelt column would be empty in every row."""
    full = [item for item in looks if item.names and not item.empty]
    for name in wanted.text.columns:
        if not full or not all(name in item.absent for item in full):
            continue
        if any(format_of(item.file).look_later(corpus.storage, item.file, wanted, [name]) for item in full[:LATE_FILES]):
            continue
        try:
            require([name], lambda _: False, full[0].names, "input.text")
        except InputError as error:
            raise InputError(f"{corpus.storage.url(full[0].file.name)}: {error}") from error


# -- settling ------------------------------------------------------------------------------------------------------


def _partitions(corpus: Corpus, keep: Sequence[str], looks: Sequence[Look]) -> tuple[str, ...]:
    """The columns to keep that are keys in the paths and in no file."""
    return tuple(name for name in _path_columns(corpus, keep) if not any(name in item.types for item in looks))


def _path_columns(corpus: Corpus, keep: Sequence[str]) -> list[str]:
    """The columns to keep that are keys in the paths."""
    keys: set[str] = set()
    for folder in {file.name.rpartition("/")[0] for file in corpus.files}:
        keys |= path_keys(f"{corpus.storage.url(folder)}/").keys()
    return [name for name in keep if composed(name) in keys]


def _settle(
    corpus: Corpus,
    wanted: Wanted,
    looks: Sequence[Look],
    names: Sequence[str],
    types: Mapping[str, pa.DataType],
    settled: pa.Schema | None,
) -> tuple[dict[str, pa.DataType], dict[str, KosbertError]]:
    """Returns the type of each column, and errors for the files that do not fit."""
    given = {field.name: field.type for field in settled or ()} | dict(types)
    seen = {name: _first_kinds(looks, name) for name in names}
    unknown = [
        name
        for name in names
        if name not in given and all(pa.types.is_null(item.type) and item.loose for item in seen[name])
    ]
    if unknown:
        _search_further(corpus, wanted, looks, unknown, seen)
    missing = [name for name in names if not seen[name] and name not in given]
    if missing and looks:
        where = corpus.storage.url(looks[0].file.name)
        try:
            require(missing, lambda _: False, looks[0].names, "input.keep")
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
    found: dict[str, pa.DataType] = {}
    misfits: dict[str, KosbertError] = {}
    for name in names:
        kind = given.get(name)
        bad: list[Seen] = []
        if kind is not None:
            bad = [item for item in seen[name] if not (item.loose or may_cast(item.type, kind))]
        else:
            kind, bad = _join(seen[name])
        if settled is None or name in types or name not in settled.names:
            kind = _writable(name, kind)
        found[name] = kind
        if bad:
            misfits |= _misfits(corpus, looks, name, kind, bad, given=name in given)
    return found, misfits


def _first_kinds(looks: Iterable[Look], name: str) -> list[Seen]:
    """The distinct types of a column, in the order of the files."""
    having = [item for item in looks if name in item.types]
    having = [item for item in having if not item.empty] or having
    return list(dict.fromkeys(item.types[name] for item in having))


def _join(kinds: Sequence[Seen]) -> tuple[pa.DataType, list[Seen]]:
    """Returns the type that holds all kinds, and the kinds that cannot be joined with the ones before."""
    both, bad = None, []
    for kind in kinds:
        joined = kind if both is None else both.join(kind)
        if joined is None:
            bad.append(kind)
        else:
            both = joined
    if both is None or (pa.types.is_null(both.type) and both.loose):  # JSON in which the column has only nulls
        return pa.string(), bad
    return both.type, bad


def _writable(name: str, kind: pa.DataType) -> pa.DataType:
    try:
        return as_parquet(kind)
    except UsageError as error:
        raise UsageError(
            f"input.keep: column {name!r}: {error}; leave it out, or set input.types to another type"
        ) from error


def _misfits(
    corpus: Corpus, looks: Sequence[Look], name: str, kind: pa.DataType, bad: Sequence[Seen], given: bool
) -> dict[str, KosbertError]:
    fine = next((item.file.name for item in looks if name in item.types and item.types[name] not in bad), "")
    other = f"in {fine} it is" if fine and not given else "it must be"
    return {
        item.file.name: InputError(
            f"{corpus.storage.url(item.file.name)}: column {name!r} is {item.types[name].type}, but {other} {kind}, and no "
            f"type holds both; embed such files into separate outputs, or set input.types={{{name}: string}}"
        )
        for item in looks
        if name in item.types and item.types[name] in bad and not item.empty
    }


def _search_further(
    corpus: Corpus, wanted: Wanted, looks: Sequence[Look], unknown: Sequence[str], seen: dict[str, list[Seen]]
) -> None:
    """Searches files with an open schema for columns that the samples lack or that have only nulls."""
    left = set(unknown)
    for item in [item for item in looks if format_of(item.file).open_schema][:LATE_FILES]:
        if not left:
            return
        for name, kind in format_of(item.file).look_later(corpus.storage, item.file, wanted, left).items():
            seen[name] = [*seen[name], kind]
            left.discard(name)


def _notices(corpus: Corpus, looks: Sequence[Look], names: Sequence[str], partitions: Sequence[str]) -> list[str]:
    notices: list[str] = []
    same: dict[str, list[str]] = {}
    for item in looks:
        for notice in item.notices:
            same.setdefault(notice.lstrip("0123456789,"), []).append(f"{corpus.storage.url(item.file.name)}: {notice}")
    for lines in same.values():
        notices.append(lines[0] + (f" (and in {plural(len(lines) - 1, 'other file')})" if len(lines) > 1 else ""))
    for name in names:
        without = [item.file.name for item in looks if name not in item.types and item.names and not item.empty]
        if without:
            notices.append(f"column {name!r} is null in {plural(len(without), 'file')} without it ({shown_names(without)})")
    for name in partitions:
        key = composed(name)
        without = [file.name for file in corpus.files if key not in path_keys(corpus.storage.url(file.name))]
        if without:
            notices.append(
                f"column {name!r} is null in {plural(len(without), 'file')} without {name}= in the path "
                f"({shown_names(without)})"
            )
    return notices
