"""OpenVINO's inference requests."""

from __future__ import annotations

import queue
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "bf16"}


def import_openvino() -> Any:
    """Imports OpenVINO with its telemetry disabled."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def requests(graph: str | Any, precision: str, streams: int) -> queue.SimpleQueue[Any]:
    """Compiles a graph for the CPU and returns a queue of ``streams`` inference requests.

    Args:
        graph: a model in memory, or the path of one.
        precision: "fp32", "bf16" or "int8".
        streams: number of requests that run concurrently, on one thread each.
    """
    settings = {
        "INFERENCE_PRECISION_HINT": HINTS[precision],
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": streams,
        "ENABLE_CPU_PINNING": False,
    }
    compiled = import_openvino().Core().compile_model(graph, "CPU", settings)
    found: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for _ in range(streams):
        found.put(compiled.create_infer_request())
    return found


def runner(graph: Any, precision: str, offset: int) -> Callable[[npt.NDArray[np.int64]], torch.Tensor]:
    """Returns a function from the token ids of one sequence to its hidden states, float32 ``[length, h]``.

    Args:
        graph: a model in memory.
        precision: "fp32", "bf16" or "int8".
        offset: number of the first position.
    """
    request = requests(graph, precision, 1).get()

    def run(ids: npt.NDArray[np.int64]) -> torch.Tensor:
        request.infer([ids[None], np.arange(len(ids))[None] + offset])
        return torch.from_numpy(request.get_output_tensor(0).data[0].copy())

    return run
