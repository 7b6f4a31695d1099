"""OpenVINO: a faster engine for CPUs. Converts the model once per machine and keeps the result in the cache.

Sequences of equal length run as one matrix, so there is neither padding nor an attention mask.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch

from kosbert_ray.encoder.engines import openvino_runtime
from kosbert_ray.encoder.engines.base import Engine, EngineSettings
from kosbert_ray.encoder.engines.openvino_conversion import ACCOUNT, GRAPH, converted
from kosbert_ray.encoder.packing import Batch, pack_one_length
from kosbert_ray.encoder.pooling import pool
from kosbert_ray.encoder.spec import ModelSpec

TOKEN_BUDGET = 1024


def load(spec: ModelSpec, settings: EngineSettings) -> Engine:
    """Loads a model. Raises as :class:`OpenVinoEngine` does."""
    return OpenVinoEngine(spec, settings)


class OpenVinoEngine:
    """A converted transformer; implements :class:`~kosbert_ray.encoder.engines.base.Engine`.

    Raises:
        ModelError: the model cannot be converted, or its vectors differ from PyTorch's.
    """

    attention = "one_length"
    pack = staticmethod(pack_one_length)

    def __init__(self, spec: ModelSpec, settings: EngineSettings) -> None:
        torch.set_num_threads(1)  # the streams are OpenVINO's own threads
        self._spec, self._skip = spec, settings.skip
        self.streams = settings.threads
        folder = converted(spec, settings.precision)
        account = json.loads((folder / ACCOUNT).read_text("utf-8"))
        self.vocabulary = int(account["vocabulary"])
        self.notices: list[str] = [account["notice"]] if account["notice"] else []
        self._position_offset = int(account["position_offset"])
        self._requests = openvino_runtime.requests(str(folder / GRAPH), settings.precision, self.streams)

    def pooled(self, batch: Batch) -> torch.Tensor:
        """Returns pooled vectors, float32 ``[sequences, h * pooling modes]``. Call from up to ``streams`` threads."""
        request = self._requests.get()
        try:
            return torch.cat([self._group(request, batch, *group) for group in batch.groups])
        finally:
            self._requests.put(request)

    def computed_tokens(self, batch: Batch) -> int:
        """Counts the tokens of a batch, which is never padded."""
        return len(batch.ids)

    def default_token_budget(self) -> int:
        """Returns the tokens per batch."""
        return TOKEN_BUDGET

    def _group(self, request: Any, batch: Batch, start: int, count: int, length: int) -> torch.Tensor:
        ids = batch.ids[start : start + count * length].reshape(count, length)
        positions = np.arange(length, dtype=np.int64)[None] + self._position_offset
        request.infer([ids, positions], share_inputs=True)
        hidden = torch.from_numpy(request.get_output_tensor(0).data).view(count * length, -1)
        return pool(hidden, ((0, count, length),), self._spec.pooling, self._skip)
