"""The speed of a plain device, by a rule. For choices that must not depend on a measurement; rough on purpose."""

from __future__ import annotations

from kosbert_ray.model.parameters import computing_parameters
from kosbert_ray.model.spec import ModelSpec

# Floating-point operations per second.
CORE_FLOPS, GPU_FLOPS = 1e11, 1e14
TEXT_BYTES_PER_TOKEN = 5
TOKENIZED_BYTES = 1e6  # of text that a core tokenizes in a second: the limit of a static embedding model


def plain_bytes_per_second(spec: ModelSpec, gpu: bool) -> float:
    """Bytes of text that one plain core, or one plain GPU, encodes in a second.

    Raises:
        ModelError: a weight file cannot be read.
    """
    if spec.static:
        return TOKENIZED_BYTES
    flops_per_token = 2 * max(1, computing_parameters(spec))
    return TEXT_BYTES_PER_TOKEN * (GPU_FLOPS if gpu else CORE_FLOPS) / flops_per_token
