"""kosbert-ray: a distributed batch job that turns a large Korean text corpus into sentence embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kosbert_ray._version import __version__ as __version__

if TYPE_CHECKING:
    from os import PathLike

    from kosbert_ray.run.lifecycle import Summary


def embed(
    input: str | PathLike[str], output: str | PathLike[str], /, *, model: str | None = None, **options: Any
) -> Summary:
    """``kosbert-ray embed`` from Python, a notebook for example: progress on standard error, or below the cell.

    A Ray that is initialized is used and left running. Streams, signal handlers, logging, environment and Ray Data's
    settings are the caller's again afterwards.

    Args:
        input: file, folder, glob or URL.
        output: folder or URL.
        model: hub name, folder, URL or ``bundled:NAME``.
        options: those of a job file: ``encoder={"precision": "bf16"}``, ``dedup="corpus"``.

    Returns:
        How the run ended: sums over all rows and over those of this run.

    Raises:
        KosbertError: as the command does, the message being its error line. What was committed stays.
    """
    # Imported late: the package itself is to load at once.
    from kosbert_ray.config import load_config
    from kosbert_ray.logs import shown
    from kosbert_ray.run.lifecycle import embed as run

    given = {"input.path": input, "output.path": output} | ({"model.name": model} if model else {})
    config = load_config(options, [], given)
    with shown(config.log_format):
        return run(config)
