"""Vectors that are known before a slice is encoded: of texts that several slices share, and from an older output."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kosbert_ray.run.shared_vectors import SharedTexts
from kosbert_ray.run.stages.work import Work


class KnownVectors:
    """Looks up the texts of one slice.

    Args:
        shared_texts: texts that several slices share; None if the job does not look for them.
        work: the job.

    Attributes:
        shared: number of shared vectors. They have the indices below it, the vectors from the older output those above.
        vectors: the vectors from the older output, float32 ``[m, dimension]``.
    """

    def __init__(self, shared_texts: SharedTexts | None, work: Work) -> None:
        self._texts = shared_texts
        self._older = work.older.open() if work.older else None
        self.shared = work.shared.count if work.shared else 0
        self.vectors = np.zeros((0, work.formats[0].dimension), np.float32)

    def find(self, texts: pa.Array) -> npt.NDArray[np.int64]:
        """int64 ``[n]``: the index of each text's vector, -1 if it must be encoded."""
        known = self._texts.find(texts) if self._texts else np.full(len(texts), -1, np.int64)
        if self._older is not None:
            found, vectors = self._older.find(texts)
            known[found] = self.shared + len(self.vectors) + np.arange(len(found))
            self.vectors = np.concatenate((self.vectors, vectors))
        return known
