"""The cache of converted models. Loads torch only to convert."""

from __future__ import annotations

import logging
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from kosbert_ray.encoder.engines.openvino_runtime import ACCOUNT
from kosbert_ray.errors import ModelError, first_line
from kosbert_ray.model.files import sha256
from kosbert_ray.model.source import cache_entry, fill_once
from kosbert_ray.model.spec import WEIGHTED, ModelSpec

log = logging.getLogger(__name__)

CONVERSION = "2"  # raise it when the conversion changes


def converted(spec: ModelSpec, precision: str) -> Path:
    """Returns the folder of the converted model, and converts it first if it is not in the cache.

    Raises:
        ModelError: the model cannot be converted, its vectors differ from PyTorch's, or the cache is not writable.
    """
    head = [
        repr(replace(part, folder=Path(part.folder.name)) if isinstance(part, WEIGHTED) else part) for part in spec.head
    ]
    parts = [CONVERSION, sha256(spec.folder, spec.weight_files), str(spec.max_seq_length), *spec.pooling, *head]
    parts += [version("openvino"), version("transformers"), version("torch")]
    if precision == "int8":
        from kosbert_ray.encoder.engines.openvino_int8 import calibration_texts

        parts += [version("nncf"), *calibration_texts()]
    folder = cache_entry("openvino", [*parts, "int8" if precision == "int8" else "float"])
    if (folder / ACCOUNT).exists():
        return folder
    from kosbert_ray.encoder.engines.openvino_conversion import convert

    def fill(partial: Path) -> None:
        log.info("converting the model to OpenVINO (once on each machine)")
        convert(spec, precision, partial)

    try:
        fill_once(folder, fill)
    except OSError as error:
        raise ModelError(f"{folder}: cannot store the converted model ({first_line(error)})") from error
    return folder
