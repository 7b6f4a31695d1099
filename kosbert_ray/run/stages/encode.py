"""Encode: token ids become vectors, in an encoder that holds the model."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kosbert_ray.errors import KosbertError, ModelError, described
from kosbert_ray.run.monitor.board import Board, Part
from kosbert_ray.run.slice_row import KNOWN, REUSED, TOKENS, SliceRow
from kosbert_ray.run.stages.work import Work, run_stage
from kosbert_ray.shards.formats.sparse import SparseFormat
from kosbert_ray.vectors.ragged import Ragged
from kosbert_ray.vectors.sparse import SparseVectors

REPORT_SECONDS = 1.0  # between two reports


class _Progress:
    """Reports how much of a slice is encoded, for slices that take longer than ``REPORT_SECONDS``."""

    def __init__(self, row: SliceRow, board: Board) -> None:
        self._row, self._board = row, board
        self._done, self._reported = 0, time.monotonic()

    def __call__(self, tokens: int) -> None:
        self._done += tokens
        now, receipt = time.monotonic(), self._row.receipt
        if now - self._reported >= REPORT_SECONDS and receipt:
            self._reported = now
            share = min(1.0, self._done / max(1, receipt.encoded_tokens))
            part = Part(share, share * receipt.tokens, share * receipt.input_rows, share * receipt.input_bytes)
            self._board.report_part("encode", self._row.address, part)


class EncodeSlices:
    """An encoder: one loaded model that encodes one slice after another."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.node = socket.gethostname()
        # Ray restarts an actor whose creation fails, prints a traceback each time, and loses the reason. So the encoder is
        # created anyway and answers its first slice with the error.
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
        work.board.start_encoder(name, work.encoders_per_node)

        from kosbert_ray.encoder.encoder import Encoder

        spec = work.model.spec()  # raises if it is not the model that the driver prepared
        with work.model.naming():
            self.encoder = Encoder(spec, work.encoder, work.strict_engine, work.kinds)
        self.shared = work.shared.open() if work.shared else None
        work.board.encoder_ready(name)

    def __call__(self, slices: Sequence[SliceRow]) -> list[SliceRow]:
        """Encodes slices.

        Adds the vectors of each distinct text and span and, for each good row, the index of its vectors.
        """
        if self._broken:
            raise self._broken
        return run_stage("encode", slices, self.work, self.encode_slice)

    def encode_slice(self, row: SliceRow) -> SliceRow:
        """Encodes one slice."""
        started = time.perf_counter()
        encoded = self.encoder.encode_tokens(row.tokens, self._known(row), on_batch=_Progress(row, self.work.board))
        rows = encoded.rows
        if encoded.failed:
            rows = rows[[index not in encoded.failed for index in range(len(rows))]]
        row = replace(
            row.reject(encoded.failed),
            notices=(*self._notices(), *row.notices),
            reread=row.reread or bool(encoded.failed),
        )
        ragged = {kind: self._kept(found) for kind, found in encoded.ragged.items()}
        row = row.with_columns({}, drop=(*TOKENS, KNOWN, REUSED)).with_vectors(encoded.distinct, ragged, pa.array(rows))
        row = row.with_facts(
            precision=self.encoder.precision,
            attention=self.encoder.attention,
            device=self.encoder.device,
            node=self.node,
            batches=encoded.batches,
            computed_tokens=encoded.computed_tokens,
            wait_seconds=started - self._free_since,
            encode_seconds=time.perf_counter() - started,
        )
        self._free_since = time.perf_counter()
        return row

    def _kept(self, found: Ragged) -> Ragged:
        """The vectors without what is not stored, which need not travel."""
        for item in self.work.formats:
            if isinstance(item, SparseFormat) and isinstance(found, SparseVectors):
                return item.kept(found)
        return found

    def _notices(self) -> list[str]:
        """The encoder's notices but those on the model's folder, which the driver has told under the user's name for it."""
        return [notice for notice in self.encoder.notices if notice not in self.encoder.spec.notices]

    def _known(self, row: SliceRow) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]] | None:
        """Indices of the slice's texts whose vectors are known, and those vectors."""
        if KNOWN not in row.columns:
            return None
        known = row.columns[KNOWN].to_numpy()
        texts = np.flatnonzero(known >= 0)
        reused: npt.NDArray[np.float32] = row.columns[REUSED].to_numpy().reshape(-1, self.encoder.spec.dimension)
        if self.shared is None:
            return texts, reused[known[texts]]
        shared = known[texts] < len(self.shared)
        vectors = np.empty((len(texts), reused.shape[1]), np.float32)
        vectors[shared] = self.shared[known[texts][shared]]
        vectors[~shared] = reused[known[texts][~shared] - len(self.shared)]
        return texts, vectors
