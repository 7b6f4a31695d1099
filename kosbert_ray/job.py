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
from kosbert_ray.errors import ModelError, StorageError, UsageError
from kosbert_ray.model.files import sha256
from kosbert_ray.model.locate import locate
from kosbert_ray.model.options import SpecOptions
from kosbert_ray.model.prepare import PreparedModel, prepare
from kosbert_ray.model.source import BUNDLED_PREFIX, ModelSource, bundled_path
from kosbert_ray.model.spec import ModelSpec, read_spec
from kosbert_ray.shards.fingerprint import Fingerprint
from kosbert_ray.shards.format import EmbeddingFormat
from kosbert_ray.shards.ledger import JOB_FILE, Committed
from kosbert_ray.shards.pointer import current
from kosbert_ray.shards.vector_types import Ranges
from kosbert_ray.storage import Storage, StorageOptions

HUB_PREFIX = "hub://"  # a dataset on the Hugging Face hub: OWNER/NAME[@REVISION][/FOLDER]
OVERLAP = 8  # by default chunks share an eighth of their tokens
REMOTE_THREADS = 16


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
        """The model's specification; raises ModelError if the model cannot be found, or has no vectors for an output."""
        spec = self.model.spec()
        if spec.sparse:
            raise ModelError(
                f"{self.config.model.name}: has sparse vectors, which an output cannot hold yet; encode texts with "
                "kosbert_ray.Encoder.encode_sparse"
            )
        return spec

    @cached_property
    def long_text(self) -> LongText:
        """The policy for texts that are too long; raises UsageError if it does not suit the model."""
        return long_text(self.config, self.spec)

    def with_engine(self) -> Job:
        """The job with options that fit its model, and with an engine for CPUs chosen by a rule if its config sets none."""
        encoder = fitted(self.spec, self.config.encoder)
        if encoder.engine == "auto":
            encoder = encoder.model_copy(update={"engine": preferred_engine(self.spec, encoder, "cpu")})
        return replace(self, config=self.config.model_copy(update={"encoder": encoder}))

    def sized(self, gpu: bool) -> Job:
        """The job with a size of slices that is chosen by a rule, unless its config sets one.

        Args:
            gpu: whether its encoders have a GPU.
        """
        if self.config.slice.model_fields_set:
            return self
        target = target_bytes(self.corpus.files, plain_bytes_per_second(self.spec, gpu), gpu)
        return replace(self, config=self.config.model_copy(update={"slice": SliceOptions(target_bytes=target)}))

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

    def formats(self, ranges: Ranges = ()) -> tuple[EmbeddingFormat, ...]:
        """The storage formats of the vector columns.

        Args:
            ranges: ranges of int8.
        """
        out = self.config.output
        first = EmbeddingFormat(
            self.spec.dimension,
            out.column,
            list_type=out.list_type,
            compression=out.compression,
            nullable=self.nullable,
        )
        return first.each(out.dtype, ranges)

    def shard_schema(self) -> pa.Schema:
        """The columns of a shard, in their order."""
        made = column_types(self.config.address_columns() | self.config.made_columns())
        fields = [pa.field(name, kind) for name, kind in made.items()]
        return pa.schema([*self.columns.keep, *fields, *(item.field() for item in self.formats())])

    def fingerprint(self, weights: str, ranges: Ranges = ()) -> Fingerprint:
        """The fingerprint: everything that decides which vectors the job writes.

        Args:
            weights: sha256 of the model's weight files.
            ranges: ranges of int8.
        """
        config, spec, source = self.config, self.spec, self.columns.source
        return Fingerprint(
            weights=weights,
            tokenizer=sha256(spec.folder, spec.tokenizer_files),
            pooling=spec.pooling,
            head=tuple(type(part).__name__ for part in spec.head),
            max_seq_length=spec.max_seq_length,
            do_lower_case=spec.do_lower_case,
            prompt=spec.prompt,
            long_text=_described(self.long_text),
            precision=config.encoder.precision,
            dtype=config.output.dtype,
            ranges=ranges,
            list_type=config.output.list_type,
            dimension=spec.dimension,
            column=config.output.column,
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
        )


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
