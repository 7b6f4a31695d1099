"""The row that carries one slice from stage to stage.

Ray Data merges and splits blocks as it likes but never splits a row, so a slice stays whole from its reader to its writer.
Each column of the slice is one nested list in that row; nesting and unnesting copy nothing. Small slices are bundled into
one row: Ray polls for finished tasks ten times a second and spends milliseconds on each, however small it is.
"""

from __future__ import annotations

import pickle
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kosbert_ray.corpus.fragments import Fragment
from kosbert_ray.corpus.row_table import POSITION, REASON, TEXT
from kosbert_ray.encoder.packing import Tokens
from kosbert_ray.shards.receipt import Receipt
from kosbert_ray.vectors.kinds import DENSE, SPARSE, Kind
from kosbert_ray.vectors.ragged import Ragged
from kosbert_ray.vectors.sparse import SparseVectors
from kosbert_ray.vectors.token_vectors import TokenVectors

NOTES = "notes"  # the pickled slices without their columns, and the lengths of these
KEEP = "keep."  # prefix of the kept columns
MADE = "made."  # prefix of the columns that are made while texts are tokenized
# Fields of Tokens.
TOKENS = ("ids", "lengths", "rows", "dropped", "part_of", "part", "span_of", "span_start", "span_end")
KNOWN = "known"
REUSED = "reused"
VECTORS = "vectors"  # dense ones, and the prefix of the columns of others
VECTOR_ROWS = "vector_rows"


@dataclass(frozen=True)
class SliceRow:
    """One slice on its way through the stages, or the reason why it was dropped.

    Attributes:
        address: the slice's name in messages: file and indices.
        receipt: what is known about the slice so far; None if it could not be read.
        fragment: the fragment that it was cut from; None if it could not be read.
        notices: remarks for the user, from any stage.
        reread: whether rows were rejected after their texts were dropped; the writer reads those texts again.
        failed: why the slice was dropped: one line that starts with its address.
        changed: name of its input file, if the slice was dropped because that file changed during the run.
        columns: Arrow arrays by name: ``n`` values for each row of the slice, other lengths for tokens and vectors.
    """

    address: str = ""
    receipt: Receipt | None = None
    fragment: Fragment | None = None
    notices: tuple[str, ...] = ()
    reread: bool = False
    failed: str = ""
    changed: str = ""
    columns: Mapping[str, pa.Array] = field(default_factory=dict, repr=False)

    @property
    def dropped(self) -> bool:
        """True if there is nothing left to do for this slice."""
        return self.receipt is None or bool(self.failed or self.changed)

    @property
    def nbytes(self) -> int:
        """Bytes of all columns."""
        return sum(array.nbytes for array in self.columns.values())

    # -- rows of the slice ---------------------------------------------------------------------------------------------

    @property
    def texts(self) -> pa.Array:
        """large_string ``[n]``: the texts; after tokenizing only those of rejected rows, else null."""
        return self.columns[TEXT]

    @property
    def positions(self) -> pa.Array:
        """int64 ``[n]``: row numbers or byte offsets in the input file."""
        return self.columns[POSITION]

    @property
    def reasons(self) -> pa.Array:
        """string ``[n]``: why a row was rejected; null for good rows."""
        return self.columns[REASON]

    @property
    def good(self) -> pa.Array:
        """bool ``[n]``: rows that were not rejected so far."""
        return pc.is_null(self.reasons)

    def reject(self, failed: Mapping[int, str]) -> SliceRow:
        """Rejects rows.

        Args:
            failed: reasons by index among the rows that are good so far.
        """
        if not failed:
            return self
        good = [index for index, is_good in enumerate(self.good.to_pylist()) if is_good]
        reasons = self.reasons.to_pylist()
        for index, reason in failed.items():
            reasons[good[index]] = reason
        return self.with_columns({REASON: pa.array(reasons, pa.string())})

    # -- tokens --------------------------------------------------------------------------------------------------------

    @property
    def tokens(self) -> Tokens:
        """The tokenized slice, without the texts that failed."""
        return Tokens(**{name: self.columns[name].to_numpy() for name in TOKENS})

    def with_tokens(self, tokens: Tokens) -> SliceRow:
        """Adds a tokenized slice."""
        return self.with_columns({name: pa.array(getattr(tokens, name)) for name in TOKENS})

    # -- vectors -------------------------------------------------------------------------------------------------------

    def with_vectors(self, dense: npt.NDArray[np.float32], ragged: Mapping[Kind, Ragged], rows: pa.Array) -> SliceRow:
        """Adds the vectors of the distinct texts.

        Args:
            dense: float32 ``[u, dimension]``.
            ragged: vectors of other kinds.
            rows: int32 ``[good rows]``, the index of each one's text.
        """
        add = {VECTORS: pa.array(dense.reshape(-1)), VECTOR_ROWS: rows}
        for kind, found in ragged.items():
            for number, column in enumerate((found.offsets, *found.columns())):
                add[f"{VECTORS}.{kind}.{number}"] = pa.array(column.reshape(-1))
        return self.with_columns(add)

    def vectors(self, kind: Kind, dimension: int) -> npt.NDArray[np.float32] | Ragged:
        """The vectors of the distinct texts, of one kind.

        Args:
            kind: the kind.
            dimension: length of a dense vector or of a token vector.
        """
        if kind == DENSE:
            dense: npt.NDArray[np.float32] = self.columns[VECTORS].to_numpy().reshape(-1, dimension)
            return dense
        nothing: Ragged = SparseVectors.empty() if kind == SPARSE else TokenVectors.empty(dimension)
        offsets, *columns = (
            self.columns[f"{VECTORS}.{kind}.{number}"].to_numpy() for number in range(1 + len(nothing.columns()))
        )
        shaped = [column.reshape(-1, *empty.shape[1:]) for column, empty in zip(columns, nothing.columns(), strict=True)]
        return nothing.with_columns(offsets, shaped, np.ones(len(offsets) - 1, bool))

    # -- changes -------------------------------------------------------------------------------------------------------

    def with_columns(self, add: Mapping[str, pa.Array], drop: Collection[str] = ()) -> SliceRow:
        """Drops columns, then adds or replaces others."""
        left = {name: array for name, array in self.columns.items() if name not in drop}
        return replace(self, columns={**left, **add})

    def with_facts(self, **facts: Any) -> SliceRow:
        """Fills in fields of the receipt."""
        assert self.receipt is not None
        return replace(self, receipt=replace(self.receipt, **facts))


def nest(columns: Mapping[str, pa.Array]) -> pa.Table:
    """Arrays of any lengths as a table of one row, a ``large_list`` each. Copies nothing."""
    lists = [pa.LargeListArray.from_arrays(np.array([0, len(array)]), array) for array in columns.values()]
    return pa.table(lists, list(columns))


def unnest(row: pa.Table, name: str) -> pa.Array:
    """The array that :func:`nest` put into a column of a one-row table. Copies nothing."""
    return row.column(name).chunk(0).flatten()


def bundle(slices: Sequence[SliceRow]) -> pa.Table:
    """Slices as the one row in which they travel. A single slice is not copied."""
    names = dict.fromkeys(name for item in slices for name in item.columns)
    columns = {name: _joined([item.columns[name] for item in slices if name in item.columns]) for name in names}
    notes = [(replace(item, columns={}), {name: len(array) for name, array in item.columns.items()}) for item in slices]
    return nest({**columns, NOTES: pa.array([pickle.dumps(notes)], pa.large_binary())})


def _joined(arrays: list[pa.Array]) -> pa.Array:
    return arrays[0] if len(arrays) == 1 else pa.concat_arrays(arrays)


def unbundle(row: pa.Table) -> list[SliceRow]:
    """The slices that :func:`bundle` put into one row. Copies nothing."""
    notes: list[tuple[SliceRow, dict[str, int]]] = pickle.loads(unnest(row, NOTES)[0].as_py())
    values = {name: unnest(row, name) for name in row.column_names if name != NOTES}
    at = dict.fromkeys(values, 0)
    slices = []
    for item, lengths in notes:
        slices.append(replace(item, columns={name: values[name].slice(at[name], lengths[name]) for name in lengths}))
        for name, length in lengths.items():
            at[name] += length
    return slices
