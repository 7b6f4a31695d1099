"""The handle on an existing output, on which every tool of this package is built."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kosbert_ray.config import JobConfig, load_config
from kosbert_ray.errors import InputError, StorageError, require_one_of
from kosbert_ray.job import model_ref, open_output
from kosbert_ray.outputs.record import JobRecord
from kosbert_ray.outputs.sample import Sample, sample
from kosbert_ray.shards.formats.base import VectorFormat
from kosbert_ray.shards.formats.dense import EmbeddingFormat
from kosbert_ray.shards.formats.table import kinds_of
from kosbert_ray.shards.ledger import JOB_FILE, Ledger
from kosbert_ray.shards.receipt import Receipt
from kosbert_ray.shards.totals import Totals
from kosbert_ray.shards.vectors import Block, read_rows, read_vectors
from kosbert_ray.units import plural
from kosbert_ray.vectors.kinds import DENSE, KINDS, Kind, named

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow.dataset as ds

    from kosbert_ray.encoder.encoder import Encoder
    from kosbert_ray.model.spec import ModelSpec
    from kosbert_ray.outputs.fusion import Fusion
    from kosbert_ray.outputs.scoring import Similarity
    from kosbert_ray.outputs.search import By, Hit, Searcher
    from kosbert_ray.outputs.verify import Verification

SAMPLED_SHARDS = 16  # shards read for a sample

log = logging.getLogger(__name__)


class Output:
    """An output of ``kosbert-ray embed``: a folder of Parquet shards with their ledger. Open one with :meth:`open`.

    **What is in an output** has one definition, :attr:`receipts`: the slices that the manifest of a complete output lists
    or, before the output is complete, the slices committed so far. In both cases their shards exist. Other Parquet files
    in the folder, such as shards that a later run replaced or files of another program, are not in the output.

    The ledger is read at first use and then kept, so an ``Output`` is a snapshot. Open it again to see later commits.

    >>> import kosbert_ray
    >>> output = kosbert_ray.Output.open("vectors")
    >>> output.complete, output.totals.rows, output.columns
    (True, 42, ('id', 'text'))

    Attributes:
        storage: the folder.
        ledger: its ledger.
        record: what job.json records about the job that made it.
        job: that job, with the storage, encoder and Ray options given to :meth:`open`.
        formats: how vectors are stored, one entry per column of vectors.
        columns: names of the columns beside the vectors.
    """

    def __init__(self, config: JobConfig, retry: bool = False) -> None:
        """Opens ``config.output.path`` with ``config``'s options.

        Args:
            config: the path, and how to access stores and compute; what the job was comes from job.json.
            retry: retry for as long as ``storage.retry_seconds`` when the store fails.
        """
        self._given = config, retry
        self._searchers: dict[tuple[str | None, str | None], Searcher] = {}  # by prompt; each keeps the model loaded
        self.storage = open_output(config, retry)
        self.ledger = Ledger(self.storage)
        self.record = JobRecord.read(self.ledger)
        self.job = self.record.job_for(config)
        self.formats = self.record.formats
        self.columns = self.job.columns()

    @classmethod
    def open(cls, path: str | PathLike[str], **options: Any) -> Output:
        """Opens an output for reading.

        Args:
            path: its folder or URL; a folder of outputs opens the one that ``kosbert-ray promote`` made current.
            options: sections of a job file that say how to access it and how to compute:
                ``storage={"profile": "team"}``, ``encoder={"device": "cpu"}``.

        Raises:
            InputError: there is no output.
            StorageError: the store cannot be accessed, or job.json is damaged.
            UsageError: an option is unknown or wrong.

        >>> from kosbert_ray import Output
        >>> Output.open("vectors").job.model.name
        'bundled:kosbert-mini'
        """
        return cls(load_config(options, (), {"output.path": path}))

    def again(self) -> Output:
        """Opens it once more, to see what was committed since.

        >>> from kosbert_ray import Output
        >>> output = Output.open("vectors")
        >>> output.again().totals.rows == output.totals.rows
        True
        """
        config, retry = self._given
        path = {"output": config.output.model_copy(update={"path": self.storage.address})}
        return Output(config.model_copy(update=path), retry)

    def __repr__(self) -> str:
        return f"Output({self.storage.address!r})"

    # -- contents ----------------------------------------------------------------------------------------------------

    @cached_property
    def success(self) -> Mapping[str, Any] | None:
        """The content of ``_SUCCESS``; None if the output is not complete."""
        return self.ledger.success()

    @cached_property
    def identity(self) -> str:
        """sha256 of job.json, which is written once: identifies the output wherever it is copied."""
        return hashlib.sha256(self.storage.read(JOB_FILE)).hexdigest()

    @property
    def run(self) -> str:
        """Id of the run that completed the output; empty if it is not complete."""
        return str((self.success or {}).get("run", ""))

    @property
    def vectors_identity(self) -> str:
        """sha256 of what its vectors mean: the model's weights, pooling and prompt."""
        names = ("weights", "tokenizer", "pooling", "head", "prompt")
        return hashlib.sha256("\n".join(str(self.record.fingerprint.get(name)) for name in names).encode()).hexdigest()

    @property
    def complete(self) -> bool:
        """True if the latest run finished: every row of its input has a vector or was rejected with a reason."""
        return self.success is not None

    @cached_property
    def receipts(self) -> tuple[Receipt, ...]:
        """Receipts of the slices in the output, in the order of the input.

        Raises:
            StorageError: the manifest is damaged and cannot be reconstructed.
        """
        order = sorted(self.ledger.held(), key=lambda receipt: (receipt.file, receipt.fragment_index, receipt.slice_index))
        return tuple(order)

    @cached_property
    def totals(self) -> Totals:
        """Sums over :attr:`receipts`.

        >>> from kosbert_ray import Output
        >>> totals = Output.open("vectors").totals
        >>> totals.rows, totals.rejected
        (42, 0)
        """
        return Totals.of(self.receipts)

    @cached_property
    def manifest(self) -> tuple[Receipt, ...] | None:
        """Receipts that a complete output's manifest lists, also those of missing shards; None if it is not complete."""
        listed = self.ledger.manifest()
        return None if listed is None else tuple(listed)

    @cached_property
    def files(self) -> dict[str, int]:
        """Name and bytes of every Parquet file in the folder, whether or not it is in the output."""
        return self.ledger.shards()

    def shards(self) -> list[str]:
        """Returns the names of the shards in the output, in the order of the input.

        >>> from kosbert_ray import Output
        >>> Output.open("vectors").shards()[0]
        'a.00000-00000.b82d5eac.parquet'
        """
        return [receipt.shard for receipt in self.receipts]

    def require_complete(self) -> None:
        """Checks that the output is complete.

        Raises:
            InputError: no run finished.
            StorageError: shards are missing.
        """
        if not self.complete:
            raise InputError(f"{self.storage.url()}: not complete (no _SUCCESS); run kosbert-ray embed to its end first")
        self.totals  # noqa: B018 (looks for missing shards)
        if self.ledger.lost:
            raise StorageError(self.ledger.notices[-1])

    def warn_if_partial(self, done: str) -> None:
        """Logs a warning for each damaged or missing file, and one if the output is not complete.

        Args:
            done: what happens to the rows that are there, for the message: "searched".
        """
        rows = self.totals.rows
        for notice in self.ledger.notices:
            log.warning(notice)
        if not self.complete:
            log.warning(f"{self.storage.url()} is not complete: only the {plural(rows, 'row')} committed so far are {done}")

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of vectors in the output.

        >>> from kosbert_ray import Output
        >>> Output.open("vectors").kinds
        ('dense',)
        """
        return kinds_of(self.record.fingerprint)

    @property
    def nullable(self) -> bool:
        """True if rejected rows are in the shards, with a null vector."""
        return self.formats[0].nullable

    @property
    def dense(self) -> EmbeddingFormat:
        """The format of the first column of dense vectors; raises InputError if there is none."""
        return self.vector_format()

    def vector_format(self, column: str | None = None) -> EmbeddingFormat:
        """Returns how a column of dense vectors is stored.

        Args:
            column: its name; None for the first.

        Raises:
            InputError: the output has no such column of dense vectors.
        """
        dense = [found for found in self.formats if isinstance(found, EmbeddingFormat)]
        if not dense:
            self.kind_format(DENSE)
        for found in dense:
            if column in (None, found.column):
                return found
        names = ", ".join(found.column for found in dense)
        if other := [item.kind for item in self.formats if item.column == column]:
            raise InputError(
                f"{self.storage.url()}: {column!r} has {named(other)} vectors, and this needs dense ones: {names}"
            )
        raise InputError(f"{self.storage.url()}: no column of vectors {column!r}; its columns of vectors are {names}")

    def column_format(self, column: str) -> VectorFormat:
        """Returns how a column of vectors of any kind is stored; raises InputError if there is no such column."""
        for found in self.formats:
            if found.column == column:
                return found
        names = ", ".join(found.column for found in self.formats)
        raise InputError(f"{self.storage.url()}: no column of vectors {column!r}; its columns of vectors are {names}")

    def kind_format(self, kind: Kind) -> VectorFormat:
        """Returns how the first column of a kind of vectors is stored.

        Raises:
            InputError: the output has no vectors of this kind.
        """
        for found in self.formats:
            if found.kind == kind:
                return found
        require_one_of("kind", kind, KINDS)
        raise InputError(f"{self.storage.url()}: has {named(self.kinds)} vectors only, and this needs {named([kind])} ones")

    def model(self, prompt: str | None = None, prompt_name: str | None = None) -> ModelSpec:
        """Reads the model that made the output.

        Its prompt for documents is the job's, and its prompt for queries is the model's own, unless one is given here.

        Args:
            prompt: the prompt for both.
            prompt_name: the name of one of the model's prompts, for both.

        Raises:
            ModelError: the model cannot be loaded, or has changed since.
        """
        given = {"prompt": prompt, "prompt_name": prompt_name}
        job = self.job.model_copy(update={"model": self.job.model.model_copy(update=given)})
        found = model_ref(job, self.record.commits(job)).prepare()
        found.require_made(self.record.fingerprint, self.storage.url())
        spec = found.spec()
        if spec.prompts.given:
            return spec
        documents = self.job.model.prompt or ""
        return replace(spec, prompt=documents, prompts=replace(spec.prompts, encode=documents, document=documents))

    def encoder(self, prompt: str | None = None, prompt_name: str | None = None) -> Encoder:
        """Loads the model that made the output; takes and raises what :meth:`model` does."""
        from kosbert_ray.encoder.encoder import Encoder

        return Encoder(self.model(prompt, prompt_name).for_documents(), self.job.encoder, kinds=self.kinds)

    # -- rows --------------------------------------------------------------------------------------------------------

    def vectors(self, shard: str, column: str | None = None) -> Iterator[Block]:
        """Yields the vectors of one shard, block by block; rows without a vector are skipped.

        Args:
            shard: the shard's name.
            column: the column of vectors; None for the first.

        Yields:
            Vectors, float32 ``[m, dimension]``, and their row numbers in the shard, int64 ``[m]``.

        Raises:
            StorageError: the shard cannot be read.

        >>> from kosbert_ray import Output
        >>> output = Output.open("vectors")
        >>> for vectors, rows in output.vectors(output.shards()[0]):
        ...     print(vectors.shape, rows[:3])
        (8, 256) [0 1 2]
        """
        return read_vectors(self.storage, shard, self.vector_format(column))

    def rows(
        self, shard: str, rows: Sequence[int] | npt.NDArray[np.int64], columns: Sequence[str] | None = None
    ) -> pa.Table:
        """Reads single rows of a shard, in the order given.

        Args:
            shard: the shard's name.
            rows: row numbers in the shard.
            columns: the columns to read; None for all kept columns.

        Raises:
            StorageError: the shard cannot be read, or lacks a row or a column.

        >>> from kosbert_ray import Output
        >>> output = Output.open("vectors")
        >>> output.rows(output.shards()[0], [2, 0], ["id"]).to_pydict()
        {'id': [2, 0]}
        """
        return read_rows(self.storage, shard, rows, self.columns if columns is None else columns)

    def sample(
        self,
        n: int,
        seed: int = 0,
        columns: Sequence[str] | None = None,
        max_shards: int | None = SAMPLED_SHARDS,
        kind: Kind | None = None,
    ) -> Sample:
        """Draws random rows that have a vector. The same seed draws the same rows.

        Args:
            n: how many rows; all of them if there are fewer.
            seed: of the random numbers.
            columns: the kept columns to read; None for all.
            max_shards: draw from this many random shards only, which bounds what is read; None for all shards.
            kind: of the vectors; by default the first that the output has.

        Raises:
            InputError: the output has no vectors of this kind.
            StorageError: a shard cannot be read.

        >>> from kosbert_ray import Output
        >>> drawn = Output.open("vectors").sample(5)
        >>> drawn.vectors.shape, drawn.table.column_names
        ((5, 256), ['id', 'text'])
        """
        return sample(self, n, seed, self.columns if columns is None else columns, max_shards, kind or self.kinds[0])

    def dataset(self) -> ds.Dataset:
        """Returns a ``pyarrow.dataset`` over exactly the shards in the output, to scan what does not fit into memory.

        Raises:
            InputError: there are no shards yet.

        >>> from kosbert_ray import Output
        >>> Output.open("vectors").dataset().count_rows()
        42
        """
        from kosbert_ray.outputs.tables import dataset

        return dataset(self)

    def to_arrow(self, columns: Sequence[str] | None = None, limit: int | None = None) -> pa.Table:
        """Reads rows into an Arrow table.

        Args:
            columns: the columns to read, vectors included; None for all.
            limit: read the first rows only, at most this many.

        Raises:
            InputError: there are no shards yet, or a column does not exist.
            UsageError: the table would not fit into the memory that is free.

        >>> from kosbert_ray import Output
        >>> Output.open("vectors").to_arrow(columns=["id", "embedding"], limit=3)["id"].to_pylist()
        [0, 1, 2]
        """
        from kosbert_ray.outputs.tables import to_arrow

        return to_arrow(self, columns, limit)

    def to_pandas(self, columns: Sequence[str] | None = None, limit: int | None = None) -> pd.DataFrame:
        """Reads rows into a pandas DataFrame; takes and raises what :meth:`to_arrow` does.

        >>> from kosbert_ray import Output
        >>> Output.open("vectors").to_pandas(columns=["id"]).shape
        (42, 1)
        """
        return self.to_arrow(columns, limit).to_pandas()

    # -- tools -------------------------------------------------------------------------------------------------------

    def search(
        self,
        queries: str | Sequence[str],
        top_k: int = 10,
        similarity: Similarity = "cosine",
        prompt: str | None = None,
        prompt_name: str | None = None,
        exact: bool = False,
        by: By | None = None,
        rerank: int = 0,
        fusion: Fusion | None = None,
    ) -> list[Hit]:
        """Finds the rows nearest to each query. Queries are encoded by the output's model, which stays loaded.

        Args:
            queries: one text or several.
            top_k: rows per query.
            similarity: "cosine" or "dot", of dense vectors.
            prompt: text put before each query instead of the model's own prompt for queries.
            prompt_name: the name of one of the model's prompts instead.
            exact: compare queries with every row, although there is an index (``kosbert-ray index``).
            by: "dense", "sparse" or "multi_vector", or "hybrid" for all kinds that the output has; by default the first.
            rerank: compare token vectors of this many rows only, the nearest by dense or else by sparse vectors; 0 for all.
            fusion: how a hybrid search combines scores: "standardized" or "reciprocal_rank".

        Returns:
            The hits of each query, best first, query by query.

        Raises:
            InputError: there are no shards yet.
            ModelError: the model cannot be loaded, or has changed since.

        >>> from kosbert_ray import Output
        >>> output = Output.open("vectors", encoder={"precision": "fp32"})
        >>> hit = output.search("라면에 달걀을 넣으면 맛있다.", top_k=1)[0]
        >>> hit.rank, hit.columns["text"]
        (1, '라면을 끓일 때 달걀을 마지막에 넣으면 부드럽다.')
        """
        from kosbert_ray.outputs.search import Searcher

        searcher = self._searchers.setdefault((prompt, prompt_name), Searcher(self, prompt, prompt_name))
        asked = [queries] if isinstance(queries, str) else queries
        return searcher.search(asked, top_k, similarity, exact, by, rerank, fusion)

    def verify(self, input: str | PathLike[str] | None = None, sample: int = 0, seed: int = 0) -> Verification:
        """Checks every shard against its checksum, its receipt and the job, with threads of this process.

        Args:
            input: the input to count the rows of again; None to check the output alone.
            sample: how many rows to embed again and compare.
            seed: of the sample.

        Returns:
            What was read and the problems found; ``problems`` is empty for a sound output.

        Raises:
            InputError: a sample is asked for, but the texts are not in the output and no input is given.
            StorageError: the store cannot be accessed.

        >>> from kosbert_ray import Output
        >>> found = Output.open("vectors").verify()
        >>> found.rows, found.problems
        (42, ())
        """
        from kosbert_ray.outputs.verify import verify

        return verify(self, input=input, sample=sample, seed=seed)
