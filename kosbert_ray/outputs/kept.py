"""Kept columns of an output that an option of a command names."""

from __future__ import annotations

from kosbert_ray.config import TEXT_COLUMN
from kosbert_ray.corpus.text import RowText
from kosbert_ray.errors import InputError
from kosbert_ray.outputs.output import Output


def require_kept(output: Output, option: str, column: str | None) -> None:
    """Raises InputError, naming the option, if ``column`` is given and is not a kept column."""
    if column is not None and column not in output.columns:
        kept = ", ".join(output.columns) or "none"
        raise InputError(f"{option} {column}: not among the kept columns ({kept})")


def text_column(output: Output, given: str | None) -> str | None:
    """Returns the kept column to take texts from: ``--text`` if given, else the job's own; None if it is not kept.

    Raises:
        InputError: the column that ``--text`` names is not kept.
    """
    require_kept(output, "--text", given)
    job = output.job
    usual = (job.copied_column(), *RowText.of(job.input).columns, TEXT_COLUMN)
    return given or next((name for name in usual if name in output.columns), None)
