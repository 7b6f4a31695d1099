"""The commands as functions, with the commands' arguments as keywords. Exported by the package's root."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from os import PathLike

    from kosbert_ray.config import JobConfig
    from kosbert_ray.outputs.fusion import Fusion
    from kosbert_ray.outputs.scoring import Similarity
    from kosbert_ray.outputs.search import By, Hit
    from kosbert_ray.outputs.status import Status
    from kosbert_ray.outputs.verify import Verification
    from kosbert_ray.planning.estimate import Estimate
    from kosbert_ray.run.summary import Summary

    Path = str | PathLike[str]

# Modules are imported in the functions, so that importing the package takes no time.


def embed(
    input: Path,
    output: Path,
    /,
    *,
    model: str | None = None,
    text: str | None = None,
    keep: str | Sequence[str] | None = None,
    no_text: bool = False,
    prune: bool = False,
    **options: Any,
) -> Summary:
    """Runs ``kosbert-ray embed``. Progress is shown on standard error, or below the cell of a notebook.

    A Ray that is initialized is used and left running; otherwise one is started for the run. Streams, signal handlers,
    logging, environment variables and Ray Data's settings are restored afterwards.

    Args:
        input: a file, folder, glob or URL.
        output: a folder or URL. If it holds a part of this job already, the job is resumed.
        model: a hub name, folder, URL or ``bundled:NAME``.
        text: the text column, or a template that joins several.
        keep: columns to copy to the output.
        no_text: do not copy the texts to the output.
        prune: delete the shards of input files that were removed.
        options: sections and options of a job file: ``encoder={"precision": "bf16"}``, ``dedup="corpus"``.

    Returns:
        The run's summary: ``totals`` over all rows of the output, ``new`` over those that this run added. It is a path:
        ``Output.open(summary)`` opens what was written.

    Raises:
        KosbertError: the run failed, with the command's error line as its message. What was committed stays. Tables of
            ``output.publish`` that could not be published are in ``unpublished`` of the summary.

    >>> import kosbert_ray
    >>> summary = kosbert_ray.embed("bundled:everyday", "embeddings", model="bundled:kosbert-mini", keep="id")
    >>> summary.complete, summary.totals.rows, kosbert_ray.Output.open(summary).columns
    (True, 520, ('id', 'text'))
    """
    from kosbert_ray.logs import set_format, shown
    from kosbert_ray.outputs.publish import after_run
    from kosbert_ray.run.lifecycle import embed as run

    with shown():
        config = _job(options, input, output, model, text, keep, no_text, prune)
        set_format(config.log_format)
        return run(config, publisher=after_run)


def plan(
    input: Path,
    output: Path | None = None,
    /,
    *,
    model: str | None = None,
    text: str | None = None,
    keep: str | Sequence[str] | None = None,
    no_text: bool = False,
    **options: Any,
) -> Estimate:
    """Estimates a job from a sample of its input, as ``kosbert-ray plan`` does. Needs neither a GPU nor Ray.

    Args:
        input: a file, folder, glob or URL.
        output: a folder or URL; options that are not given come from the job that it holds.
        model, text, keep, no_text, options: as for :func:`embed`.

    Raises:
        KosbertError: the input or the model cannot be read.

    >>> import kosbert_ray
    >>> found = kosbert_ray.plan("bundled:everyday", model="bundled:kosbert-mini")
    >>> found.files, found.rows, found.slices
    (4, 520.0, 4.0)
    """
    from kosbert_ray.planning.estimate import estimate
    from kosbert_ray.run.lifecycle import settings_of

    config = _job(options, input, output, model, text, keep, no_text)
    return estimate(settings_of(config) if output else config)


def search(
    output: Path,
    queries: str | Sequence[str],
    /,
    *,
    top_k: int = 10,
    similarity: Similarity = "cosine",
    prompt: str | None = None,
    prompt_name: str | None = None,
    exact: bool = False,
    by: By | None = None,
    rerank: int = 0,
    fusion: Fusion | None = None,
    **options: Any,
) -> list[Hit]:
    """Finds the rows of an output nearest to each query. To search it again, open it once: :meth:`Output.search`.

    Args:
        output: a folder or URL.
        queries, top_k, similarity, prompt, prompt_name, exact, by, rerank, fusion: as for :meth:`Output.search`.
        options: sections of a job file that say how to access it and how to compute.

    Raises:
        KosbertError: there are no vectors, or the model cannot be loaded.

    >>> import kosbert_ray
    >>> [hit.columns["text"] for hit in kosbert_ray.search("vectors", "라면에 달걀을 넣으면 맛있다.", top_k=1)]
    ['라면을 끓일 때 달걀을 마지막에 넣으면 부드럽다.']
    """
    from kosbert_ray.outputs.output import Output

    return Output.open(output, **options).search(queries, top_k, similarity, prompt, prompt_name, exact, by, rerank, fusion)


def verify(output: Path, /, *, input: Path | None = None, sample: int = 0, seed: int = 0, **options: Any) -> Verification:
    """Checks that an output is complete and intact.

    Args:
        output: a folder or URL.
        input, sample, seed: as for :meth:`Output.verify`.
        options: sections of a job file that say how to access it and how to compute.

    Raises:
        KosbertError: the output or the input cannot be read.

    >>> import kosbert_ray
    >>> kosbert_ray.verify("vectors").problems
    ()
    """
    from kosbert_ray.outputs.output import Output

    return Output.open(output, **options).verify(input, sample, seed)


def status(output: Path, /, **options: Any) -> Status:
    """Reads the progress of a job.

    Args:
        output: a folder or URL.
        options: sections of a job file that say how to access it.

    Raises:
        KosbertError: there is no output, or it cannot be read.

    >>> import kosbert_ray
    >>> found = kosbert_ray.status("vectors")
    >>> found.state, found.totals.rows
    ('done', 42)
    """
    from kosbert_ray.outputs.output import Output
    from kosbert_ray.outputs.status import status as read

    return read(Output.open(output, **options))


def _job(
    options: Mapping[str, Any],
    input: Path,
    output: Path | None,
    model: str | None,
    text: str | None,
    keep: str | Sequence[str] | None,
    no_text: bool,
    prune: bool = False,
) -> JobConfig:
    """The job that a function's arguments describe; raises UsageError."""
    from kosbert_ray.config import load_config

    given = {
        "input.path": input,
        "output.path": output,
        "model.name": model,
        "input.text": text,
        "input.keep": keep,
        "output.text": False if no_text else None,
        "output.removed_inputs": "delete" if prune else None,
    }
    return load_config(options, (), {name: value for name, value in given.items() if value is not None})
