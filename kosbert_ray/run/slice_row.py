"""The one row a slice is: its columns are nested lists, its notes say what it is and what became of it so far.

Ray Data merges and splits blocks as it likes but never splits a row, so a slice stays whole from its reader to its writer.
Nesting and unnesting copy nothing. What travels is a row of such rows, since small slices share their way: Ray looks for
finished tasks ten times a second, and each costs it milliseconds, however little there is to do.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

NOTES = "notes"  # a JSON object


def nest(columns: dict[str, pa.Array]) -> pa.Table:
    """Arrays of any lengths as the one row of a table: a ``large_list`` each. Nothing is copied."""
    return pa.table(
        {
            name: pa.LargeListArray.from_arrays(pa.array([0, len(array)], pa.int64()), array)
            for name, array in columns.items()
        }
    )


def unnest(row: pa.Table, name: str) -> pa.Array:
    """The array that :func:`nest` put into a column of a one-row table, without a copy."""
    return row.column(name).chunk(0).flatten()


def notes_of(row: pa.Table) -> dict[str, Any]:
    """What the row's notes say."""
    return dict(json.loads(row.column(NOTES)[0].as_py()))


def with_notes(row: pa.Table, notes: dict[str, Any]) -> pa.Table:
    """The row with these notes instead of its own."""
    if NOTES in row.column_names:
        row = row.drop_columns([NOTES])
    return row.append_column(NOTES, pa.array([json.dumps(notes)], pa.large_string()))


def without_slice(notes: dict[str, Any]) -> pa.Table:
    """A row that carries notes only: the slice itself came to nothing, and the driver is to hear why."""
    return pa.table({NOTES: pa.array([json.dumps(notes)], pa.large_string())})


def replace_columns(row: pa.Table, drop: Sequence[str], add: dict[str, pa.Array]) -> pa.Table:
    """The row without ``drop`` and with ``add``, nested."""
    row = row.drop_columns(list(drop))
    nested = nest(add)
    for name in nested.column_names:
        row = row.append_column(name, nested.column(name))
    return row


def together(rows: Sequence[pa.Table]) -> pa.Table:
    """Rows of slices as the one row they travel in; what a row lacks is null there. One alone is not copied."""
    table = rows[0] if len(rows) == 1 else pa.concat_tables(rows, promote_options="default").combine_chunks()
    return nest({name: table.column(name).chunk(0) for name in table.column_names})


def apart(row: pa.Table) -> list[pa.Table]:
    """The rows that :func:`together` put into one, without a copy."""
    table = pa.table({name: unnest(row, name) for name in row.column_names})
    return [table.slice(index, 1) for index in range(table.num_rows)]
