"""Static embedding models: the mean of the vectors of a text's tokens, in NumPy at the speed of memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kosbert_ray.encoder.engines.base import Computed, Engine, EngineSettings
from kosbert_ray.encoder.numpy_head import layers
from kosbert_ray.encoder.packing import Batch, pack
from kosbert_ray.model.files import weight_paths
from kosbert_ray.model.spec import ModelSpec
from kosbert_ray.model.static_table import read_table
from kosbert_ray.vectors.kinds import DENSE, Kind

TOKEN_BUDGET = 65_536
# Tokens whose vectors are gathered at a time: 1 MiB of vectors of 256 numbers, which fits a core's cache. Fixed, because
# the sum of a longer text is rounded between them.
GATHERED = 1024


def load(spec: ModelSpec, settings: EngineSettings) -> Engine:
    """Loads a model. Raises as :class:`StaticEngine` does."""
    return StaticEngine(spec, settings)


class StaticEngine:
    """A table of vectors by token id; implements :class:`~kosbert_ray.encoder.engines.base.Engine`.

    A text's vector depends on its own tokens only, to the last bit.

    Raises:
        ModelError: the weights cannot be read or do not fit the model.
    """

    attention = "none"
    streams = 1  # the mean takes a tenth of the time of tokenizing
    pack = staticmethod(pack)
    kinds: tuple[Kind, ...] = (DENSE,)

    def __init__(self, spec: ModelSpec, settings: EngineSettings) -> None:
        del settings
        self._table = read_table(weight_paths(spec.transformer))
        self._head = layers(spec.head)
        self.vocabulary = len(self._table)
        self.notices: list[str] = []

    def vectors(self, batch: Batch, kinds: Sequence[Kind] = (DENSE,)) -> Computed:
        """Returns dense vectors; a sequence without tokens has the mean 0."""
        del kinds
        vectors = np.zeros((len(batch.texts), self._table.shape[1]), np.float32)
        row = 0
        for start, count, length in batch.groups:
            if length:
                ids = batch.ids[start : start + count * length].reshape(count, length)
                self._average(ids, vectors[row : row + count])
            row += count
        for layer in self._head:
            vectors = layer(vectors)
        return {DENSE: vectors}

    def computed_tokens(self, batch: Batch) -> int:
        """Counts the tokens of a batch, which is never padded."""
        return len(batch.ids)

    def default_token_budget(self) -> int:
        """Returns the tokens per batch."""
        return TOKEN_BUDGET

    def _average(self, ids: npt.NDArray[np.int64], means: npt.NDArray[np.float32]) -> None:
        """Writes the means of sequences of equal length, int64 ``[n, length]``, into float32 ``[n, width]``."""
        count, length = ids.shape
        step = max(1, GATHERED // length)
        for first in range(0, count, step):
            some, total = ids[first : first + step], means[first : first + step]
            np.sum(self._table[some[:, :GATHERED]], axis=1, out=total)
            for begin in range(GATHERED, length, GATHERED):
                total += self._table[some[:, begin : begin + GATHERED]].sum(axis=1)
        means /= length
