"""What is done to slices: read → tokenize → encode → write. A stage takes the rows that travel together and gives them on.

A row that cannot be embedded gets a reason in its place and is passed by; a slice that cannot be done is passed on as notes
only, so that the others are. Only what would spoil every slice (the output refuses, the model is not the job's) raises.
"""

from __future__ import annotations

import json
import os
import pickle
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray

from kosbert_ray.config import OnBadRow
from kosbert_ray.corpus.fragments import Fragment, Limits, Slice
from kosbert_ray.corpus.reader import FragmentReader
from kosbert_ray.corpus.row_table import POSITION, REASON, TEXT
from kosbert_ray.corpus.text import DECOMPOSED_NOTICE, MANY_DECOMPOSED, decomposed
from kosbert_ray.encoder.long_text import LongText
from kosbert_ray.encoder.options import EncoderOptions
from kosbert_ray.encoder.packing import Tokens, take_rows
from kosbert_ray.encoder.prepare import PreparedModel
from kosbert_ray.encoder.tokenizer import Tokenizer
from kosbert_ray.errors import (
    FingerprintMismatch,
    InputChanged,
    InputError,
    KosbertError,
    ModelError,
    StorageError,
    described,
)
from kosbert_ray.run.chunk_rows import CHUNK, KEEP, VECTOR_ROWS, collapse, expand, sources
from kosbert_ray.run.monitor.board import MAX_ATTEMPTS, Board
from kosbert_ray.run.shared_vectors import KnownTexts, KnownVectors
from kosbert_ray.run.slice_row import apart, nest, notes_of, replace_columns, together, unnest, with_notes, without_slice
from kosbert_ray.shards.format import EmbeddingFormat
from kosbert_ray.shards.ledger import Ledger
from kosbert_ray.shards.receipt import Receipt
from kosbert_ray.shards.shard import REJECTED_SCHEMA, checksum, write_rejected, write_shard
from kosbert_ray.storage import Storage

TOKENS = ("ids", "lengths", "rows", "dropped")
PARTS = ("part_of", "part")
KNOWN = "known"
VECTORS = "vectors"  # of the distinct texts
FRAGMENT = "fragment"
OUTCOMES = "outcomes"
MAX_TOGETHER = 64  # small slices in a row: a store's answer to each is waited for in turn


@dataclass(frozen=True)
class Work:
    """All that the stages need to know; small, and the same for every slice."""

    reader: FragmentReader
    model: PreparedModel
    long_text: LongText
    chunk_columns: tuple[str, ...]
    encoder: EncoderOptions
    encoders: int
    output: Storage
    formats: tuple[EmbeddingFormat, ...]
    on_bad_row: OnBadRow
    fingerprint: str
    board: Board
    known: KnownVectors | None  # of texts that stand in several slices
    together: Limits  # the most rows and bytes of text of slices that share their way
    together_input_bytes: int  # and the most of the stored input, so that every encoder has its part


@dataclass(frozen=True)
class Outcome:
    """What the driver hears of a slice.

    Attributes:
        receipt: it is committed.
        failed: it is not, and why: one line that begins with its address.
        changed: it is not, because its file is no longer what was planned: the file's name.
        rejected: the address and reason of its first rejected row.
        notices: what a user should know of the encoder.
    """

    receipt: Receipt | None = None
    failed: str = ""
    changed: str = ""
    rejected: str = ""
    notices: tuple[str, ...] = ()

    @staticmethod
    def table(outcomes: list[Outcome]) -> pa.Table:
        """As the last stage gives them to the driver: one row."""
        return pa.table({OUTCOMES: [json.dumps([asdict(outcome) for outcome in outcomes])]})

    @staticmethod
    def of(content: str) -> list[Outcome]:
        """The outcomes in such a row."""
        return [
            Outcome(**values | {"receipt": receipt and Receipt(**receipt), "notices": tuple(values["notices"])})
            for values in json.loads(content)
            for receipt in [values["receipt"]]
        ]


Done = TypeVar("Done")
Do = Callable[[pa.Table, dict[str, Any]], Done]


def _stage(name: str, row: pa.Table, work: Work, do: Do[Done]) -> list[Done | pa.Table]:
    """What one stage makes of slices that travel together; of those that fail, or have failed before, a row of notes."""
    slices = apart(row)
    if len(slices) == 1:
        return [_marked(name, slices[0], work, do)]
    first = next((notes["address"] for notes in map(notes_of, slices) if "address" in notes), "")
    with work.board.at(name, f"{first} and {len(slices) - 1} more") as attempt:
        # When they have taken a worker down, each is marked, so that the one at fault stands out.
        one = _unmarked if attempt == 1 else _marked
        return [one(name, piece, work, do) for piece in slices]


def _unmarked(name: str, row: pa.Table, _work: Work, do: Do[Done]) -> Done | pa.Table:
    notes = notes_of(row)
    address = notes.get("address")
    if address is None:
        return row
    file = notes["file"]
    try:
        return do(row, notes)
    except InputChanged:  # the writer reads a slice again for the texts of rejected rows
        return without_slice({"changed": file})
    except KosbertError:
        raise
    except Exception as error:
        return without_slice({"failed": f"{address}: stage {name} failed ({described(error)})"})


def _marked(name: str, row: pa.Table, work: Work, do: Do[Done]) -> Done | pa.Table:
    """As :func:`_unmarked`, unless the slice has taken too many workers with it."""
    address = notes_of(row).get("address")
    if address is None:
        return row
    with work.board.at(name, address) as attempt:
        if attempt > MAX_ATTEMPTS:
            return without_slice({"failed": f"{address}: took {MAX_ATTEMPTS} workers down in stage {name}"})
        return _unmarked(name, row, work, do)


# -- read ----------------------------------------------------------------------------------------------------------


def read_slices(work: Work, fragments: list[tuple[Fragment, frozenset[int]]]) -> Iterator[pa.Table]:
    """The slices of fragments that are not done, small ones together.

    Args:
        work: what to do.
        fragments: each with the indices of its slices that are done.
    """
    most = (MAX_TOGETHER, work.together.max_rows, work.together.max_bytes, work.together_input_bytes)
    held: list[pa.Table] = []
    sums = (0, 0, 0, 0)
    for fragment, done in fragments:
        for row in _fragment_slices(work, fragment, done):
            of_slice = TEXT in row.column_names
            input_bytes = notes_of(row)["input_bytes"] if of_slice else 0
            sizes = (1, len(unnest(row, TEXT)) if of_slice else 0, row.nbytes, input_bytes)
            if held and any(part + more > limit for part, more, limit in zip(sums, sizes, most, strict=True)):
                yield together(held)
                held, sums = [], (0, 0, 0, 0)
            held.append(row)
            sums = tuple(part + more for part, more in zip(sums, sizes, strict=True))
    if held:
        yield together(held)


def _fragment_slices(work: Work, fragment: Fragment, done: frozenset[int]) -> Iterator[pa.Table]:
    """The slices of one fragment that are not in ``done``, as rows; a broken one ends the fragment, not the run."""
    pieces = work.reader.slices(fragment, done)
    address = f"{work.reader.storage.url(fragment.file.name)}, fragment {fragment.index}"
    number = 0
    while True:
        row: pa.Table | None
        with work.board.at("read", f"{address}, its slice {number} to do") as attempt:
            started = time.perf_counter()
            try:
                if attempt > MAX_ATTEMPTS:
                    raise InputError(f"{address}: took {MAX_ATTEMPTS} workers down in stage read")
                found = next(pieces, None)
                row = slice_row(work, *found, time.perf_counter() - started) if found else None
            except InputChanged:
                row = without_slice({"changed": fragment.file.name})
            except (InputError, StorageError) as error:
                row = without_slice({"failed": str(error)})
            except Exception as error:
                row = without_slice({"failed": f"{address}: cannot be read ({described(error)})"})
        if row is None:
            return
        yield row
        if "address" not in notes_of(row):
            return
        number += 1


def slice_row(work: Work, piece: Slice, table: pa.Table, read_seconds: float) -> pa.Table:
    """A slice as the row that travels: all its rows' addresses, reasons, texts and kept columns."""
    fragment = piece.fragment
    notes = {
        "address": f"{work.reader.storage.url(fragment.file.name)}, slice {fragment.index}-{piece.index}",
        "shard": piece.shard_name(work.fingerprint) if piece.rows else "",
        "file": fragment.file.name,
        "version": fragment.file.version,
        "fragment": fragment.id,
        "fragment_index": fragment.index,
        "slice_index": piece.index,
        "last": piece.last,
        "cut": fragment.cut,
        "fingerprint": work.fingerprint,
        "input_rows": table.num_rows,
        "input_bytes": piece.input_bytes,
        "read_seconds": read_seconds,
    }
    columns = {name: table[name].combine_chunks() for name in (TEXT, POSITION, REASON)}
    columns |= {KEEP + name: table[name].combine_chunks() for name in work.reader.columns.keep.names}
    columns[FRAGMENT] = pa.array([pickle.dumps(fragment)], pa.binary())
    return with_notes(nest(columns), notes)


def _good(row: pa.Table) -> pa.Array:
    """bool ``[n]``: which of the slice's rows nothing is wrong with so far."""
    return pc.is_null(unnest(row, REASON))


def _reject(row: pa.Table, failed: Mapping[int, str]) -> pa.Array:
    """The slice's reasons with those of ``failed`` added, whose keys count the rows that were good so far."""
    reasons = unnest(row, REASON)
    if not failed:
        return reasons
    good = [index for index, is_good in enumerate(_good(row).to_pylist()) if is_good]
    values = reasons.to_pylist()
    for index, reason in failed.items():
        values[good[index]] = reason
    return pa.array(values, pa.string())


# -- tokenize ------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _tokenizer(reference: ray.ObjectRef[Tokenizer]) -> Tokenizer:
    """One tokenizer a worker process, whatever number of slices it sees."""
    # Ray runs one task a core: threads inside a task would only fight over them.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return ray.get(reference)


@lru_cache(maxsize=1)
def _known_texts(reference: ray.ObjectRef[KnownTexts]) -> KnownTexts:
    return ray.get(reference)


def tokenize(
    row: pa.Table, work: Work, tokenizer: ray.ObjectRef[Tokenizer], known_texts: ray.ObjectRef[KnownTexts] | None
) -> pa.Table:
    """Texts → token ids, each distinct text once; only the texts of rejected rows go on."""

    def do(row: pa.Table, notes: dict[str, Any]) -> pa.Table:
        started = time.perf_counter()
        texts = unnest(row, TEXT)
        good = texts.filter(_good(row)) if unnest(row, REASON).null_count < len(texts) else texts
        find = _known_texts(known_texts).find if known_texts else None
        found = work.long_text(_tokenizer(tokenizer), good, find)
        if found.chunks:
            row = expand(row, found.chunks, work.chunk_columns)
            texts = unnest(row, TEXT)
        tokens = found.tokens
        rows = tokens.rows
        failed: dict[int, str] = {}
        if tokens.failed:
            failed = {index: tokens.failed[text] for index, text in enumerate(rows.tolist()) if text in tokens.failed}
            rows = rows[[index not in failed for index in range(len(rows))]]
        to_encode = found.to_encode()
        notes |= {
            "distinct": int(to_encode.sum()) - len(tokens.failed),
            "tokens": int(replace(tokens, rows=rows).row_lengths().sum()),
            "encoded_tokens": int(tokens.lengths[to_encode].sum()),
            "decomposed": not _tokenizer(tokenizer).composes and decomposed(good) > MANY_DECOMPOSED * max(1, len(good)),
            "unknown_tokens": _tokenizer(tokenizer).unknown(tokens, to_encode),
            "split": found.split,
            "truncated": int((tokens.dropped[rows] > 0).sum()),
            "dropped_tokens": int(tokens.dropped[rows].sum()),
            "tokenize_seconds": time.perf_counter() - started,
        }
        columns = {name: pa.array(getattr(tokens, name)) for name in (*TOKENS, *PARTS)} | {"rows": pa.array(rows)}
        columns |= {KNOWN: pa.array(found.known)} if known_texts else {}
        if failed and found.chunks:
            notes["reread"] = True
        reasons = _reject(row, failed)
        columns |= {REASON: reasons, TEXT: pc.if_else(pc.is_valid(reasons), texts, pa.scalar(None, pa.large_string()))}
        return with_notes(replace_columns(row, (TEXT, REASON), columns), notes)

    return together(_stage("tokenize", row, work, do))


# -- encode --------------------------------------------------------------------------------------------------------


class EncodeSlices:
    """The actor: one loaded model, one slice after another."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.node = socket.gethostname()
        # An actor whose creation fails is started again and again, with a traceback each time, and its reason is lost in
        # Ray's. So it starts, and the first slice is answered with the reason.
        self._broken: KosbertError | None = None
        try:
            self._start()
        except KosbertError as error:
            self._broken = error
        except Exception as error:
            self._broken = ModelError(
                f"{work.model.source.name}: an encoder cannot start on {self.node} ({described(error)})"
            )
        self._free_since = time.perf_counter()

    def _start(self) -> None:
        work = self.work
        name = f"{self.node}:{os.getpid()}"
        work.board.start_encoder(name, work.encoders)

        from kosbert_ray.encoder.encoder import Encoder

        spec = work.model.spec()  # which is the driver's, or it raises
        with work.model.naming():
            self.encoder = Encoder(spec, work.encoder)
        self.known = work.known.open() if work.known else None
        work.board.encoder_ready(name)

    def __call__(self, row: pa.Table) -> pa.Table:
        """Encodes token ids. Adds the vectors of the distinct texts (float32, flattened) and the index of each row's."""
        if self._broken:
            raise self._broken
        return together(_stage("encode", row, self.work, self._encode))

    def _encode(self, row: pa.Table, notes: dict[str, Any]) -> pa.Table:
        from kosbert_ray.encoder.bisection import DeviceBroken

        started = time.perf_counter()
        parts = {name: unnest(row, name).to_numpy() for name in PARTS}
        tokens = Tokens(*(unnest(row, name).to_numpy() for name in TOKENS), **parts)
        try:
            encoded = self.encoder.encode_tokens(tokens, self._known(row))
        except DeviceBroken:
            os._exit(1)  # Ray starts another process, and the board counts the attempts
        rows = encoded.rows
        if encoded.failed:
            rows = rows[[index not in encoded.failed for index in range(len(rows))]]
        notes |= {
            "precision": self.encoder.precision,
            "attention": self.encoder.attention,
            "device": self.encoder.device,
            "notices": [*self.encoder.notices, *([DECOMPOSED_NOTICE] if notes.pop("decomposed", False) else [])],
            "node": self.node,
            "batches": encoded.batches,
            "computed_tokens": encoded.computed_tokens,
            "wait_seconds": started - self._free_since,
            "encode_seconds": time.perf_counter() - started,
        }
        self._free_since = time.perf_counter()
        if encoded.failed:
            notes["reread"] = True
        columns = {
            REASON: _reject(row, encoded.failed),
            VECTORS: pa.array(encoded.distinct.reshape(-1)),
            VECTOR_ROWS: pa.array(rows),
        }
        drop = [name for name in (*TOKENS, *PARTS, KNOWN, REASON) if name in row.column_names]
        return with_notes(replace_columns(row, drop, columns), notes)

    def _known(self, row: pa.Table) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]] | None:
        """Which of the slice's texts have a vector already, and these."""
        if self.known is None:
            return None
        known = unnest(row, KNOWN).to_numpy()
        texts = np.flatnonzero(known >= 0)
        return texts, self.known[known[texts]]


# -- write ---------------------------------------------------------------------------------------------------------


def write(row: pa.Table, work: Work) -> pa.Table:
    """Commits slices and gives their outcomes: first the rejected rows, then the shard, whose presence is the commit."""
    done = _stage("write", row, work, lambda row, notes: _write(row, notes, work))
    return Outcome.table([item if isinstance(item, Outcome) else Outcome(**notes_of(item)) for item in done])


@lru_cache(maxsize=4)
def _require_claim(output: Storage, digest: str) -> None:
    """Before a worker's first commit: another job may have replaced this one's claim while nothing was committed."""
    if not Ledger(output).still_claimed(digest):
        raise FingerprintMismatch(
            f"{output.url()}: another job has claimed this output since the run began; choose another output"
        )


def _write(row: pa.Table, notes: dict[str, Any], work: Work) -> Outcome:
    started = time.perf_counter()
    _require_claim(work.output, work.fingerprint)
    notices = tuple(notes.pop("notices"))
    del notes["address"]
    reread = notes.pop("reread", False)
    row = collapse(row)
    good = _good(row)
    rejected = _rejected(row, work, reread_slice=notes["slice_index"] if reread else None)
    first = _address(rejected.slice(0, 1).to_pylist()[0]) if rejected.num_rows else ""
    if first and work.on_bad_row == "fail":
        raise InputError(f"{work.reader.storage.url(first)}; mend it, or set on_bad_row=reject")
    receipt = Receipt(
        **notes, rows=len(good) - rejected.num_rows, rejected=rejected.num_rows, output_bytes=0, embedding_xxh128=""
    )
    if rejected.num_rows:
        write_rejected(work.output, receipt.shard, rejected)
    if receipt.shard:
        keep = {name: unnest(row, KEEP + name) for name in work.reader.columns.keep.names}
        keep |= {name: unnest(row, CHUNK + name) for name in work.chunk_columns}
        main = work.formats[0]
        distinct = unnest(row, VECTORS).to_numpy().reshape(-1, main.dimension)
        vectors = take_rows(distinct, unnest(row, VECTOR_ROWS).to_numpy())
        if rejected.num_rows and not main.nullable:
            keep = {name: column.filter(good) for name, column in keep.items()}
        arrays = [format.array(vectors, good if format.nullable else None) for format in work.formats]
        receipt = replace(receipt, embedding_xxh128=checksum(*arrays))
        footer = receipt.footer() | {"fingerprint": work.fingerprint}
        size = write_shard(work.output, receipt.shard, keep, arrays, work.formats, footer)
        receipt = replace(receipt, output_bytes=size)
    receipt = replace(receipt, write_seconds=time.perf_counter() - started, finished_at=time.time())
    return Outcome(receipt, rejected=first, notices=notices)


def _rejected(row: pa.Table, work: Work, reread_slice: int | None) -> pa.Table:
    """The slice's rejected rows, as ``REJECTED_SCHEMA``.

    The texts of those that the model rejected were left behind: for them slice ``reread_slice`` is read once more.
    """
    bad = pc.invert(_good(row))
    positions = unnest(row, POSITION).filter(bad)
    if not len(positions):
        return REJECTED_SCHEMA.empty_table()
    fragment: Fragment = pickle.loads(unnest(row, FRAGMENT)[0].as_py())
    texts = unnest(row, TEXT).filter(bad)
    if reread_slice is not None:
        _, table = next(work.reader.slices(fragment, range(reread_slice)))
        texts = table[TEXT].combine_chunks().take(pa.array(sources(row)).filter(bad))
    by_byte = not fragment.file.row_numbers
    nothing = pa.nulls(len(positions), pa.int64())
    return pa.table(
        [
            pa.array([fragment.file.name] * len(positions)),
            nothing if by_byte else positions,
            positions if by_byte else nothing,
            unnest(row, REASON).filter(bad),
            texts,
        ],
        schema=REJECTED_SCHEMA,
    )


def _address(rejected: dict[str, Any]) -> str:
    at = f"row {rejected['row']}" if rejected["row"] is not None else f"byte {rejected['byte_offset']}"
    return f"{rejected['file']}: {at}: {rejected['reason']}"
