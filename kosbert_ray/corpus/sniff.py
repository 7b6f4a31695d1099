"""Recognises, from a file's first bytes, content that is not what its name says.

The functions return one line that names the content and the remedy, or None.
"""

from __future__ import annotations

HEAD_BYTES = 4096
GZIP = b"\x1f\x8b"
ZSTD = b"\x28\xb5\x2f\xfd"
ZIP = b"PK\x03\x04"
MAGIC = {"gzip": GZIP, "zstd": ZSTD, "zip": ZIP}  # by compression, as the listing names it

RENAME = "rename it to end in"
CONVERT = "convert it to JSON lines, CSV or Parquet"
# Prefix, content, remedy.
KNOWN: tuple[tuple[bytes, str, str], ...] = (
    (GZIP, "gzip data", f"{RENAME} .gz"),
    (ZSTD, "zstd data", f"{RENAME} .zst"),
    (ZIP, "a zip archive or an Office file", f"{RENAME} .zip if it contains text files, or export it as CSV"),
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
ONE_SIDE_SHARE = 0.8  # of the NUL bytes of UTF-16 text are at even, or at odd, offsets


def recognise(head: bytes) -> str | None:
    """Returns ``content; remedy`` if ``head`` begins a file of a known kind other than plain text."""
    for prefix, what, remedy in KNOWN:
        if head.startswith(prefix):
            return f"{what}; {remedy}"
    if head.startswith(b"ORC") and not _decodes_as_utf8(head):  # text may begin with these three letters, too
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
        return error.end >= len(head) - width  # the last character is incomplete
    return "\0" not in text


def _decodes_as_utf8(head: bytes) -> bool:
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return error.start >= len(head) - 3
    return True


def check_compressed(head: bytes, compression: str) -> str | None:
    """Returns the problem with the first bytes of a file whose extension says that it is compressed."""
    if not head or head.startswith(MAGIC[compression]):
        return None
    if compression == "zstd" and head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F:  # a skippable frame
        return None
    if compression == "zip" and head.startswith(b"PK"):  # empty or split archives are left to zipfile
        return None
    found = recognise(head)
    if found:
        return f"not {compression} data but {found}"
    if _decodes_as_utf8(head):
        return f"not {compression} data but plain text; rename it without its last extension"
    return f"not {compression} data, despite its extension; download or compress it again"


def check_text(head: bytes, tags: bool = False) -> str | None:
    """Returns the problem with the first bytes of a text file.

    Args:
        head: the bytes, decompressed.
        tags: whether the file may begin with an HTML tag.
    """
    if found := recognise(head):
        return found
    if start_of(head)[:64].lower().startswith((b"<!doctype html",) if tags else (b"<!doctype html", b"<html")):
        return "an HTML page, perhaps an error page that was downloaded instead of the file; download it again"
    return None


def start_of(head: bytes) -> bytes:
    """The first bytes of a text without a byte order mark and leading white space."""
    return head.removeprefix(BOM).lstrip()


def check_line_ends(block: bytes) -> str | None:
    """Returns the problem with a file's line ends, judged by its first block."""
    if b"\n" not in block and b"\r" in block.rstrip(b"\r\0 "):
        return "text whose lines end in CR only; convert it with tr '\\r' '\\n'"
    return None
