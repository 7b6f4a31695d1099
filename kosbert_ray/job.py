"""Resolves a config into a job: the corpus, the model, the output format, the fingerprint."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pyarrow as pa

from kosbert_ray.config import JobConfig
from kosbert_ray.corpus.columns import Columns
from kosbert_ray.corpus.footers import Footers
from kosbert_ray.corpus.fragments import Fragment, Limits
from kosbert_ray.corpus.listing import Corpus, list_corpus
from kosbert_ray.corpus.options import SliceOptions
from kosbert_ray.corpus.plan import plan, replan
from kosbert_ray.corpus.reader import FragmentReader
from kosbert_ray.corpus.schema import inspect
from kosbert_ray.corpus.slice_size import target_bytes
from kosbert_ray.corpus.text import RowText
from kosbert_ray.corpus.types import column_types
from kosbert_ray.encoder.chunks import splitter_version
from kosbert_ray.encoder.engines.choice import fitted, preferred_engine
from kosbert_ray.encoder.late import default_size
from kosbert_ray.encoder.long_text import LongText
from kosbert_ray.encoder.options import usable_cores
from kosbert_ray.encoder.plain_speed import plain_bytes_per_second
from kosbert_ray.errors import StorageError, UsageError
from kosbert_ray.model.files import sha256
from kosbert_ray.model.locate import locate
from kosbert_ray.model.options import SpecOptions
from kosbert_ray.model.prepare import PreparedModel, prepare
from kosbert_ray.model.source import BUNDLED_PREFIX, ModelSource, bundled_path
from kosbert_ray.model.spec import ModelSpec, read_spec
from kosbert_ray.shards.fingerprint import Fingerprint
from kosbert_ray.shards.formats.base import VectorFormat
from kosbert_ray.shards.formats.dense import EmbeddingFormat
from kosbert_ray.shards.formats.multi_vector import MultiVectorFormat
from kosbert_ray.shards.formats.sparse import SparseFormat
from kosbert_ray.shards.ledger import JOB_FILE, Committed
from kosbert_ray.shards.options import OutputOptions
from kosbert_ray.shards.pointer import current
from kosbert_ray.shards.vector_types import Ranges
from kosbert_ray.storage import Storage, StorageOptions
from kosbert_ray.vectors.kinds import DENSE, MULTI_VECTOR, SPARSE, Kind, in_order, named
from kosbert_ray.vectors.token_pooling import TokenPooling

HUB_PREFIX = "hub://"  # a dataset on the Hugging Face hub: OWNER/NAME[@REVISION][/FOLDER]
OVERLAP = 8  # by default chunks share an eighth of their tokens
REMOTE_THREADS = 16
MAX_TOKEN_VECTOR_BYTES = 96 * 10**6  # of a slice, in half precision: what a row of the pipeline holds without harm
TOKENS_PER_BYTE = 0.25  # of text, special tokens included; short Korean texts have 0.21 (kosbert-mini), long ones fewer
OUTPUT_DEFAULTS = OutputOptions()
# Options of the output that are for one kind of vectors.
KIND_OPTIONS: dict[str, Kind] = {
    "dtype": DENSE,
    "column": DENSE,
    "sparse_top_k": SPARSE,
    "sparse_threshold": SPARSE,
    "sparse_dtype": SPARSE,
    "multi_vector_dtype": MULTI_VECTOR,
    "token_pooling": MULTI_VECTOR,
}


def require_input(config: JobConfig) -> None:
    """Raises UsageError if the config names no input."""
    if not config.input.path:
        raise UsageError("input.path: missing; run kosbert-ray embed INPUT OUTPUT, or set input.path in the job file")


def list_input(config: JobConfig, retry: bool = False) -> Corpus:
    """Lists the input without opening its files.

    Args:
        config: the job.
        retry: whether to retry during outages of the store.

    Raises:
        UsageError: the config names no input.
        InputError: there are no input files.
        StorageError: the store refuses.
    """
    require_input(config)
    address = config.input.path
    if address.startswith(BUNDLED_PREFIX):
        address = str(bundled_path(address))
    elif address.startswith(HUB_PREFIX):
        address = f"hf://datasets/{address.removeprefix(HUB_PREFIX)}"
    return list_corpus(address, _storage_options(config, retry), config.input.format)


def _storage_options(config: JobConfig, retry: bool) -> StorageOptions:
    return config.storage if retry else config.storage.fail_fast()


def open_corpus(
    config: JobConfig, retry: bool = False, settled: pa.Schema | None = None, footers: Footers | None = None
) -> tuple[Corpus, Columns]:
    """Lists the input and inspects its files; those that cannot be embedded are in ``Corpus.failed``.

    Args:
        config: the job.
        retry: whether to retry during outages of the store.
        settled: kept columns of an existing output, to whose types files are cast.
        footers: row groups of files that an earlier run of that output inspected.

    Raises:
        KosbertError: none of the files can be embedded.
    """
    corpus, options = list_input(config, retry), config.input
    text, types = RowText.of(options, config.row_text()), column_types(options.types)
    return inspect(corpus, text, options.keep, options.line_options(), types, settled, footers)


def open_output(config: JobConfig, retry: bool = False) -> Storage:
    """Opens the output directory; in a folder of outputs, the one that its pointer names.

    Raises:
        UsageError: the config names no output.
        StorageError: the pointer is damaged, or the store cannot be accessed.
    """
    if not config.output.path:
        raise UsageError("output.path: missing; run kosbert-ray embed INPUT OUTPUT, or set output.path in the job file")
    storage = Storage(config.output.path, _storage_options(config, retry))
    if not storage.remote and os.path.isfile(storage.root):
        raise UsageError(
            f"output.path: {storage.root} is a file, but an output is a folder; if the shell expanded a pattern, quote it"
        )
    name = current(storage)
    return storage if name is None else Storage(storage.url(name), storage.options)


def require_apart(corpus: Corpus, output: Storage) -> None:
    """Raises UsageError if the output is inside the input, where its shards would be read as text."""
    source, target = _real(corpus.storage), _real(output)
    folders = {corpus.storage.url(file.name).rpartition("/")[0] for file in corpus.files}
    if not corpus.storage.remote:
        folders = {os.path.realpath(folder) for folder in folders}
    if any(f"{folder}/".startswith(f"{target}/") for folder in folders):
        raise UsageError(f"output.path: {output.address} contains input files; choose an output outside the input")
    if f"{target}/".startswith(f"{source}/") and corpus.whole:
        raise UsageError(
            f"output.path: {output.address} is inside the input {corpus.storage.address}; its shards would be read as text"
        )


def require_outside(destination: Storage) -> None:
    """Raises UsageError if a destination is inside an output, whose readers would take its files for shards."""
    folder = destination.address.rstrip("/")
    while (folder := folder.rpartition("/")[0]) and not folder.endswith((":/", ":")):
        with contextlib.suppress(StorageError, OSError):
            if Storage(folder, destination.options.fail_fast()).exists(JOB_FILE):
                raise UsageError(f"{destination.address}: is inside the output {folder}; choose a folder outside it")


def _real(storage: Storage) -> str:
    """An address for comparison; on disk with symbolic links resolved."""
    return storage.address if storage.remote else os.path.realpath(storage.root)


@dataclass(frozen=True)
class ModelRef:
    """A model's source and the options under which every worker reads its folder."""

    source: ModelSource
    options: SpecOptions

    def spec(self) -> ModelSpec:
        """Reads this machine's copy of the model folder, with the prompt for documents.

        Raises:
            ModelError: it is not available.
        """
        found = locate(self.source)
        spec = read_spec(found.folder, self.options).for_documents()
        return replace(spec, notices=(*found.notices, *spec.notices))

    def prepare(self) -> PreparedModel:
        """Hashes the model and makes it loadable by other processes.

        Raises:
            ModelError: the model cannot be found or is not supported.
        """
        return prepare(self.source, self.options)


def model_ref(config: JobConfig, commits: Mapping[str, str] = {}) -> ModelRef:
    """The job's model, readable on any machine.

    Args:
        config: the job.
        commits: commits to use by name of a hub repository, instead of the revision that the job names.
    """
    return ModelRef(replace(model_source(config), commits=commits), config.model)


def recorded_commits(config: JobConfig, job: Mapping[str, Any]) -> dict[str, str]:
    """Returns the commits that an output was made with, by repository, if ``config`` names the same model and revision."""
    recorded = job.get("model")
    if not isinstance(recorded, dict):
        return {}
    if (recorded.get("name"), recorded.get("revision")) != (config.model.name, config.model.revision):
        return {}
    own = {config.model.name: recorded["commit"]} if recorded.get("commit") else {}
    return own | dict(recorded.get("commits") or {})


def model_source(config: JobConfig) -> ModelSource:
    """The source of the job's model."""
    model = config.model
    return ModelSource(model.name, model.revision, bool(model.allow_remote_code), config.storage)


def reader_threads(storage: Storage) -> int:
    """Number of shards to read concurrently: one per core on disk, more over a network."""
    return REMOTE_THREADS if storage.remote else usable_cores()


@dataclass(frozen=True)
class Job:
    """A resolved config: the corpus is listed and inspected, the model is found on first use.

    Attributes:
        config: the job's options.
        corpus: the input files.
        columns: text columns, and columns to keep with their types.
        model: the source of the model.
    """

    config: JobConfig
    corpus: Corpus
    columns: Columns
    model: ModelRef | PreparedModel

    @staticmethod
    def resolve(
        config: JobConfig,
        retry: bool = False,
        settled: pa.Schema | None = None,
        model: ModelRef | PreparedModel | None = None,
        footers: Footers | None = None,
    ) -> Job:
        """Lists and inspects the input of a config.

        Args:
            config: the job.
            retry: whether to retry during outages of the store.
            settled: kept columns of an existing output, to whose types files are cast.
            model: the model, if it was found before.
            footers: row groups of files that an earlier run of that output inspected.

        Raises:
            KosbertError: none of the input files can be embedded.
        """
        corpus, columns = open_corpus(config, retry, settled, footers)
        return Job(config, corpus, columns, model or model_ref(config))

    @cached_property
    def spec(self) -> ModelSpec:
        """The model's specification; raises ModelError if the model cannot be found."""
        return self.model.spec()

    @cached_property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of vectors, in the order of their columns.

        Raises:
            UsageError: the model does not have them, or another option does not go with them.
        """
        config, own = self.config, self.spec.kinds
        kinds = asked_kinds(config, self.spec)
        if lacking := [kind for kind in kinds if kind not in own]:
            raise UsageError(
                f"output.vectors: {config.model.name} has {named(own)} vectors, and no {named(lacking)} ones; set "
                f"output.vectors={','.join(own)} or a part of it"
            )
        for option, kind in KIND_OPTIONS.items():
            if getattr(config.output, option) != getattr(OUTPUT_DEFAULTS, option) and kind not in kinds:
                raise UsageError(f"output.{option}: is for {named([kind])} vectors, and the output has {named(kinds)} ones")
        others = [kind for kind in kinds if kind != DENSE]
        for name, hit in (
            ("reuse", config.reuse),
            ("dedup", config.dedup != "slice"),
            ("long_text", config.long_text in ("mean", "late")),
        ):
            if hit and others:
                raise UsageError(
                    f"{name}: {getattr(config, name)} is for dense vectors only, and the output has {named(others)} ones"
                )
        dense = config.output.dense_columns() if DENSE in kinds else ()
        if taken := {*config.columns(), *dense} & {*others}:
            raise UsageError(
                f"output.vectors: writes a column {min(taken)!r} of its own; keep it under another name, or set another "
                "output.column"
            )
        return kinds

    @cached_property
    def long_text(self) -> LongText:
        """The policy for texts that are too long; raises UsageError if it does not suit the model."""
        return long_text(self.config, self.spec)

    def with_engine(self) -> Job:
        """The job with options that fit its model, and with an engine for CPUs chosen by a rule if its config sets none."""
        encoder = fitted(self.spec, self.config.encoder)
        if encoder.engine == "auto":
            encoder = encoder.model_copy(update={"engine": preferred_engine(self.spec, encoder, "cpu", self.kinds)})
        return replace(self, config=self.config.model_copy(update={"encoder": encoder}))

    def sized(self, gpu: bool) -> Job:
        """The job with a size of slices that is chosen by a rule, unless its config sets one.

        Args:
            gpu: whether its encoders have a GPU.
        """
        if self.config.slice.model_fields_set:
            slices = self.config.slice
        else:
            target = target_bytes(self.corpus.files, plain_bytes_per_second(self.spec, gpu), gpu)
            slices = SliceOptions(target_bytes=target)
        if self.most_bytes is not None:
            slices = slices.model_copy(update={"max_bytes": min(slices.max_bytes, self.most_bytes)})
        return replace(self, config=self.config.model_copy(update={"slice": slices}))

    @property
    def most_bytes(self) -> int | None:
        """Bytes of text whose token vectors fit into one row of the pipeline; None if there are no token vectors."""
        tokens = self.spec.multi_vector
        if tokens is None or MULTI_VECTOR not in self.kinds:
            return None
        return max(1, int(MAX_TOKEN_VECTOR_BYTES / (TOKENS_PER_BYTE * 2 * tokens.dimension)))

    @property
    def nullable(self) -> bool:
        """True if rejected rows stay in the shards with a null vector."""
        return self.config.on_bad_row == "null_vector"

    def fragments(self) -> list[Fragment]:
        """The plan: the parts of files that are read in one pass each."""
        limits = Limits.of(self.config.slice)
        files = plan(self.corpus.files, limits, self.config.input.newlines_in_values)
        return [item.with_cut(limits.cut) for item in files]

    def fragments_left(self, committed: Committed, fingerprint: Mapping[str, Any]) -> list[Fragment]:
        """The plan for an output that has committed slices: each file keeps the cut it was started with.

        Args:
            committed: the committed slices.
            fingerprint: the fingerprint in job.json; version 0.1.0 stored the limits there.
        """
        limits = Limits.of(self.config.slice)
        first = Limits(
            int(fingerprint.get("max_rows", limits.max_rows)), int(fingerprint.get("max_bytes", limits.max_bytes))
        )
        multiline = self.config.input.newlines_in_values
        return list(replan(self.corpus.files, limits, multiline, first, committed.cuts(), committed.complete))

    def reader(self, retry: bool = False) -> FragmentReader:
        """Reads fragments and cuts them into slices.

        Args:
            retry: whether to retry during outages of the store.
        """
        config, storage = self.config, self.corpus.storage
        if retry:
            storage = storage.with_retries(config.storage.retry_seconds)
        return FragmentReader(storage, self.columns, config.input.line_options(), Limits.of(config.slice))

    def formats(self, ranges: Ranges = ()) -> tuple[VectorFormat, ...]:
        """The storage formats of the columns of vectors.

        Args:
            ranges: ranges of int8.
        """
        out, spec, found = self.config.output, self.spec, list[VectorFormat]()
        shared: Any = {"compression": out.compression, "nullable": self.nullable}
        if DENSE in self.kinds:
            found += EmbeddingFormat(spec.dimension, out.column, list_type=out.list_type, **shared).each(out.dtype, ranges)
        if SPARSE in self.kinds and spec.sparse:
            limits: Any = {"top_k": out.sparse_top_k or 0, "threshold": out.sparse_threshold}
            found.append(SparseFormat(spec.sparse.dimension, out.sparse_dtype, **limits, **shared))
        if MULTI_VECTOR in self.kinds and spec.multi_vector:
            found.append(MultiVectorFormat(spec.multi_vector.dimension, out.multi_vector_dtype, out.list_type, **shared))
        return tuple(found)

    def shard_schema(self) -> pa.Schema:
        """The columns of a shard, in their order."""
        made = column_types(self.config.address_columns() | self.config.made_columns())
        fields = [pa.field(name, kind) for name, kind in made.items()]
        return pa.schema([*self.columns.keep, *fields, *(item.field() for item in self.formats())])

    def fingerprint(self, weights: str, ranges: Ranges = (), heads: str = "") -> Fingerprint:
        """The fingerprint: everything that decides which vectors the job writes.

        Args:
            weights: sha256 of the model's weight files.
            ranges: ranges of int8.
            heads: sha256 of the weights that dense vectors do not depend on.
        """
        config, spec, source, out = self.config, self.spec, self.columns.source, self.config.output
        dense, sparse, tokens = DENSE in self.kinds, spec.sparse, spec.multi_vector
        more: dict[str, Any] = {"vectors": self.kinds, "head_weights": heads if {*self.kinds} - {DENSE} else ""}
        if SPARSE in self.kinds and sparse:
            more |= {
                "sparse": (str(sparse),),
                "sparse_dimension": sparse.dimension,
                "sparse_dtype": out.sparse_dtype,
                "sparse_top_k": out.sparse_top_k or 0,
                "sparse_threshold": out.sparse_threshold,
            }
        if MULTI_VECTOR in self.kinds and tokens:
            more |= {
                "multi_vector": tokens.described(),
                "multi_vector_dimension": tokens.dimension,
                "multi_vector_dtype": out.multi_vector_dtype,
                "token_pooling": out.token_pooling,
            }
        return Fingerprint(
            weights=weights,
            tokenizer=sha256(spec.folder, spec.tokenizer_files),
            pooling=spec.pooling if dense else (),
            head=tuple(type(part).__name__ for part in spec.head) if dense else (),
            max_seq_length=spec.max_seq_length,
            do_lower_case=spec.do_lower_case,
            prompt=spec.prompt,
            long_text=_described(self.long_text),
            precision=config.encoder.precision,
            dtype=out.dtype if dense else (),
            ranges=ranges,
            list_type=out.list_type,
            dimension=spec.dimension if dense else 0,
            column=out.column,
            text=source.template,
            normalize=source.normalize,
            keep=(
                *(f"{field.name}: {field.type}" for field in self.columns.keep),
                *(f"{name}: {kind}" for name, kind in (config.address_columns() | config.made_columns()).items()),
            ),
            input_format=config.input.recorded(),
            on_bad_row="null_vector" if self.nullable else "reject",
            max_rows=config.slice.max_rows,
            max_bytes=config.slice.max_bytes,
            **more,
        )


def asked_kinds(config: JobConfig, spec: ModelSpec) -> tuple[Kind, ...]:
    """The kinds of vectors that a config asks for, by default that of the model, in the order of their columns."""
    return in_order(config.output.vectors or spec.kinds[:1])


def token_pooling(config: JobConfig, spec: ModelSpec) -> TokenPooling | None:
    """The pooling of token vectors: the model's own, or the one that the config asks for; raises UsageError for both."""
    own = spec.multi_vector.pooling if spec.multi_vector else None
    factor = config.output.token_pooling
    if factor == 1:
        return own
    if own:
        raise UsageError(f"output.token_pooling: the model pools its token vectors itself ({own})")
    return TokenPooling(factor)


def long_text(config: JobConfig, spec: ModelSpec) -> LongText:
    """The policy for texts that are too long; raises UsageError if it does not suit the model."""
    chunk = config.chunk
    if config.long_text == "late":
        _require_late(config, spec)
        chunk = chunk.model_copy(update={"size": chunk.size or default_size(spec.max_seq_length)})
    if config.long_text != "truncate" and chunk.size is None and spec.length_limit is None:
        raise UsageError(
            "chunk.size: the model takes texts of any length, so set the tokens of a chunk (such as chunk.size=256), or "
            "use long_text=truncate"
        )
    size = chunk.size or spec.max_seq_length
    if size > spec.max_seq_length:
        raise UsageError(f"chunk.size: {size} is more than the {spec.max_seq_length} tokens that the model takes")
    overlap = size // OVERLAP if chunk.overlap is None else chunk.overlap
    return LongText(config.long_text, size, overlap, chunk.splitter, spec.normalized)


def _require_late(config: JobConfig, spec: ModelSpec) -> None:
    """Raises UsageError if a chunk's vector cannot be pooled from the vectors of its tokens."""
    name = config.model.name
    if spec.static:
        raise UsageError(
            f"long_text: {name} is a static embedding model, whose tokens do not depend on the text around them; use "
            "long_text=chunk"
        )
    if spec.pooling != ("mean",):
        raise UsageError(
            f"long_text: late needs a model with mean pooling, and {name} has {' and '.join(spec.pooling)} pooling; use "
            "long_text=chunk, or another model"
        )


def _described(policy: LongText) -> str:
    """The policy as recorded in the fingerprint; raises UsageError if its splitter is not installed."""
    if policy.policy == "truncate":
        return policy.policy
    return f"{policy.policy} size={policy.size} overlap={policy.overlap} {splitter_version(policy.splitter)}"
