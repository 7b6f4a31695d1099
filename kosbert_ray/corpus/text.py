"""The text of a row: a column, or several columns joined by a template; optionally normalized."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from string import Formatter
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from kosbert_ray.corpus.types import is_binary, is_string, plain
from kosbert_ray.errors import UsageError

if TYPE_CHECKING:
    from kosbert_ray.corpus.options import InputOptions, Normalization

CONJOINING = "[\u1100-\u1112][\u1161-\u1175]"  # a leading consonant and a vowel: the start of a syllable
MANY_DECOMPOSED = 0.01  # of the texts
DECOMPOSED_NOTICE = "texts contain decomposed Hangul (NFD), which few models know: set input.normalize=nfc"
WHITE_SPACE = r"[\s\p{Z}\x85]+"
IN_TEMPLATES = (
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_decimal,
    pa.types.is_date,
    pa.types.is_timestamp,
    pa.types.is_time,
)


@dataclass(frozen=True)
class RowText:
    """The recipe for a row's text.

    Attributes:
        template: name of a column, or text with names in braces: ``"{title}\\n{body}"``. ``{{`` is a brace; the two
            characters ``\\n`` and ``\\t``, as a quoted shell argument has them, are a newline and a tab.
        normalize: steps, always in this order: "html" replaces character references such as ``&amp;``, "nfc" composes
            (Unicode Standard Annex 15), "whitespace" replaces each run of white space with one space.
        copy: name of the kept column that holds the text as it is in the input; None for none.
    """

    template: str
    normalize: tuple[Normalization, ...] = ()
    copy: str | None = None

    @staticmethod
    def of(options: InputOptions, copy: str | None = None) -> RowText:
        """The texts of a job."""
        return RowText(options.text, tuple(sorted(set(options.normalize))), copy)

    @cached_property
    def _parts(self) -> tuple[tuple[str, str | None], ...]:
        """Literal texts, each with the name of the column that follows it."""
        if not self.joined:
            return (("", self.template),)
        try:
            found = [*Formatter().parse(self.template.replace("\\n", "\n").replace("\\t", "\t"))]
        except ValueError as error:
            raise UsageError(f"input.text: {self.template!r} is not a template ({error}); write a brace as {{{{") from error
        for _, name, form, conversion in found:
            if form or conversion or name == "":
                raise UsageError(f"input.text: {self.template!r} is not a template; braces may contain column names only")
        if all(name is None for _, name, _, _ in found):
            raise UsageError(f"input.text: {self.template!r} names no column")
        return tuple((literal, name) for literal, name, _, _ in found)

    @property
    def joined(self) -> bool:
        """True for a template."""
        return "{" in self.template or "}" in self.template

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of its columns, without duplicates."""
        return tuple(dict.fromkeys(name for _, name in self._parts if name is not None))

    def fill(self, values: Mapping[str, Any]) -> str | None:
        """Makes the text of one row. A missing value is empty; if all are missing, there is no text."""
        if not self.joined:
            found: str | None = values.get(self.template)
            return found
        if all(values.get(name) is None for name in self.columns):
            return None
        return "".join(
            literal + ("" if name is None or (value := values.get(name)) is None else spelled(value))
            for literal, name in self._parts
        )

    def join(self, columns: Mapping[str, pa.Array]) -> pa.Array:
        """Makes the texts of Arrow columns, as :meth:`fill` does: large_string ``[n]``."""
        strings = {name: _strings(columns[name]) for name in self.columns}
        if not self.joined:
            return strings[self.template]
        parts: list[Any] = []
        for literal, name in self._parts:
            parts.append(pa.scalar(literal, pa.large_string()))
            if name is not None:
                parts.append(pc.fill_null(strings[name], ""))
        text = pc.binary_join_element_wise(*parts, pa.scalar("", pa.large_string()))
        present = pc.is_valid(strings[self.columns[0]])
        for name in self.columns[1:]:
            present = pc.or_(present, pc.is_valid(strings[name]))
        return pc.if_else(present, text, pa.scalar(None, pa.large_string()))

    def original(self, columns: Mapping[str, pa.Array], joined: pa.Array) -> pa.Array | None:
        """The texts to copy: string ``[n]``, as they are in the input; of a template with several columns, those that it
        makes. None if they are not copied.

        Args:
            columns: its columns.
            joined: the texts that :meth:`join` makes of them.
        """
        if self.copy is None:
            return None
        return (joined if len(self.columns) > 1 else _strings(columns[self.columns[0]])).cast(pa.string())

    def remade(self, original: pa.Array) -> pa.Array:
        """The texts that were embedded, from those that :meth:`original` returned: large_string ``[n]``."""
        joined = original.cast(pa.large_string()) if len(self.columns) > 1 else self.join({self.columns[0]: original})
        return self.normalized(joined)

    def normalized(self, texts: pa.Array) -> pa.Array:
        """Normalizes texts: large_string ``[n]``."""
        if "html" in self.normalize:
            texts = pa.array(
                [text if text is None or "&" not in text else html.unescape(text) for text in texts.to_pylist()],
                pa.large_string(),
            )
        if "nfc" in self.normalize:
            texts = pc.utf8_normalize(texts, form="NFC")
        if "whitespace" in self.normalize:
            texts = pc.utf8_trim_whitespace(pc.replace_substring_regex(texts, WHITE_SPACE, " "))
        return texts


def spelled(value: Any) -> str:
    """Spells a value in a template as Arrow does, so that all formats give the same text: 2026.0 is ``2026``."""
    return str(pa.scalar(value, pa.float64()).cast(pa.string())) if isinstance(value, float) else str(value)


def _strings(column: pa.Array) -> pa.Array:
    """Converts a column to text; bytes that are not UTF-8 become null (see :func:`broken_bytes`)."""
    if pa.types.is_floating(column.type):  # NaN is pandas' null
        return pc.if_else(pc.is_nan(column), None, column).cast(pa.large_string())
    if not is_binary(column.type):
        return column.cast(pa.large_string())
    try:
        return column.cast(pa.large_binary()).cast(pa.large_string())
    except pa.ArrowInvalid:
        return pa.array([_decoded(value) for value in column.to_pylist()], pa.large_string())


def _decoded(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def broken_bytes(columns: Mapping[str, pa.Array], reasons: pa.Array) -> pa.Array:
    """Adds reasons for rows whose bytes are not UTF-8."""
    for name, column in columns.items():
        if is_binary(column.type):
            bad = pc.and_(pc.is_valid(column), pc.is_null(_strings(column)))
            reasons = pc.coalesce(reasons, pc.if_else(bad, f"column {name!r} is not UTF-8", pa.scalar(None, pa.string())))
    return reasons


def decomposed(texts: pa.Array | pa.ChunkedArray) -> int:
    """Number of texts with Hangul in conjoining jamo (NFD, as macOS writes names), which few models know."""
    return int(pc.sum(pc.match_substring_regex(texts, CONJOINING)).as_py() or 0)


def require_strings(source: RowText, types: Sequence[tuple[str, pa.DataType]]) -> str | None:
    """Returns the problem with the types of the columns, if there is one. A template accepts numbers and dates, too."""
    for name, kind in types:
        value = plain(kind)
        if is_string(value) or is_binary(value) or pa.types.is_null(value):
            continue
        if source.joined and any(check(value) for check in IN_TEMPLATES):
            continue
        problem = f"column {name!r} is {value}, not a string; "
        if pa.types.is_struct(value) and value.num_fields:
            return problem + f"name one of its fields with input.text, such as {name}.{value.field(0).name}"
        if pa.types.is_list(value) or pa.types.is_large_list(value) or pa.types.is_map(value):
            return problem + "join it into a string in a column of its own and name that with input.text"
        if any(check(value) for check in IN_TEMPLATES):
            return problem + f"name the text column with input.text, or use it as it is in a template ({{{name}}})"
        return problem + "name the text column with input.text"
    return None
