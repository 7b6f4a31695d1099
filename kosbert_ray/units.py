"""Durations, sizes and lists of names in words."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def parse_bytes(value: Any) -> Any:
    """``32MiB``, ``32M`` and 33554432 are the same number of bytes."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+)\s*([KMG]?)(i?B)?\s*", value)
        if not match:
            raise ValueError(f"{value!r} is no size; write it like 32MiB")
        return int(match[1]) * UNITS[match[2]]
    return value


def parse_seconds(value: Any) -> Any:
    """``5m``, ``300s``, ``0.5h``, ``7d`` and a plain number are times in seconds."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhdw]?)\s*", value)
        if not match:
            raise ValueError(f"{value!r} is no time; write it like 300 or 5m")
        return float(match[1]) * SECONDS[match[2]]
    return value


def data_size(count: float) -> str:
    """``532 bytes``, ``56.4 kB``, ``45.5 MB``, ``1.20 GB``: a kB is 1,000 bytes."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= 0.9995 * size:
            number = count / size
            return f"{number:,.{2 if number < 9.995 else 1 if number < 99.95 else 0}f} {unit}"
    return plural(count, "byte")


def duration(seconds: float) -> str:
    """``3 s``, ``2 min 5 s``, ``4 h 7 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


SINGULAR = {"are": "is", "were": "was", "have": "has", "do": "does"}


def plural(count: float, noun: str, verb: str = "") -> str:
    """``1 file``, ``12,000 files``; with the plural of a verb, ``1 file was`` and ``2 files were``."""
    one = round(count) == 1
    words = [f"{count:,.0f}", noun if one else f"{noun}s"]
    if verb:
        words.append(SINGULAR.get(verb, f"{verb}s") if one else verb)
    return " ".join(words)


def alternatives(names: Iterable[str]) -> str:
    """Joins names, each once: ``a``, ``a or b``, ``a, b or c``."""
    *others, last = dict.fromkeys(names)
    return f"{', '.join(others)} or {last}" if others else last
