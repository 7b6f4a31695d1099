"""A format of its own, in one file: every line is a JSON array ``[id, text]``."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pyarrow as pa

from kosbert_ray.corpus.columns import Columns
from kosbert_ray.corpus.files import InputFile
from kosbert_ray.corpus.formats.base import Look, Wanted
from kosbert_ray.corpus.formats.line_based import LineFormat, decoded
from kosbert_ray.corpus.fragments import Fragment
from kosbert_ray.corpus.lines import Lines
from kosbert_ray.corpus.names import require
from kosbert_ray.corpus.options import LineOptions
from kosbert_ray.corpus.row_table import Row
from kosbert_ray.corpus.types import Seen
from kosbert_ray.storage import Storage

NAMES = ("id", "text")


class JsonArrays(LineFormat):
    def look(self, storage: Storage, file: InputFile, wanted: Wanted, tail: bytes | None) -> Look:
        assert self.first_lines(storage, file, wanted)
        require(wanted.text.columns, NAMES.__contains__, NAMES, "input.text")
        kinds = {"id": Seen(pa.int64()), "text": Seen(pa.string())}
        return Look(file, NAMES, {name: kinds[name] for name in wanted.keep if name in kinds})

    def records(
        self, storage: Storage, fragment: Fragment, columns: Columns, options: LineOptions
    ) -> Iterator[tuple[Iterator[Row], int]]:
        for block in self.blocks(storage, fragment, options):
            yield _rows(block, options), block.read


def _rows(block: Lines, options: LineOptions) -> Iterator[Row]:
    for position, content, reason in decoded(block, options):
        try:
            yield position, dict(zip(NAMES, json.loads(content), strict=True)), reason
        except ValueError as error:
            yield position, {}, f"bad array ({error})"
