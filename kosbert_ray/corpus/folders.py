"""Folders whose files are not simply their rows: tables with a log of their own, datasets with caches, our own outputs.

A table format keeps deleted and replaced rows in its folder; only its log says which files count. Such a folder is refused
by name, unless a glob spells out the files. Caches and outputs of kosbert-ray are left out with a notice.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from kosbert_ray.errors import InputError, StorageError, shown_names
from kosbert_ray.storage import FileEntry, Storage

OUTPUT_MARK = "_kosbert/job.json"


@dataclass(frozen=True)
class Table:
    """A table format: a file that marks its folder, and how to get the rows that count."""

    name: str
    part: str  # of the path of each file that marks such a folder: quick to look for among a million names
    mark: re.Pattern[str]
    remedy: str


TABLES = (
    Table(
        "a Delta table",
        "_delta_log/",
        re.compile(r"(?:^|(.*)/)_delta_log/[^/]+\.(?:json|checkpoint\.parquet)$"),
        "write its current rows to plain Parquet first, for example pq.write_table(DeltaTable(path).to_pyarrow_table(), …)",
    ),
    Table(
        "an Iceberg table",
        "metadata/",
        re.compile(r"(?:^|(.*)/)metadata/[^/]+\.metadata\.json$"),
        "write its current rows to plain Parquet first, for example pq.write_table(table.scan().to_arrow(), …)",
    ),
    Table(
        "a Hudi table",
        ".hoodie/",
        re.compile(r"(?:^|(.*)/)\.hoodie/[^/]+$"),
        "write its current rows to plain Parquet first, for example with spark.read.format('hudi')",
    ),
)


def check_folders(
    storage: Storage, everything: Sequence[FileEntry], entries: Sequence[FileEntry], strict: bool
) -> tuple[list[FileEntry], list[str]]:
    """Leaves out what is no row of the corpus.

    Args:
        storage: the input folder.
        everything: all that is in it, hidden names too.
        entries: the files to be read.
        strict: whether to refuse tables; a glob that spells out their files gets a notice instead.

    Returns:
        The entries that stay, and notices.

    Raises:
        InputError: the input is a table with a log of its own, or a dataset whose rows are chosen by an indices file.
        StorageError: a ``state.json`` cannot be read.
    """
    notices: list[str] = []
    entries, outputs = _without_outputs(everything, entries)
    if outputs:
        notices.append(
            f"skipped {len(outputs):,} folders that are outputs of kosbert-ray ({shown_names(outputs)}); "
            "to embed an output's own columns, name it as the input"
        )
    names = [entry.name for entry in entries]
    for table in TABLES:
        marks = (table.mark.match(entry.name) for entry in everything if table.part in entry.name)
        for folder in sorted({match[1] or "" for match in marks if match}):
            if not any(_below(name, folder) for name in names):
                continue
            what = f"{storage.url(folder)}: this is {table.name}; its folder may hold rows that were deleted or replaced"
            if strict:
                raise InputError(f"{what}; {table.remedy} (or name its files by a glob to read them all)")
            notices.append(f"{what}, and all files that match are read")
    entries, caches = _without_caches(storage, everything, entries)
    if caches:
        notices.append(f"skipped {len(caches):,} cache files of Hugging Face datasets ({shown_names(caches)})")
    return entries, notices


def _below(name: str, folder: str) -> bool:
    return not folder or name.startswith(f"{folder}/")


def _without_outputs(everything: Sequence[FileEntry], entries: Sequence[FileEntry]) -> tuple[list[FileEntry], list[str]]:
    """Entries that lie in no output of ours. If the input itself is one, its columns are what is asked for."""
    marks = (entry.name for entry in everything if entry.name.endswith(f"/{OUTPUT_MARK}"))
    outputs = {mark.removesuffix(f"/{OUTPUT_MARK}") for mark in marks}
    if not outputs:
        return list(entries), []
    kept = [entry for entry in entries if not any(folder in outputs for folder in _parents(entry.name))]
    hit = {folder for entry in entries for folder in _parents(entry.name) if folder in outputs}
    return kept, sorted(hit)


def _parents(name: str) -> list[str]:
    parts = name.split("/")[:-1]
    return ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _without_caches(
    storage: Storage, everything: Sequence[FileEntry], entries: Sequence[FileEntry]
) -> tuple[list[FileEntry], list[str]]:
    """Entries without the caches that ``datasets`` leaves beside a dataset's own files.

    ``save_to_disk`` names the dataset's files in ``state.json``; in the hub's cache folder cache-*.arrow are none of them.
    """
    if not any(entry.name.endswith(".arrow") for entry in entries):
        return list(entries), []
    siblings: dict[str, set[str]] = defaultdict(set)
    for entry in everything:
        folder, _, name = entry.name.rpartition("/")
        siblings[folder].add(name)
    own: dict[str, set[str] | None] = {}
    for entry in entries:
        folder, _, name = entry.name.rpartition("/")
        if not name.endswith(".arrow") or folder in own:
            continue
        if "state.json" in siblings[folder]:
            own[folder] = _data_files(storage, f"{folder}/state.json".lstrip("/"))
        else:
            caches = {other for other in siblings[folder] if other.startswith("cache-")}
            own[folder] = siblings[folder] - caches if "dataset_info.json" in siblings[folder] else None
    kept: list[FileEntry] = []
    left_out: list[FileEntry] = []
    for entry in entries:
        folder, _, name = entry.name.rpartition("/")
        files = own.get(folder) if name.endswith(".arrow") else None
        (kept if files is None or name in files else left_out).append(entry)
    return kept, [entry.name for entry in left_out]


def _data_files(storage: Storage, name: str) -> set[str] | None:
    """The files that a ``state.json`` names; None if it is not that of a dataset."""
    try:
        state = json.loads(storage.read(name))
        if state.get("_indices_data_files"):
            raise InputError(
                f"{storage.url(name)}: an indices file chooses the rows of this dataset; load it with load_from_disk, call "
                "flatten_indices() and save it again"
            )
        return {file["filename"] for file in state["_data_files"]}
    except FileNotFoundError as error:
        raise StorageError(f"{storage.url(name)}: removed since the run began") from error
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
