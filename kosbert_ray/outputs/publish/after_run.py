"""Publishes an output after each run, as ``output.publish`` says."""

from __future__ import annotations

import logging

import pyarrow as pa

from kosbert_ray.config import JobConfig
from kosbert_ray.errors import KosbertError, UsageError
from kosbert_ray.outputs.output import Output
from kosbert_ray.outputs.publish import core
from kosbert_ray.outputs.publish.table import require_table
from kosbert_ray.outputs.publish.types import missing_type
from kosbert_ray.shards.vector_types import CODECS

log = logging.getLogger(__name__)


def check(config: JobConfig) -> None:
    """Checks before a run what ``output.publish`` asks for.

    Raises:
        UsageError: an address is wrong, a library or a catalog is missing, or tables do not have the type of the vectors.
            What else does not fit is known when the output is there.
        StorageError: a catalog cannot be reached.
    """
    for address in config.output.publish:
        require_table(address)
        for dtype in config.output.dtype:
            if reason := missing_type(pa.type_for_alias(CODECS[dtype].arrow)):
                raise UsageError(f"output.publish: {address} has no {reason} for output.dtype={dtype}; use float32 or int8")


def publish(config: JobConfig) -> tuple[str, ...]:
    """Publishes the output of a run.

    Returns:
        The error of each table that could not be published; the output is complete all the same.
    """
    failed = []
    for address in config.output.publish:
        try:
            found = core.publish(Output(config), address, config.output.retain)
        except KosbertError as error:
            failed.append(f"not published: {error}")
        else:
            log.info(found.line())
    return tuple(failed)
