"""Sentence embeddings of large text corpora, computed by a resumable batch job on Ray.

:func:`embed` runs a job, :class:`Output` reads what it wrote, and :class:`Encoder` embeds texts in this process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kosbert_ray._version import __version__
from kosbert_ray.errors import KosbertError

if TYPE_CHECKING:
    from os import PathLike

    from kosbert_ray.encoder.encoder import Encoder
    from kosbert_ray.outputs.output import Output
    from kosbert_ray.run.summary import Summary

__all__ = ["Encoder", "KosbertError", "Output", "__version__", "embed"]


def embed(
    input: str | PathLike[str], output: str | PathLike[str], /, *, model: str | None = None, **options: Any
) -> Summary:
    """Runs ``kosbert-ray embed``. Progress is shown on standard error, or below the cell of a notebook.

    A Ray that is initialized is used and left running; otherwise one is started for the run. Streams, signal handlers,
    logging, environment variables and Ray Data's settings are restored afterwards.

    Args:
        input: a file, folder, glob or URL.
        output: a folder or URL. If it holds a part of this job already, the job is resumed.
        model: a hub name, folder, URL or ``bundled:NAME``.
        options: sections and options of a job file: ``encoder={"precision": "bf16"}``, ``dedup="corpus"``.

    Returns:
        The run's summary: ``totals`` over all rows of the output, ``new`` over those that this run added.

    Raises:
        KosbertError: the run failed, with the command's error line as its message. What was committed stays.

    >>> import kosbert_ray
    >>> summary = kosbert_ray.embed("bundled:everyday", "embeddings", model="bundled:kosbert-mini")
    >>> summary.complete, summary.totals.rows
    (True, 520)
    """
    # Imported here, so that importing the package takes no time.
    from kosbert_ray.config import load_config
    from kosbert_ray.logs import set_format, shown
    from kosbert_ray.run.lifecycle import embed as run

    given = {"input.path": input, "output.path": output} | ({"model.name": model} if model else {})
    with shown():
        config = load_config(options, [], given)
        set_format(config.log_format)
        return run(config)


def __getattr__(name: str) -> Any:
    """Imports a public class when it is first used."""
    if name == "Encoder":
        from kosbert_ray.encoder.encoder import Encoder

        return Encoder
    if name == "Output":
        from kosbert_ray.outputs.output import Output

        return Output
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
