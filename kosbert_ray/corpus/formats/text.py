"""Plain text: every line is a text."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from kosbert_ray.corpus.columns import Columns
from kosbert_ray.corpus.files import InputFile
from kosbert_ray.corpus.formats.base import Look, Wanted
from kosbert_ray.corpus.formats.line_based import LineFormat, decode, decoded, encoding_notices
from kosbert_ray.corpus.fragments import Fragment
from kosbert_ray.corpus.lines import Lines
from kosbert_ray.corpus.options import LineOptions
from kosbert_ray.corpus.row_table import Row
from kosbert_ray.corpus.sniff import check_text
from kosbert_ray.corpus.types import Seen
from kosbert_ray.errors import InputError
from kosbert_ray.storage import Storage
from kosbert_ray.units import plural


class Text(LineFormat):
    """Reads plain text files. Their only column is the text, under any name."""

    def check(self, head: bytes) -> str | None:
        """See :meth:`LineFormat.check`; a text may begin with a tag."""
        return check_text(head, tags=True)

    def look(self, storage: Storage, file: InputFile, wanted: Wanted, tail: bytes | None) -> Look:  # noqa: ARG002
        """See :meth:`Format.look`."""
        text = wanted.text
        if text.joined:
            raise InputError(f"plain text has no columns for the template {text.template!r} (set input.text)")
        lines = self.first_lines(storage, file, wanted)
        notices = list(encoding_notices(lines, wanted.options))
        tabs = {line.count(b"\t") for line in lines if line.strip()}
        if len(tabs) == 1 and tabs != {0} and len(lines) > 1:
            (count,) = tabs
            first = decode(lines[0], wanted.options)[0].strip("\ufeff\r").split("\t")
            header = f", and its first line names {text.template!r}" if text.template in first else ""
            notices.append(
                f"every line has {plural(count, 'tab')}{header}, and each line is embedded as a whole; "
                "set input.format=tsv if these are columns"
            )
        types = {name: Seen(pa.string()) for name in wanted.keep if name in text.columns}
        return Look(file, text.columns, types, tuple(notices))

    def records(
        self, storage: Storage, fragment: Fragment, columns: Columns, options: LineOptions
    ) -> Iterator[tuple[Iterator[Row], int]]:
        """See :meth:`LineFormat.records`."""
        for block in self.blocks(storage, fragment, options):
            yield _rows(block, columns.source.columns[0], options), block.read


def _rows(block: Lines, name: str, options: LineOptions) -> Iterator[Row]:
    for position, content, reason in decoded(block, options):
        content = content.removesuffix("\r")
        if content.strip():
            yield position, {name: content}, reason
