"""A run from its config to its last line: plan, subtract what is committed, run the rest, finalise."""

from __future__ import annotations

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass

from kosbert_ray.corpus.columns import Columns, inspect
from kosbert_ray.corpus.listing import Corpus, list_corpus
from kosbert_ray.corpus.plan import Fragment, plan
from kosbert_ray.corpus.slices import FragmentReader
from kosbert_ray.encoder.source import (
    BUNDLED_PREFIX,
    PLACEHOLDER,
    PLACEHOLDER_NOTICE,
    ModelSource,
    bundled_path,
    fetch_model,
)
from kosbert_ray.encoder.spec import ModelSpec, SpecOptions, read_spec, sha256
from kosbert_ray.encoder.tokenizer import Tokenizer
from kosbert_ray.errors import JobFailed, UsageError
from kosbert_ray.job.config import JobConfig
from kosbert_ray.job.progress import Progress, Totals
from kosbert_ray.shards.fingerprint import Fingerprint
from kosbert_ray.shards.ledger import Committed, Ledger
from kosbert_ray.shards.receipt import Receipt
from kosbert_ray.shards.shard import EmbeddingFormat
from kosbert_ray.storage import Storage

LONG_TEXT = "truncate"  # the policy for texts over max_seq_length; part of the fingerprint

Say = Callable[[str], None]


@dataclass(frozen=True)
class Summary:
    """How a run ended.

    Attributes:
        output: the output directory.
        totals: sums over all slices in it.
        new: sums over the slices this run committed.
        seconds: wall time of the pipeline.
        first_slice_seconds: of them, until the first commit; None if nothing was to do.
        removed: shards of changed inputs, replaced by new ones.
        within_limit: whether the share of rejected rows is within ``max_rejected``.
    """

    output: str
    totals: Totals
    new: Totals
    seconds: float
    first_slice_seconds: float | None
    removed: int
    within_limit: bool


def embed(config: JobConfig, say: Say) -> Summary:
    """Runs a job to its end; run again after any crash, it does what is left.

    Args:
        config: the job.
        say: takes a line for the user.

    Raises:
        KosbertError: the input, the model, the output or the run is at fault. What was committed stays.
    """
    with ExitStack() as stack:
        return _embed(config, say, stack)


def _embed(config: JobConfig, say: Say, stack: ExitStack) -> Summary:
    corpus, columns, output = _open(config)
    source = model_source(config)
    spec = read_spec(fetch_model(source), spec_options(config))
    if config.model.name == PLACEHOLDER:
        say(PLACEHOLDER_NOTICE)
    for notice in spec.notices:
        say(notice)
    if corpus.ignored:
        say(f"{corpus.storage.url()}: {corpus.ignored:,} files are no text shards and are left out")

    output.sweep()
    ledger = Ledger(output)
    complete = ledger.success() is not None
    with ThreadPoolExecutor(2) as background:
        hashing = background.submit(sha256, spec.folder, spec.weight_files)
        loading = None
        if not complete:  # there is work to do: Ray starts while this goes on
            loading = background.submit(Tokenizer.load, spec)
            _start_ray(config, stack)
        weights = hashing.result()
    fingerprint = _fingerprint(config, columns, spec, weights)
    ledger.open_job(fingerprint, config.public())
    committed = ledger.committed(fingerprint)
    fragments = list(plan(corpus.files, config.slice.limits(), config.input.newlines_in_values))
    left = [(fragment, committed.done(fragment.id)) for fragment in fragments if not committed.complete(fragment.id)]

    progress = Progress(corpus.size, _totals(committed.receipts(fragment.id for fragment in fragments)))
    say(
        f"{corpus.storage.url()}: {len(corpus.files):,} files, {corpus.size:,} bytes; "
        f"{progress.done.slices:,} slices are committed already"
    )
    if left:
        from kosbert_ray.encoder.options import EncoderOptions
        from kosbert_ray.job import cluster, pipeline

        ledger.start()
        _start_ray(config, stack)
        pool = cluster.encoder_pool(config.encoder, input_bytes=corpus.size)
        work = pipeline.Work(
            reader=FragmentReader(corpus.storage, columns, config.input.line_options(), config.slice.limits()),
            model=pipeline.ModelAsk(source, spec_options(config)),
            weights_sha256=weights,
            encoder=EncoderOptions(
                precision=config.encoder.precision,
                device="cuda" if pool.gpus else config.encoder.device,
                threads=pool.threads,
                token_budget=config.encoder.token_budget,
            ),
            output=output,
            format=embedding_format(config, spec),
            fingerprint=fingerprint.sha256,
            driver_host=socket.gethostname(),
        )
        tokenizer = loading.result() if loading else Tokenizer.load(spec)
        told: set[str] = set(spec.notices)
        try:
            with progress:
                for receipt, notices in pipeline.run(work, tokenizer, left, pool):
                    committed.add(receipt)
                    ledger.add(receipt)
                    progress.add(receipt)
                    for notice in notices:
                        if notice not in told:
                            told.add(notice)
                            say(notice)
        finally:
            ledger.flush()
    return _finish(config, ledger, committed, corpus, fragments, progress, complete and not left)


def _open(config: JobConfig) -> tuple[Corpus, Columns, Storage]:
    """The corpus and the output, checked before anything costs time."""
    for name, path in (("input.path", config.input.path), ("output.path", config.output.path)):
        if not path:
            raise UsageError(f"{name}: say where (kosbert-ray embed INPUT OUTPUT, or {name} in the job file)")
    options = config.storage.options()
    address = config.input.path
    if address.startswith(BUNDLED_PREFIX):
        address = str(bundled_path(address))
    corpus = list_corpus(address, options, config.input.format)
    output = Storage(config.output.path, options)
    inside = f"{output.address}/".startswith(f"{corpus.storage.address}/")
    if inside and any(f"{corpus.storage.url(file.name)}".startswith(f"{output.address}/") for file in corpus.files):
        raise UsageError(f"output.path: {output.address} holds input files; choose an output apart from the input")
    if inside and address.rstrip("/") == corpus.storage.address:
        raise UsageError(
            f"output.path: {output.address} is inside the input {corpus.storage.address}; its shards would be read as text"
        )
    corpus, columns = inspect(corpus, config.input.text, config.input.keep, config.input.line_options())
    return corpus, columns, output


def model_source(config: JobConfig) -> ModelSource:
    """Where the job's model comes from."""
    model = config.model
    return ModelSource(model.name, model.revision, model.allow_pickle, config.storage.options())


def spec_options(config: JobConfig) -> SpecOptions:
    """What the job asks of its model folder."""
    model = config.model
    return SpecOptions(model.max_seq_length, model.prompt, model.prompt_name, model.allow_pickle)


def embedding_format(config: JobConfig, spec: ModelSpec) -> EmbeddingFormat:
    """How the job stores its vectors."""
    out = config.output
    return EmbeddingFormat(spec.dimension, out.column, out.dtype, out.list_type, out.compression)


def _fingerprint(config: JobConfig, columns: Columns, spec: ModelSpec, weights: str) -> Fingerprint:
    return Fingerprint(
        weights=weights,
        tokenizer=sha256(spec.folder, spec.tokenizer_files),
        pooling=spec.pooling,
        head=tuple(type(part).__name__ for part in spec.head),
        max_seq_length=spec.max_seq_length,
        do_lower_case=spec.do_lower_case,
        prompt=spec.prompt,
        long_text=LONG_TEXT,
        precision=config.encoder.precision,
        dtype=config.output.dtype,
        list_type=config.output.list_type,
        dimension=spec.dimension,
        column=config.output.column,
        text=columns.text,
        keep=tuple(f"{field.name}: {field.type}" for field in columns.keep),
        input_format=str(config.input.line_options()),
        max_rows=config.slice.max_rows,
        max_bytes=config.slice.max_bytes,
    )


def _start_ray(config: JobConfig, stack: ExitStack) -> None:
    """Starts or joins Ray, if that is not done yet; ``stack`` leaves it when the run ends."""
    from kosbert_ray.job import cluster

    stack.callback(cluster.stop)
    cluster.start(config.ray)
    cluster.configure_data()


def _totals(receipts: list[Receipt]) -> Totals:
    totals = Totals()
    for receipt in receipts:
        totals.add(receipt)
    return totals


def _finish(
    config: JobConfig,
    ledger: Ledger,
    committed: Committed,
    corpus: Corpus,
    fragments: list[Fragment],
    progress: Progress,
    unchanged: bool,
) -> Summary:
    """Removes the shards of changed inputs, now that the new ones are all there, and writes _SUCCESS.

    Raises:
        JobFailed: a slice never came back, whatever Ray says: the output is not complete and is not called so.
    """
    missing = [fragment for fragment in fragments if not committed.complete(fragment.id)]
    if missing:
        raise JobFailed(
            f"{ledger.storage.url()}: slices of {len(missing):,} of {len(fragments):,} fragments were not committed "
            f"(the first of {missing[0].file.name}); run the same command again"
        )
    planned = {fragment.id for fragment in fragments}
    files = {file.name for file in corpus.files}
    stale = [
        receipt
        for fragment, slices in committed.by_fragment.items()
        if fragment not in planned
        for receipt in slices.values()
        if receipt.file in files
    ]
    receipts = committed.receipts(fragment.id for fragment in fragments)
    totals = _totals(receipts)
    seconds = progress.seconds
    if stale or not unchanged:
        ledger.remove(stale)
        ledger.storage.sweep()
        ledger.finish(receipts, asdict(totals) | {"files": len(corpus.files), "seconds": round(seconds, 3)})
    rows = totals.rows + totals.rejected
    return Summary(
        output=ledger.storage.address,
        totals=totals,
        new=progress.new,
        seconds=seconds,
        first_slice_seconds=progress.first_at,
        removed=sum(bool(receipt.shard) for receipt in stale),
        within_limit=totals.rejected <= config.max_rejected * rows,
    )
