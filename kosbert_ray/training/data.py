"""Training examples from data files: scored pairs, pairs and triplets, or texts with the text that the teacher reads."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow.parquet as pq

from kosbert_ray.errors import InputError
from kosbert_ray.evaluation.sts import MAX_SCORE, read_sts, read_table
from kosbert_ray.training.config import DataConfig, TaskConfig, TeacherConfig

Example: TypeAlias = tuple[str, ...]
ENTAILMENT, CONTRADICTION = "entailment", "contradiction"


@dataclass(frozen=True)
class Examples:
    """Examples of one task.

    Attributes:
        columns: names of an example's texts.
        rows: texts of each example.
        scores: score of each pair from 0 to 1, if the task has scores.
        teacher_texts: text that the teacher reads for each example, if the task has a teacher.
    """

    columns: tuple[str, ...]
    rows: list[Example]
    scores: list[float] | None = None
    teacher_texts: list[str] | None = None


def files(root: str, path: str) -> list[Path]:
    """Lists the files that match a glob pattern below ``root``, sorted; raises InputError if there are none."""
    pattern = str(Path(root) / path)
    found = [Path(name) for name in sorted(glob.glob(pattern, recursive=True)) if Path(name).is_file()]
    if not found:
        raise InputError(f"{pattern}: no such file; check data_root and the path of the data")
    return found


def read_examples(task: TaskConfig, root: str, held_out: set[str], seed: int) -> Examples:
    """Reads the examples of a task. Excludes single texts that are held out, and tuples whose texts all are.

    Args:
        task: loss, data and teacher.
        root: folder that contains the data files.
        held_out: texts of the evaluation data.
        seed: seed of the samples that ``limit`` draws.

    Raises:
        InputError: a file is missing or has another format, or no examples are left.
    """
    scored = task.loss == "cosine_similarity"
    if task.teacher:
        texts = [pair for data in task.data for pair in _sample(data, _taught(data, root, task.teacher, held_out), seed)]
        texts = list(dict.fromkeys(texts))
        examples = Examples(("text",), [(own,) for own, _ in texts], teacher_texts=[read for _, read in texts])
    elif scored:
        rows: list[Example] = []
        scores: list[float] = []
        for data in task.data:
            for path in files(root, data.path):
                pairs = read_sts(path)
                kept = zip(pairs.first, pairs.second, pairs.scores.tolist(), strict=True)
                some = _sample(data, [row for row in kept if not held_out.issuperset(row[:2])], seed)
                rows += [(first, second) for first, second, _ in some]
                scores += [score / MAX_SCORE for _, _, score in some]
        examples = Examples(("sentence1", "sentence2"), rows, scores=scores)
    else:
        tuples = [row for data in task.data for row in _sample(data, _contrasts(data, root), seed)]
        tuples = [row for row in dict.fromkeys(tuples) if not held_out.issuperset(row)]
        width = min((len(row) for row in tuples), default=2)
        examples = Examples(("anchor", "positive", "negative")[:width], [row[:width] for row in tuples])
    if not examples.rows:
        raise InputError(f"{', '.join(data.path for data in task.data)}: no examples for {task.loss}")
    return examples


def read_texts(data: DataConfig, root: str, held_out: set[str], seed: int) -> list[str]:
    """Reads the distinct texts of ``data`` in the student's language, without those held out."""
    texts = dict.fromkeys(text for text, _ in _both(data, root) if text not in held_out)
    return _sample(data, list(texts), seed)


def _sample(data: DataConfig, rows: list, seed: int) -> list:  # type: ignore[type-arg]
    if data.limit is None or data.limit >= len(rows):
        return rows
    chosen = np.sort(np.random.default_rng(seed).choice(len(rows), data.limit, replace=False))
    return [rows[index] for index in chosen.tolist()]


def _taught(data: DataConfig, root: str, teacher: TeacherConfig, held_out: set[str]) -> list[tuple[str, str]]:
    """Returns distinct pairs (text for the student, text for the teacher)."""

    def pairs() -> Iterator[tuple[str, str]]:
        for own, other in _both(data, root):
            read = own if teacher.own_language else other
            if own not in held_out:
                yield own, read
            if teacher.sides == "both" and other not in held_out:
                yield other, read

    return list(dict.fromkeys(pairs()))


def _both(data: DataConfig, root: str) -> Iterator[tuple[str, str]]:
    """Yields (text, translation) for every text in ``data``; without a translation, the text itself."""
    max_chars = data.max_chars or 10**9
    for path in files(root, data.path):
        pairs: Iterable[tuple[str, str]]
        if data.kind == "parallel":
            pairs = _parallel(path)
        elif data.kind == "texts":
            pairs = ((text, text) for text in _lines(path, data.text, data.where))
        elif data.kind == "sts":
            found = read_sts(path)
            pairs = ((text, text) for text in [*found.first, *found.second])
        else:
            pairs = ((row[side], row[side]) for row in read_table(path) for side in _sides(path, row))
        for own, other in pairs:
            if own.strip() and other.strip() and len(own) <= max_chars:
                yield own, other


def _parallel(path: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(_lines(path, "", {}), 1):
        own, tab, other = line.partition("\t")
        if not tab:
            raise InputError(f"{path}: line {number} has no second column")
        yield own, other.partition("\t")[0]


def _lines(path: Path, column: str, where: dict[str, tuple[str, ...]]) -> Iterator[str]:
    if path.suffix == ".parquet":
        file = pq.ParquetFile(path)
        for name in (column, *where):
            if name not in file.schema_arrow.names:
                raise InputError(f"{path}: no column {name!r}; it has {', '.join(file.schema_arrow.names)}")
        filters = [(name, "in", values) for name, values in where.items()] or None
        yield from (text for text in pq.read_table(path, columns=[column], filters=filters)[column].to_pylist() if text)
        return
    try:
        yield from (line for line in path.read_text("utf-8").split("\n") if line)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text") from error


def _sides(path: Path, row: dict[str, str]) -> tuple[str, str]:
    names = ("sentence1", "sentence2") if "sentence1" in row else ("premise", "hypothesis")
    if names[0] not in row:
        names = tuple(list(row)[:2])  # type: ignore[assignment]
    if len(names) < 2 or names[1] not in row:
        raise InputError(f"{path}: needs two columns of sentences; it has {', '.join(row)}")
    return names


def _contrasts(data: DataConfig, root: str) -> list[Example]:
    """Returns (anchor, positive) for ``pairs`` and (anchor, positive, negative) for ``nli``."""
    found: list[Example] = []
    for path in files(root, data.path):
        rows = read_table(path)
        if not rows:
            continue
        first, second = _sides(path, rows[0])
        if data.kind == "pairs":
            found += [(row[first], row[second]) for row in rows if str(row.get("label", "1")) == "1"]
            continue
        groups: dict[str, dict[str, list[str]]] = {}
        for row in rows:
            if "gold_label" not in row:
                raise InputError(f"{path}: no column gold_label; it has {', '.join(row)}")
            groups.setdefault(row[first], {}).setdefault(row["gold_label"], []).append(row[second])
        for premise, by_label in groups.items():
            found += [
                (premise, positive, negative)
                for positive in by_label.get(ENTAILMENT, [])
                for negative in by_label.get(CONTRADICTION, [])
            ]
    return found
