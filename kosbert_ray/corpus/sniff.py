"""Recognises content that is not what a file's name says, from its first bytes.

Called where a file is opened anyway. Goes in: the first bytes. Comes out: what they are and what to do about it, or None.
"""

from __future__ import annotations

import re

HEAD_BYTES = 4096
GZIP = b"\x1f\x8b"
ZSTD = b"\x28\xb5\x2f\xfd"
ZIP = b"PK\x03\x04"
MAGIC = {"gzip": GZIP, "zstd": ZSTD, "zip": ZIP}  # by the names that listing gives to compressions

RENAME = "rename it to end in"
CONVERT = "convert it to JSON lines, CSV or Parquet"
# Prefix, what it is, what to do.
KNOWN: tuple[tuple[bytes, str, str], ...] = (
    (GZIP, "gzip data", f"{RENAME} .gz"),
    (ZSTD, "zstd data", f"{RENAME} .zst"),
    (ZIP, "a zip archive or an Office file", f"{RENAME} .zip if it holds a text shard, or export it as CSV"),
    (b"BZh91AY&SY", "bzip2 data", "recompress it with gzip or zstd"),
    (b"\xfd7zXZ\x00", "xz data", "recompress it with gzip or zstd"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it"),
    (b"Rar!\x1a", "a RAR archive", "unpack it"),
    (b"PAR1\x15", "a Parquet file", f"{RENAME} .parquet, or set input.format=parquet"),
    (b"ARROW1\0", "an Arrow file", f"{RENAME} .arrow, or set input.format=arrow"),
    (b"\xff\xff\xff\xff", "an Arrow stream", f"{RENAME} .arrow, or set input.format=arrow"),
    (b"Obj\x01", "an Avro file", CONVERT),
    (b"SQLite format 3\0", "an SQLite database", CONVERT),
    (b"%PDF-", "a PDF document", CONVERT),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office or Hangul (HWP) document", CONVERT),
    (b"version https://git-lfs.github.com/", "a Git LFS pointer, not the file itself", "run git lfs pull"),
    (b"\xff\xfe\0\0", "UTF-32 text", "convert it with iconv -f UTF-32 -t UTF-8"),
    (b"\0\0\xfe\xff", "UTF-32 text", "convert it with iconv -f UTF-32 -t UTF-8"),
    (b"\xff\xfe", "UTF-16 text", "convert it with iconv -f UTF-16 -t UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "convert it with iconv -f UTF-16 -t UTF-8"),
)
BOM = b"\xef\xbb\xbf"
TAR_MAGIC_AT = 257
BINARY_SHARE = 0.3  # of NUL bytes; text has none, but a stray one is no reason to refuse a file
ONE_SIDE_SHARE = 0.8  # of the NUL bytes of UTF-16 text lie at even, or at odd, places


def recognise(head: bytes) -> str | None:
    """The kind of file that ``head`` begins, if it is a known one that is no plain text: ``what; what to do``."""
    for prefix, what, remedy in KNOWN:
        if head.startswith(prefix):
            return f"{what}; {remedy}"
    if head.startswith(b"ORC") and not _decodes_as_utf8(head):  # three letters that a text may well begin with
        return f"an ORC file; {CONVERT}"
    if head[TAR_MAGIC_AT : TAR_MAGIC_AT + 5] == b"ustar":
        return "a tar archive; unpack it"
    return _with_nuls(head)


def _with_nuls(head: bytes) -> str | None:
    nuls = head.count(0)
    if not nuls:
        return None
    wide = head[0::4].count(0) + head[1::4].count(0) + head[2::4].count(0) + head[3::4].count(0)
    if wide > 0.7 * len(head) and max(head[place::4].count(0) for place in range(4)) * 4 >= len(head) > 8:
        text = next((codec for codec in ("utf-32-le", "utf-32-be") if _decodes(head, codec, 4)), None)
        if text:
            return f"UTF-32 text without a byte order mark; convert it with iconv -f {text.upper()} -t UTF-8"
    even = head[0::2].count(0)
    for codec, share in (("utf-16-be", even), ("utf-16-le", nuls - even)):
        if share >= ONE_SIDE_SHARE * nuls and not _decodes_as_utf8(head) and _decodes(head, codec, 2):
            return f"UTF-16 text without a byte order mark; convert it with iconv -f {codec.upper()} -t UTF-8"
        if share == nuls >= BINARY_SHARE * len(head) and _decodes(head, codec, 2):  # of ASCII only
            return f"UTF-16 text without a byte order mark; convert it with iconv -f {codec.upper()} -t UTF-8"
    if nuls >= BINARY_SHARE * len(head):
        return "binary data (NUL bytes), not text; check what wrote it"
    return None


def _decodes(head: bytes, codec: str, width: int) -> bool:
    try:
        text = head[: len(head) // width * width].decode(codec)
    except UnicodeDecodeError as error:
        return error.end >= len(head) - width  # a character cut in two
    return "\0" not in text


def _decodes_as_utf8(head: bytes) -> bool:
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return error.start >= len(head) - 3
    return True


def check_compressed(head: bytes, compression: str) -> str | None:
    """What is wrong with the first bytes of a file whose name says that it is compressed."""
    if not head or head.startswith(MAGIC[compression]):
        return None
    if compression == "zstd" and head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F:  # a skippable frame
        return None
    if compression == "zip" and head.startswith(b"PK"):  # empty, or in several parts: zipfile knows better
        return None
    found = recognise(head)
    if found:
        return f"not {compression} data but {found}"
    if _decodes_as_utf8(head):
        return f"not {compression} data but plain text; rename it without its last ending"
    return f"not {compression} data, whatever its name says; download or compress it again"


def check_text(head: bytes, format: str) -> str | None:
    """What is wrong with the first bytes of a text shard of a line format, decompressed."""
    found = recognise(head)
    if found:
        return found
    start = head.removeprefix(BOM).lstrip()
    lower = start[:64].lower()
    if lower.startswith(b"<!doctype html") or (format != "text" and lower.startswith(b"<html")):
        return "an HTML page, perhaps an error page that was downloaded instead of the file; download it again"
    if format == "jsonl":
        if start.startswith(b"<?xml"):
            return f"an XML document; {CONVERT}"
        if start.startswith(b"["):
            return "a JSON document (one array), not JSON lines; convert it with jq -c '.[]'"
        if re.match(rb"\{[ \t]*\r?\n", start):
            return "JSON spread over several lines, not JSON lines; convert it with jq -c '.'"
    return None


def check_line_ends(block: bytes) -> str | None:
    """What is wrong with the line ends of a file, told from its first block."""
    if b"\n" not in block and b"\r" in block.rstrip(b"\r\0 "):
        return "text whose lines end in CR only; convert it with tr '\\r' '\\n'"
    return None
