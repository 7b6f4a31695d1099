"""JSON Lines: one object per line."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any, ClassVar

import pyarrow as pa

from kosbert_ray.corpus.columns import Columns
from kosbert_ray.corpus.files import InputFile
from kosbert_ray.corpus.formats.base import Look, Wanted
from kosbert_ray.corpus.formats.line_based import SAMPLE_AHEAD, LineFormat, decoded, encoding_notices
from kosbert_ray.corpus.fragments import Fragment
from kosbert_ray.corpus.lines import Lines, read_lines
from kosbert_ray.corpus.names import MISSING, pick, require
from kosbert_ray.corpus.options import LineOptions
from kosbert_ray.corpus.row_table import Row
from kosbert_ray.corpus.sniff import CONVERT, check_text, start_of
from kosbert_ray.corpus.types import EXACT_INTEGERS, Seen
from kosbert_ray.errors import InputError, StorageError
from kosbert_ray.storage import Storage

LATE_BYTES = 16 * 2**20  # to search for a column that the first lines lack


class JsonLines(LineFormat):
    """Reads JSON Lines files."""

    open_schema: ClassVar[bool] = True

    def check(self, head: bytes) -> str | None:
        """See :meth:`LineFormat.check`."""
        if found := check_text(head):
            return found
        start = start_of(head)
        if start.startswith(b"<?xml"):
            return f"an XML document; {CONVERT}"
        if start.startswith(b"["):
            return "a JSON document (one array), not JSON lines; convert it with jq -c '.[]'"
        if re.match(rb"\{[ \t]*\r?\n", start):
            return "JSON spread over several lines, not JSON lines; convert it with jq -c '.'"
        return None

    def look(self, storage: Storage, file: InputFile, wanted: Wanted, tail: bytes | None) -> Look:  # noqa: ARG002
        """See :meth:`Format.look`."""
        lines = self.first_lines(storage, file, wanted)
        objects = _objects(lines, wanted.options)
        names = tuple(dict.fromkeys(name for item in objects for name in item))
        types = {}
        for name in wanted.keep:
            values = _values(objects, name)
            if values:
                types[name] = json_type(values)
        texts = wanted.text.columns
        absent = tuple(name for name in texts if objects and not _values(objects, name))
        if objects and len(absent) == len(texts):
            require(texts, lambda _: False, names, "input.text")
        for name in texts:
            _require_no_nested([value for value in _values(objects, name) if value is not None], name)
        return Look(file, names, types, encoding_notices(lines, wanted.options), absent=absent)

    def look_later(self, storage: Storage, file: InputFile, wanted: Wanted, names: Collection[str]) -> dict[str, Seen]:
        """The types of columns in the first ``LATE_BYTES`` bytes."""
        found: dict[str, Seen] = {}
        read = 0
        with contextlib.suppress(InputError, StorageError):  # a fault further on is reported when it is read
            content = self.content(wanted.options)
            for block in read_lines(storage, file, content, 0, min(file.size, LATE_BYTES), SAMPLE_AHEAD):
                objects = _objects(block.lines, wanted.options)
                for name in names:
                    values = _values(objects, name)
                    seen = json_type(values) if values else None
                    if seen and not pa.types.is_null(seen.type):
                        found[name] = seen
                read += block.read
                if len(found) == len(names) or read > LATE_BYTES:
                    break
        return found

    def records(
        self,
        storage: Storage,
        fragment: Fragment,
        columns: Columns,  # noqa: ARG002
        options: LineOptions,
    ) -> Iterator[tuple[Iterator[Row], int]]:
        """See :meth:`LineFormat.records`."""
        for block in self.blocks(storage, fragment, options):
            yield _rows(block, options), block.read


def json_type(values: Sequence[Any]) -> Seen:
    """The type of JSON values: bool, int64, uint64 or double; mixed and nested values are kept as a string of JSON."""
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


def _require_no_nested(values: Sequence[Any], name: str) -> None:
    """Raises InputError if all values of a text column are objects, or all are lists."""
    kinds = {type(value) for value in values}
    if kinds == {dict}:
        inner = next((key for value in values for key, item in value.items() if isinstance(item, str)), None)
        hint = f", such as {name}.{inner}" if inner else ""
        raise InputError(f"column {name!r} is a JSON object, not a string; name one of its fields with input.text{hint}")
    if kinds == {list}:
        raise InputError(
            f"column {name!r} is a JSON list, not a string; join it into a string in a column of its own "
            "and name that with input.text"
        )


def _values(objects: Sequence[dict[str, Any]], name: str) -> list[Any]:
    return [value for item in objects if (value := pick(item, name)) is not MISSING]


def _objects(lines: list[bytes], options: LineOptions) -> list[dict[str, Any]]:
    """The valid objects among lines from the start of a file."""
    block = Lines(lines, 0, "line", 0)
    return [values for _, values, reason in _rows(block, options) if reason is None]


def _constant(name: str) -> float | None:
    """Constants that are not JSON but that Python writes; NaN is pandas' null."""
    return None if name == "NaN" else math.inf if name == "Infinity" else -math.inf


_JSON = json.JSONDecoder(parse_constant=_constant)


def _rows(block: Lines, options: LineOptions) -> Iterator[Row]:
    for position, content, reason in decoded(block, options):
        if not content.strip():
            continue
        values: Any = {}
        if reason is None:
            try:
                values = _JSON.decode(content)
            except (ValueError, RecursionError) as error:
                reason = f"bad JSON ({error})"
            else:
                if not isinstance(values, dict):
                    reason, values = f"a JSON {type(values).__name__}, not an object", {}
        yield position, values, reason
