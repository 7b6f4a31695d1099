"""OpenVINO: a faster engine for CPUs. Converts the model once per machine and keeps the result in the cache.

Sequences of equal length run as one matrix, so there is neither padding nor an attention mask. A converted model is loaded
without torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kosbert_ray.encoder.bisection import in_streams
from kosbert_ray.encoder.engines import openvino_runtime
from kosbert_ray.encoder.engines.base import Computed, Engine, EngineSettings
from kosbert_ray.encoder.engines.openvino_cache import converted
from kosbert_ray.encoder.engines.openvino_runtime import ACCOUNT, GRAPH, HEAD
from kosbert_ray.encoder.packing import Batch, Spans, pack_one_length, random_batch
from kosbert_ray.errors import ModelError
from kosbert_ray.model.spec import ModelSpec
from kosbert_ray.vectors.kinds import DENSE, Kind

TOKEN_BUDGET = 1024
# Of the first call: long enough that each stream takes one.
WARM_UP_LENGTH, WARM_UP_TEXTS = 16, 8


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
    kinds: tuple[Kind, ...] = (DENSE,)

    def __init__(self, spec: ModelSpec, settings: EngineSettings) -> None:
        self._skip = settings.skip
        if self._skip and "weightedmean" in spec.pooling:
            raise ModelError(f"{spec.folder}: a weighted mean without its prompt is not supported by OpenVINO; use torch")
        self.streams = settings.threads
        folder = converted(spec, settings.precision)
        account = json.loads((folder / ACCOUNT).read_text("utf-8"))
        self.vocabulary = int(account["vocabulary"])
        self.notices: list[str] = account["notices"]
        self._position_offset = int(account["position_offset"])
        self._requests = openvino_runtime.requests(str(folder / GRAPH), settings.precision, self.streams)
        self._heads = openvino_runtime.requests(str(folder / HEAD), "fp32", self.streams)
        self._warm_up(min(WARM_UP_LENGTH, spec.max_seq_length))

    def vectors(self, batch: Batch, kinds: Sequence[Kind] = (DENSE,)) -> Computed:
        """Returns dense vectors of the sequences or spans. Call from up to ``streams`` threads."""
        del kinds
        request, head = self._requests.get(), self._heads.get()
        try:
            return {DENSE: np.concatenate([self._group(request, head, batch, *group) for group in batch.groups])}
        finally:
            self._requests.put(request)
            self._heads.put(head)

    def _warm_up(self, length: int) -> None:
        """Makes the first call of every stream.

        Two threads that make the first call of the process at the same time deadlock in OpenVINO's bindings, and a stream
        whose first text has one token returns wrong vectors for later texts (both in 2026.4).
        """
        batch = random_batch([length] * WARM_UP_TEXTS, self.vocabulary)
        self.vectors(batch)
        for _ in in_streams(self.vectors, [batch] * self.streams, self.streams):
            pass

    def computed_tokens(self, batch: Batch) -> int:
        """Counts the tokens of a batch, which is never padded."""
        return len(batch.ids)

    def default_token_budget(self) -> int:
        """Returns the tokens per batch."""
        return TOKEN_BUDGET

    def _group(self, request: Any, head: Any, batch: Batch, start: int, count: int, length: int) -> npt.NDArray[np.float32]:
        ids = batch.ids[start : start + count * length].reshape(count, length)
        positions = np.arange(length, dtype=np.int64)[None] + self._position_offset
        hidden = openvino_runtime.infer(request, [ids, positions])
        if batch.spans:
            return self._spans(head, hidden.reshape(count * length, -1), batch.spans, start)
        if skip := min(self._skip, length - 1):
            hidden = np.ascontiguousarray(hidden[:, skip:])
        return openvino_runtime.infer(head, [hidden]).copy()

    def _spans(self, head: Any, hidden: npt.NDArray[np.float32], spans: Spans, start: int) -> npt.NDArray[np.float32]:
        """Returns the vectors of the spans in a group; ``hidden``, ``[T, h]``, are its tokens from ``start`` on."""
        begins = spans.starts - start
        here = (begins >= 0) & (begins < len(hidden))
        places = zip(begins[here].tolist(), spans.lengths[here].tolist(), strict=True)
        return np.concatenate(
            [openvino_runtime.infer(head, [hidden[None, begin : begin + length]]).copy() for begin, length in places]
        )
