"""Which columns are read and of what type they are, settled before anything runs.

Every shard of a job has the same schema, so the types of the columns to keep cannot be left to what a slice happens to
hold. Each Parquet and Arrow file says its own, and of line files a sample is read; a column gets the narrowest type that
holds the values of all of them. A file that cannot be read, or whose values do not fit, fails by name; the others go on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from urllib.parse import unquote

import pyarrow as pa

from kosbert_ray.corpus.lines import LineOptions
from kosbert_ray.corpus.listing import BINARY, Corpus, FailedFile, InputFile
from kosbert_ray.corpus.look import Look, Wanted, look, look_later
from kosbert_ray.corpus.names import composed, require
from kosbert_ray.corpus.text import RowText
from kosbert_ray.corpus.types import Seen, as_parquet, may_cast
from kosbert_ray.errors import InputError, KosbertError, StorageError, UsageError, shown_names

FOOTER_THREADS = 16
LOCAL_FOOTER_THREADS = 2  # more of them only wait for each other: 100,000 footers took 10 s with 2, 15 s with 16
FOOTERS_AT_ONCE = 256
FOOTER_BYTES = 64 * 2**10  # of a file's end; most footers are smaller
SAMPLE_FILES = 256  # line files to look into
LATE_FILES = 8  # of them, to be searched further for a column that none of the samples has

HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


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
    """Hive's keys in a path, in one Unicode form: ``a/year=2026/part.jsonl`` has year."""
    pairs = [part.partition("=") for part in path.split("/")[:-1] if "=" in part.lstrip("=")]
    return {composed(key): None if value == HIVE_NULL else unquote(value) for key, _, value in pairs}


def inspect(
    corpus: Corpus,
    text: str | RowText,
    keep: Sequence[str],
    options: LineOptions,
    types: Mapping[str, pa.DataType] | None = None,
    settled: pa.Schema | None = None,
) -> tuple[Corpus, Columns]:
    """Looks into the files: Parquet footers, the heads of Arrow files, CSV headers, the first lines of the others.

    Args:
        corpus: the listing.
        text: name of the text column, or how the text is made.
        keep: names of the columns to carry through.
        options: how line formats are read.
        types: types of columns to keep, whatever the files say (``input.types``).
        settled: the columns that an existing output has already. Files are cast to them without loss, or fail.

    Returns:
        The corpus with every Parquet file's row groups filled in and without the files that failed, which it names; and the
        columns with their types.

    Raises:
        InputError: no file can be embedded (the message is the first one's), or a column is in none of them.
        StorageError: no file can be read.
        UsageError: ``types`` names a column that is not kept, or a type that Parquet cannot hold.
    """
    text = RowText(text) if isinstance(text, str) else text
    types = dict(types or {})
    for name in types:
        if name not in keep:
            raise UsageError(f"input.types: {name!r} is not among input.keep")
    wanted = Wanted(text, keep, options)
    chosen, notices = _chosen(corpus)
    found = _look_into(corpus, chosen, wanted)
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
        item.file if isinstance(item := found.get(file.name), Look) else file
        for file in corpus.files
        if file.name not in errors
    )
    notices += _notices(corpus, [item for item in looks if item.file.name not in errors], held, partitions)
    corpus = replace(
        corpus, files=files, failed=(*corpus.failed, *failed), notices=(*corpus.notices, *dict.fromkeys(notices))
    )
    return corpus, Columns(text, pa.schema([fields[name] for name in keep]), partitions)


# -- looking -------------------------------------------------------------------------------------------------------


def _chosen(corpus: Corpus) -> tuple[list[InputFile], list[str]]:
    """The files to look into: all columnar ones, and line files at even distances; and what to say of the others."""
    full = [file for file in corpus.files if file.size]
    notices = []
    if len(full) < len(corpus.files):
        empty = [file.name for file in corpus.files if not file.size]
        notices.append(f"{len(empty):,} files are empty and have no rows ({shown_names(empty)})")
    lines = [file for file in full if file.format not in BINARY]
    if len(lines) > SAMPLE_FILES:
        places = {number * (len(lines) - 1) // (SAMPLE_FILES - 1) for number in range(SAMPLE_FILES)}
        notices.append(
            f"columns and types are told from {len(places):,} of {len(lines):,} line files; input.types overrides them"
        )
        lines = [lines[place] for place in sorted(places)]
    names = {file.name for file in lines}
    return [file for file in full if file.format in BINARY or file.name in names], notices


def _look_into(corpus: Corpus, files: Sequence[InputFile], wanted: Wanted) -> dict[str, Look | KosbertError]:
    # Many at a time: of a hundred thousand files, the threads' own queue would take longer than the footers.
    threads = FOOTER_THREADS if corpus.storage.remote else LOCAL_FOOTER_THREADS
    each = min(FOOTERS_AT_ONCE, -(-len(files) // (4 * threads)) or 1)
    runs = [files[start : start + each] for start in range(0, len(files), each)]
    with ThreadPoolExecutor(threads) as pool:
        found = chain.from_iterable(pool.map(lambda run: _look_at(corpus, run, wanted), runs))
        return {file.name: item for file, item in zip(files, found, strict=True)}


def _look_at(corpus: Corpus, files: Sequence[InputFile], wanted: Wanted) -> list[Look | KosbertError]:
    """What the plan needs of each file, of Parquet in an object store by one request a file: its size is known already."""
    ends: dict[str, bytes | None] = {}
    parquet = {file.name: file.size for file in files if file.format == "parquet"}
    if corpus.storage.remote and parquet:
        ends = dict(zip(parquet, corpus.storage.read_ends(parquet, FOOTER_BYTES), strict=True))
    looks: list[Look | KosbertError] = []
    for file in files:
        try:
            looks.append(look(corpus.storage, file, wanted, ends.get(file.name)))
        except (InputError, StorageError) as error:
            looks.append(error)
    return looks


def _with_folder(error: KosbertError, name: str, looks: Sequence[Look]) -> KosbertError:
    """The error, with a hint if files of other folders are fine: then these hold another kind of data."""
    folder = name.rpartition("/")[0]
    if "no column" not in str(error) or any(item.file.name.rpartition("/")[0] == folder for item in looks):
        return error
    other = looks[0].file.name.rpartition("/")[0] or "."
    return type(error)(
        f"{error}; files in {other}/ have it, so {folder or '.'}/ may hold other data: name one folder as the input"
    )


def _require_text(corpus: Corpus, wanted: Wanted, looks: Sequence[Look]) -> None:
    """Raises InputError if no file has a column of the text: a misspelt one would be empty in every row."""
    full = [item for item in looks if item.names and not item.empty]
    for name in wanted.text.columns:
        if not full or not all(name in item.absent for item in full):
            continue
        if any(look_later(corpus.storage, item.file, wanted, [name]) for item in full[:LATE_FILES]):
            continue
        try:
            require([name], lambda _: False, full[0].names, "input.text")
        except InputError as error:
            raise InputError(f"{corpus.storage.url(full[0].file.name)}: {error}") from error


# -- settling ------------------------------------------------------------------------------------------------------


def _partitions(corpus: Corpus, keep: Sequence[str], looks: Sequence[Look]) -> tuple[str, ...]:
    """Which of the columns to keep are keys in the paths and in no file."""
    keys: set[str] = set()
    for folder in {file.name.rpartition("/")[0] for file in corpus.files}:
        keys |= path_keys(f"{corpus.storage.url(folder)}/").keys()
    asked = [name for name in keep if composed(name) in keys]
    return tuple(name for name in asked if not any(name in item.types for item in looks))


def _settle(
    corpus: Corpus,
    wanted: Wanted,
    looks: Sequence[Look],
    names: Sequence[str],
    types: Mapping[str, pa.DataType],
    settled: pa.Schema | None,
) -> tuple[dict[str, pa.DataType], dict[str, KosbertError]]:
    """The type of each column, and the files that do not fit."""
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
    """The different things seen of a column, in the order of the files."""
    having = [item for item in looks if name in item.types]
    having = [item for item in having if not item.empty] or having
    return list(dict.fromkeys(item.types[name] for item in having))


def _join(kinds: Sequence[Seen]) -> tuple[pa.DataType, list[Seen]]:
    """The type that holds all, and the kinds that do not go with the first ones."""
    both, bad = None, []
    for kind in kinds:
        joined = kind if both is None else both.join(kind)
        if joined is None:
            bad.append(kind)
        else:
            both = joined
    if both is None or (pa.types.is_null(both.type) and both.loose):  # JSON without a value so far
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
    other = f"in {fine} it is" if fine and not given else "it is to be"
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
    """Looks on in JSON lines files for columns that the samples lack, or have no value of."""
    left = set(unknown)
    for item in [item for item in looks if item.file.format == "jsonl"][:LATE_FILES]:
        if not left:
            return
        for name, kind in look_later(corpus.storage, item.file, wanted, left).items():
            seen[name] = [*seen[name], kind]
            left.discard(name)


def _notices(corpus: Corpus, looks: Sequence[Look], names: Sequence[str], partitions: Sequence[str]) -> list[str]:
    notices: list[str] = []
    same: dict[str, list[str]] = {}
    for item in looks:
        for notice in item.notices:
            same.setdefault(notice.lstrip("0123456789,"), []).append(f"{corpus.storage.url(item.file.name)}: {notice}")
    for lines in same.values():
        notices.append(lines[0] + (f" (and {len(lines) - 1:,} files more)" if len(lines) > 1 else ""))
    for name in names:
        without = [item.file.name for item in looks if name not in item.types and item.names and not item.empty]
        if without:
            notices.append(f"{len(without):,} files lack the column {name!r}, which is null there ({shown_names(without)})")
    for name in partitions:
        key = composed(name)
        without = [file.name for file in corpus.files if key not in path_keys(corpus.storage.url(file.name))]
        if without:
            notices.append(
                f"{len(without):,} files have no {name}= in their path; it is null there ({shown_names(without)})"
            )
    return notices
