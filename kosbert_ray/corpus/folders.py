"""Recognises folders whose files are not all input: tables with a log, datasets with caches, outputs of kosbert-ray.

A table format keeps deleted and replaced rows in its folder, and only its log says which files are current. Such a folder
is refused unless a glob names the files. Caches and outputs of kosbert-ray are skipped with a notice.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from kosbert_ray.errors import InputError, StorageError, shown_names
from kosbert_ray.storage import FileEntry, Storage
from kosbert_ray.units import plural

OUTPUT_MARK = "_kosbert/job.json"


@dataclass(frozen=True)
class Table:
    """A table format.

    Attributes:
        name: the format, with an article.
        part: a part of the path of each file that marks a table; a quick test for a million names.
        mark: matches a file that marks a table; its first group is the table's folder.
        remedy: how to get the current rows.
    """

    name: str
    part: str
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
    """Removes files that are not part of the corpus.

    Args:
        storage: the input folder.
        everything: all files in it, including hidden ones.
        entries: the files to read.
        strict: whether to refuse tables; otherwise they get a notice, as a glob names their files.

    Returns:
        The remaining entries, and notices.

    Raises:
        InputError: the input is a table with a log, or a dataset whose rows are selected by an indices file.
        StorageError: a ``state.json`` cannot be read.
    """
    notices: list[str] = []
    entries, outputs = _without_outputs(everything, entries)
    if outputs:
        notices.append(
            f"skipped {plural(len(outputs), 'output')} of kosbert-ray ({shown_names(outputs)}); "
            "to embed the columns of an output, name it as the input"
        )
    names = [entry.name for entry in entries]
    for table in TABLES:
        marks = (table.mark.match(entry.name) for entry in everything if table.part in entry.name)
        for folder in sorted({match[1] or "" for match in marks if match}):
            if not any(_below(name, folder) for name in names):
                continue
            what = f"{storage.url(folder)}: this is {table.name}; its folder may contain rows that were deleted or replaced"
            if strict:
                raise InputError(f"{what}; {table.remedy} (or name its files with a glob to read them all)")
            notices.append(f"{what}, and all matching files are read")
    entries, caches = _without_caches(storage, everything, entries)
    if caches:
        notices.append(f"skipped {plural(len(caches), 'cache file')} of Hugging Face datasets ({shown_names(caches)})")
    return entries, notices


def _below(name: str, folder: str) -> bool:
    return not folder or name.startswith(f"{folder}/")


def _without_outputs(everything: Sequence[FileEntry], entries: Sequence[FileEntry]) -> tuple[list[FileEntry], list[str]]:
    """Removes entries inside outputs of kosbert-ray; if the input itself is an output, its columns are the input."""
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
    """Removes the caches that ``datasets`` leaves beside a dataset's own files.

    ``save_to_disk`` lists the dataset's files in ``state.json``; in the hub's cache folder, cache-*.arrow are caches.
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
            cached = {other for other in siblings[folder] if other.startswith("cache-")}
            own[folder] = siblings[folder] - cached if "dataset_info.json" in siblings[folder] else None
    kept: list[FileEntry] = []
    caches: list[FileEntry] = []
    for entry in entries:
        folder, _, name = entry.name.rpartition("/")
        files = own.get(folder) if name.endswith(".arrow") else None
        (kept if files is None or name in files else caches).append(entry)
    return kept, [entry.name for entry in caches]


def _data_files(storage: Storage, name: str) -> set[str] | None:
    """The files that a ``state.json`` lists; None if it does not belong to a dataset."""
    try:
        state = json.loads(storage.read(name))
        if state.get("_indices_data_files"):
            raise InputError(
                f"{storage.url(name)}: an indices file selects the rows of this dataset; load it with load_from_disk, call "
                "flatten_indices() and save it again"
            )
        return {file["filename"] for file in state["_data_files"]}
    except FileNotFoundError as error:
        raise StorageError(f"{storage.url(name)}: removed since the run began") from error
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
