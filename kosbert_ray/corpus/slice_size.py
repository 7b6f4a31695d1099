"""Chooses the size of slices by a pure rule: listing, speed of a plain device. The number of encoders does not enter."""

from __future__ import annotations

from collections.abc import Iterable

from kosbert_ray.corpus.files import InputFile
from kosbert_ray.corpus.formats.table import info_of
from kosbert_ray.corpus.options import MAX_BYTES

# How long an encoder should take for a slice: long enough to hide a commit, short enough to lose little in a crash.
CPU_SECONDS, GPU_SECONDS = 20.0, 2.0
LEAST_SLICES = 16  # of a corpus, so that several encoders end at about the same time
EXPANSION = 3  # bytes of text per byte of a compressed file, or of an Arrow file


def text_bytes(file: InputFile) -> int:
    """Bytes of a file's text: exact for Parquet once the footer has been read, otherwise an estimate from its size."""
    if file.row_groups:
        return sum(group.bytes for group in file.row_groups)
    return file.size * (1 if info_of(file).lines and file.compression is None else EXPANSION)


def target_bytes(files: Iterable[InputFile], bytes_per_second: float, gpu: bool) -> int:
    """The bytes of text that a slice should have.

    Args:
        files: the corpus.
        bytes_per_second: text that a plain core or a plain GPU encodes in a second.
        gpu: whether encoders have a GPU.
    """
    seconds = GPU_SECONDS if gpu else CPU_SECONDS
    share = sum(map(text_bytes, files)) // LEAST_SLICES
    return max(1, min(MAX_BYTES, round(seconds * bytes_per_second), share))
