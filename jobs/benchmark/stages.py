"""CPU time of reading, tokenizing and writing, compared with the plain library calls that do the same."""

from __future__ import annotations

import os
import resource
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROUNDS = 5
GPU_TOKENS = 2_000_000  # tokens per second of one GPU


@dataclass
class Stage:
    """CPU seconds of one stage for a set of texts.

    Attributes:
        name: name of the stage.
        ours: CPU seconds of kosbert-ray.
        plain: CPU seconds of the plain library call.
        plain_name: name of the plain library call.
    """

    name: str
    ours: float
    plain: float
    plain_name: str = ""


def cpu_seconds(run: Callable[[], object]) -> float:
    """Measures the user and system time of this process for one call: the minimum of ``ROUNDS`` calls."""

    def now() -> float:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime

    times = []
    for _ in range(ROUNDS):
        started = now()
        run()
        times.append(now() - started)
    return min(times)


def measure_stages(texts: list[str], model: Path, dimension: int) -> list[Stage]:
    """Measures each stage on one slice.

    Args:
        texts: texts of the slice.
        model: model folder with the tokenizer.
        dimension: dimension of the vectors to write.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from transformers import AutoTokenizer

    from kosbert_ray.corpus.fragments import Limits
    from kosbert_ray.corpus.listing import list_corpus
    from kosbert_ray.corpus.options import LineOptions
    from kosbert_ray.corpus.plan import plan
    from kosbert_ray.corpus.reader import FragmentReader
    from kosbert_ray.corpus.schema import inspect
    from kosbert_ray.encoder.tokenizer import Tokenizer
    from kosbert_ray.model.spec import read_spec
    from kosbert_ray.shards.formats.dense import EmbeddingFormat
    from kosbert_ray.shards.shard import checksum, write_shard
    from kosbert_ray.storage import Storage

    tokenizer, plain_tokenizer = Tokenizer.load(read_spec(model)), AutoTokenizer.from_pretrained(model)
    array = pa.array(texts, pa.large_string())
    vectors = np.random.default_rng(0).standard_normal((len(texts), dimension), np.float32)
    ids = pa.array(np.arange(len(texts)))
    vector_format = EmbeddingFormat(dimension)
    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(pa.table({"text": texts}), f"{folder}/in.parquet")
        limits = Limits(len(texts), 2**40)
        corpus, columns = inspect(list_corpus(f"{folder}/in.parquet"), "text", [], LineOptions())
        reader = FragmentReader(corpus.storage, columns, LineOptions(), limits)
        storage = Storage(f"{folder}/out")

        def read() -> None:
            for fragment in plan(corpus.files, limits):
                list(reader.slices(fragment))

        def write() -> None:
            column = vector_format.array(vectors)
            write_shard(storage, "a.parquet", {"id": ids}, [column], [vector_format], {"checksum": checksum(column)})

        def plain_write() -> None:
            offsets = pa.array(np.arange(len(texts) + 1, dtype=np.int32) * dimension)
            column = pa.ListArray.from_arrays(offsets, pa.array(vectors.reshape(-1)))
            pq.write_table(
                pa.table({"id": ids, "embedding": column}),
                f"{folder}/plain.parquet",
                compression="zstd",
                use_dictionary=["id"],
                column_encoding={"embedding.list.element": "BYTE_STREAM_SPLIT"},
            )

        return [
            Stage(
                "read Parquet",
                cpu_seconds(read),
                cpu_seconds(lambda: pq.read_table(f"{folder}/in.parquet")),
                "pyarrow's read_table",
            ),
            Stage(
                "tokenize",
                cpu_seconds(lambda: tokenizer(array)),
                cpu_seconds(lambda: plain_tokenizer(texts, truncation=True)),
                "transformers' tokenizer(batch)",
            ),
            Stage(f"write {dimension} float32", cpu_seconds(write), cpu_seconds(plain_write), "pyarrow's write_table"),
        ]


def table_of_stages(stages: list[Stage], texts: int, tokens: int) -> list[str]:
    """Formats the times as a Markdown table: rates per core, cores per GPU of 2 M tokens/s, and ratio to the plain call."""
    lines = [
        "| stage | tokens/s per core | texts/s per core | cores for 2 M tokens/s | CPU time relative to |",
        "|---" * 5 + "|",
    ]
    for stage in stages:
        cores = GPU_TOKENS * stage.ours / tokens
        plain = f"{stage.ours / stage.plain:.2f} ({stage.plain_name})"
        rates = f"{tokens / stage.ours:,.0f} | {texts / stage.ours:,.0f}"
        lines.append(f"| {stage.name} | {rates} | {cores:.2f} | {plain} |")
    total = GPU_TOKENS * sum(stage.ours for stage in stages) / tokens
    lines.append(f"| total | | | {total:.2f} | |")
    return lines
