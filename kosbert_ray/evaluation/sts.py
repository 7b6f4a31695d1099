"""Semantic textual similarity (STS): reads data sets and computes the correlations that model cards report."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kosbert_ray.errors import InputError, first_line
from kosbert_ray.storage import FAIL_FAST, Storage, StorageOptions, is_url

MAX_SCORE = 5.0
MEASURES = ("cosine", "euclidean", "manhattan", "dot")


@dataclass(frozen=True)
class SentencePairs:
    """Pairs of sentences with human similarity scores from 0 to 5."""

    name: str
    first: list[str]
    second: list[str]
    scores: npt.NDArray[np.float64]

    @property
    def sentences(self) -> set[str]:
        """The distinct sentences of all pairs."""
        return {*self.first, *self.second}


def read_table(path: str | Path, options: StorageOptions = FAIL_FAST) -> list[dict[str, Any]]:
    """Reads a TSV with a header and without quoting, or a JSON list. KLUE's nested labels are flattened.

    Args:
        path: file or URL.
        options: storage options for a URL.

    Returns:
        One dict per row, by column.

    Raises:
        InputError: the file does not exist or has another format.
        StorageError: the object store refuses the request.
    """
    path = str(path)
    folder, _, name = path.rpartition("/") if is_url(path) else ("", "", "")
    try:
        text = (Storage(folder, options).read(name) if folder else Path(path).read_bytes()).decode()
        if path.endswith(".json"):
            return [{**row, **row.pop("labels", {})} for row in json.loads(text)]
        # Strip carriage returns only at the end of a line; inside a field they are data, but csv would reject them.
        lines = (line.rstrip("\r\n") for line in text.split("\n"))
        reader = csv.DictReader((line for line in lines if line), delimiter="\t", quoting=csv.QUOTE_NONE)
        rows = list(reader)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except (ValueError, TypeError, AttributeError, csv.Error) as error:
        raise InputError(f"{path}: neither a TSV with a header nor a JSON list ({first_line(error)})") from error
    for number, row in enumerate(rows):
        if None in row or None in row.values():
            raise InputError(f"{path}: line {number + 2} does not have as many columns as the header")
    return rows


def read_sts(path: str | Path, options: StorageOptions = FAIL_FAST) -> SentencePairs:
    """Reads an STS data set with the columns ``sentence1``, ``sentence2`` and ``score`` (``real-label`` in KLUE).

    Args:
        path: file or URL.
        options: storage options for a URL.

    Raises:
        InputError: the file cannot be read, a column is missing, or a score is not a number from 0 to 5.
    """
    rows = read_table(path, options)
    if not rows:
        raise InputError(f"{path}: contains no rows")
    name = "score" if "score" in rows[0] else "real-label"
    for column in ("sentence1", "sentence2", name):
        if column not in rows[0]:
            columns = ", ".join(map(str, rows[0]))
            raise InputError(f"{path}: no column {'score' if column == name else column!r}; it has {columns}")
    scores = np.empty(len(rows))
    for number, row in enumerate(rows):
        try:
            scores[number] = float(row[name])
        except (TypeError, ValueError):
            scores[number] = np.nan
        if not 0 <= scores[number] <= MAX_SCORE:
            raise InputError(f"{path}: row {number}: {row[name]!r} is not a score from 0 to 5")
    return SentencePairs(Path(path).stem, [row["sentence1"] for row in rows], [row["sentence2"] for row in rows], scores)


def correlations(
    first: npt.NDArray[Any], second: npt.NDArray[Any], scores: npt.NDArray[np.float64]
) -> dict[str, tuple[float, float]]:
    """Correlates each similarity measure with human scores.

    Args:
        first: vectors of the first sentences, ``[n, d]``, any number type.
        second: vectors of the second sentences, ``[n, d]``.
        scores: human scores, float64 ``[n]``.

    Returns:
        (Pearson, Spearman) x 100 by measure, as computed by sentence-transformers' ``EmbeddingSimilarityEvaluator``.
    """
    from scipy.stats import pearsonr, spearmanr

    a, b = first.astype(np.float64), second.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    dot = (a * b).sum(1)
    values = {
        "cosine": dot / np.where(lengths == 0, 1, lengths),
        "euclidean": -np.linalg.norm(a - b, axis=1),
        "manhattan": -np.abs(a - b).sum(1),
        "dot": dot,
    }
    return {
        name: (100 * float(pearsonr(scores, values[name])[0]), 100 * float(spearmanr(scores, values[name])[0]))
        for name in MEASURES
    }
