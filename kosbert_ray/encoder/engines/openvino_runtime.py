"""OpenVINO's inference requests."""

from __future__ import annotations

import queue
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from kosbert_ray.errors import DeviceBroken

# Files of a converted model.
GRAPH, HEAD, ACCOUNT = "model.xml", "head.xml", "account.json"
UNTOUCHED = np.float32(-1.5e38)  # marks an output that is overwritten by the next result
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


def infer(request: Any, inputs: list[npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
    """Runs a request and returns its output, which the next call overwrites.

    Raises:
        DeviceBroken: nothing was computed. When OpenVINO (2026.4) cannot allocate memory, this call and all later ones of
            the process return without an error, and the output is still that of the last good call.
    """
    before = request.get_output_tensor(0)
    if before.get_size():
        before.data.flat[0] = UNTOUCHED
    tensor = import_openvino().Tensor
    for number, array in enumerate(inputs):
        request.set_input_tensor(number, tensor(array, shared_memory=True))
    request.infer()  # with inputs as arguments, the bindings inspect the request for longer than a short text takes
    output: npt.NDArray[np.float32] = request.get_output_tensor(0).data
    if len(output) != len(inputs[0]) or output.flat[0] == UNTOUCHED:
        raise DeviceBroken(
            "OpenVINO ran out of memory and computes nothing more in this process; use fewer encoders (encoder.actors) or "
            "a smaller encoder.token_budget"
        )
    return output


def runner(graph: Any, precision: str, offset: int) -> Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float32]]:
    """Returns a function from the token ids of one sequence to its hidden states, float32 ``[length, h]``.

    Args:
        graph: a model in memory.
        precision: "fp32", "bf16" or "int8".
        offset: number of the first position.
    """
    request = requests(graph, precision, 1).get()

    def run(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        hidden: npt.NDArray[np.float32] = infer(request, [ids[None], np.arange(len(ids))[None] + offset])[0]
        return hidden.copy()

    return run
