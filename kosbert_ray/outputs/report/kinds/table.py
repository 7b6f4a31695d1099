"""The kinds of vectors that a report knows. To add one, write a module with a ``ReportedKind`` and list it here."""

from __future__ import annotations

from kosbert_ray.outputs.report.kinds import dense, multi_vector, sparse
from kosbert_ray.outputs.report.kinds.base import ReportedKind
from kosbert_ray.vectors.kinds import DENSE, MULTI_VECTOR, SPARSE, Kind

REPORTED: dict[Kind, ReportedKind] = {
    DENSE: dense.REPORTED,
    SPARSE: sparse.REPORTED,
    MULTI_VECTOR: multi_vector.REPORTED,
}
