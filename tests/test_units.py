"""Sizes in words."""

from __future__ import annotations

import pytest

from kosbert_ray.units import data_size


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1_000, "1.00 kB"),
        (9_994, "9.99 kB"),
        (9_996, "10.0 kB"),
        (56_449, "56.4 kB"),
        (99_960, "100 kB"),
        (999_600, "1.00 MB"),
        (45_502_630, "45.5 MB"),
        (3_072_000_000, "3.07 GB"),
        (307.2e9, "307 GB"),
        (12_345e12, "12,345 TB"),
    ],
)
def test_three_digits_of_a_size_are_shown(count: float, words: str) -> None:
    assert data_size(count) == words
