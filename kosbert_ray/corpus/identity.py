"""Distinguishes local files whose content changed from files that were only touched, copied or restored.

A store's ETag identifies a file's content; a disk has only sizes and modification times. While a run encodes, its local
files are hashed (XXH128) in the background into ``_kosbert/hashes``. A later run hashes files with an equal size and
another modification time; if the hash is equal, they keep their identity and their shards.
"""

from __future__ import annotations

import io
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from kosbert_ray.corpus.files import InputFile
from kosbert_ray.corpus.listing import Corpus
from kosbert_ray.errors import StorageError
from kosbert_ray.storage import Storage
from kosbert_ray.storage.parquet import to_parquet

HASHES_FOLDER = "_kosbert/hashes"
BLOCK_BYTES = 4 * 2**20
FLUSH_SECONDS = 10.0
THREADS = 4
END_SECONDS = 60.0  # that a run waits at its end for missing hashes

Versions = Mapping[str, Collection[str]]  # by file, the versions that have committed slices


@dataclass(frozen=True)
class FileHash:
    """The hash of a local file.

    Attributes:
        name: path below the input folder.
        size: bytes.
        version: identifies the content; see :class:`~kosbert_ray.corpus.files.InputFile`.
        stat: mtime of the file when it was hashed.
        xxh128: the hash, in hex.
    """

    name: str
    size: int
    version: str
    stat: str
    xxh128: str


SCHEMA = pa.schema([(field.name, pa.int64() if field.name == "size" else pa.string()) for field in fields(FileHash)])


@dataclass(frozen=True)
class Settled:
    """A listing in which files have their identity.

    Attributes:
        corpus: the listing.
        same: names of files that were touched but not changed.
        changed: names of files that have changed since they were embedded, with the reason.
    """

    corpus: Corpus
    same: tuple[str, ...]
    changed: dict[str, str]


class FileHashes:
    """The hashes of an output's input files.

    Args:
        output: the output directory.
        run: name of the run, under which new hashes are written.
    """

    def __init__(self, output: Storage, run: str) -> None:
        self._output, self._run = output, run
        self._known: dict[str, list[FileHash]] = defaultdict(list)
        self._new: list[FileHash] = []
        self._files = 0
        for entry in output.list(HASHES_FOLDER):
            for item in _read(output, entry.name):
                self._known[item.name].append(item)

    def settle(self, corpus: Corpus, committed: Versions) -> Settled:
        """Restores the version under which each file was embedded, if its content is still the same.

        Args:
            corpus: the listing.
            committed: the versions in the output.
        """
        if corpus.storage.remote:
            return Settled(corpus, (), _changed_remotely(corpus.files, committed))
        touched = [file for file in corpus.files if committed.get(file.name) and file.version not in committed[file.name]]
        with ThreadPoolExecutor(THREADS) as pool:
            found = list(pool.map(lambda file: (file.name, *self._identity(corpus.storage, file, committed)), touched))
        same = {name: version for name, version, _ in found if version}
        files = tuple(
            replace(file, version=same[file.name], stat=file.version) if file.name in same else file
            for file in corpus.files
        )
        changed = {name: reason for name, version, reason in found if not version}
        return Settled(replace(corpus, files=files), tuple(same), changed)

    def _identity(self, storage: Storage, file: InputFile, committed: Versions) -> tuple[str, str]:
        """Returns the version under which a file was embedded, or an empty one and the reason."""
        known = [item for item in self._known[file.name] if item.version in committed[file.name]]
        if not known:
            return "", "its modification time differs, and it was not hashed when it was embedded"
        same_size = [item for item in known if item.size == file.size]
        if not same_size:
            return "", f"its size changed from {known[-1].size:,} to {file.size:,} bytes"
        for item in same_size:
            if item.stat == file.version:
                return item.version, ""
        digest = hash_file(storage, file)
        for item in same_size:
            if item.xxh128 == digest:
                self._add(replace(item, stat=file.version))
                return item.version, ""
        return "", "its content differs (XXH128)"

    def _add(self, item: FileHash) -> None:
        self._known[item.name].append(item)
        self._new.append(item)

    def has(self, file: InputFile) -> bool:
        """True if the hash of a file in its current state is known."""
        size, stat = file.listed
        return any((item.size, item.version, item.stat) == (size, file.version, stat) for item in self._known[file.name])

    def add(self, file: InputFile, digest: str) -> None:
        """Adds the hash of a file as it was planned."""
        self._add(FileHash(file.name, file.size, file.version, file.listed[1], digest))

    def flush(self) -> None:
        """Writes new hashes to a file of their own."""
        new, self._new = self._new, []
        if not new:
            return
        content = to_parquet(pa.Table.from_pylist([asdict(item) for item in new], SCHEMA))
        self._output.write_atomic(f"{HASHES_FOLDER}/{self._run}.{self._files:06d}.parquet", content)
        self._files += 1


def _changed_remotely(files: Iterable[InputFile], committed: Versions) -> dict[str, str]:
    return {
        file.name: "its ETag differs"
        for file in files
        if committed.get(file.name) and file.version not in committed[file.name]
    }


def _read(output: Storage, name: str) -> list[FileHash]:
    """Reads a file of hashes; a broken one is like a missing one: its input files count as not hashed."""
    try:
        table = pq.read_table(io.BytesIO(output.read(name))).select(SCHEMA.names).cast(SCHEMA)
    except (FileNotFoundError, pa.ArrowException, OSError, KeyError, ValueError):
        return []
    rows: list[dict[str, Any]] = table.to_pylist()
    return [FileHash(**row) for row in rows if None not in row.values()]


def hash_file(storage: Storage, file: InputFile, stop: Callable[[], bool] = lambda: False) -> str:
    """XXH128 of a local file; empty if it cannot be read, differs from the listing, or ``stop`` returns True."""
    digest = xxhash.xxh3_128()
    try:
        before = storage.entry(file.name)
        with storage.open(file.name) as reader:
            while block := reader.read(BLOCK_BYTES):
                if stop():
                    return ""
                digest.update(block)
        after = storage.entry(file.name)
    except (OSError, StorageError):
        return ""
    planned = file.listed
    same = (before.size, before.version) == planned == (after.size, after.version)
    return digest.hexdigest() if same else ""


class BackgroundHashing:
    """A context that hashes a corpus in the background; files not hashed at its end are left to a later run.

    Args:
        hashes: receives the hashes.
        corpus: the files; those in an object store need no hashes.
    """

    def __init__(self, hashes: FileHashes, corpus: Corpus) -> None:
        self._hashes, self._corpus = hashes, corpus
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="hashing")

    def __enter__(self) -> BackgroundHashing:
        if not self._corpus.storage.remote:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._thread.is_alive():
            if kind is None:
                self._thread.join(END_SECONDS)
            self._stop.set()
            self._thread.join(END_SECONDS)
        self._flush()

    def _run(self) -> None:
        flushed = time.monotonic()
        for file in self._corpus.files:
            if self._stop.is_set():
                return
            if not self._hashes.has(file) and (digest := hash_file(self._corpus.storage, file, self._stop.is_set)):
                self._hashes.add(file, digest)
            if time.monotonic() - flushed > FLUSH_SECONDS:
                self._flush()
                flushed = time.monotonic()

    def _flush(self) -> None:
        try:
            self._hashes.flush()
        except StorageError:
            return  # costs a later run a comparison; the run itself reports a store that refuses
