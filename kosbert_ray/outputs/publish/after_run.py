"""Publishes an output after each run, as ``output.publish`` says."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pyarrow as pa

from kosbert_ray.config import JobConfig
from kosbert_ray.errors import KosbertError, UsageError
from kosbert_ray.outputs.output import Output
from kosbert_ray.outputs.publish.base import Publication
from kosbert_ray.outputs.publish.core import publish
from kosbert_ray.outputs.publish.table import format_of
from kosbert_ray.outputs.publish.types import missing_type
from kosbert_ray.shards.vector_types import CODECS

log = logging.getLogger(__name__)


def publisher(config: JobConfig) -> Callable[[JobConfig], tuple[str, ...]] | None:
    """Returns what publishes the output of a run; None if the job does not ask for it.

    Raises:
        UsageError: an address is wrong, a library is missing, or tables do not have the type of the vectors. What else does
            not fit is known when the output is there.
    """
    for address in config.output.publish:
        format_of(address)
        for dtype in config.output.dtype:
            if reason := missing_type(pa.type_for_alias(CODECS[dtype].arrow)):
                raise UsageError(f"output.publish: {address} has no {reason} for output.dtype={dtype}; use float32 or int8")
    return _publish if config.output.publish else None


def _publish(config: JobConfig) -> tuple[str, ...]:
    """Returns the error of each table that could not be published; the output is complete all the same."""
    failed = []
    for address in config.output.publish:
        try:
            found = publish(Publication.of(Output(config)), address, config.output.retain)
        except KosbertError as error:
            failed.append(f"not published: {error}")
        else:
            log.info(found.line())
    return tuple(failed)
