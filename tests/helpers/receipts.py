"""A fingerprint, a receipt and a shard for tests of an output's records."""

from __future__ import annotations

import numpy as np

from kosbert_ray.shards.fingerprint import Fingerprint
from kosbert_ray.shards.formats.dense import EmbeddingFormat
from kosbert_ray.shards.receipt import Receipt
from kosbert_ray.shards.shard import write_shard
from kosbert_ray.storage import Storage

FINGERPRINT = Fingerprint(
    weights="w" * 64,
    tokenizer="t" * 64,
    pooling=("mean",),
    head=(),
    max_seq_length=512,
    do_lower_case=False,
    prompt="",
    long_text="truncate",
    precision="auto",
    dtype=("float32",),
    ranges=(),
    list_type="list",
    dimension=4,
    column="embedding",
    text="text",
    normalize=(),
    keep=("id: int64",),
    input_format="x",
    on_bad_row="reject",
    max_rows=10,
    max_bytes=100,
)
RECEIPT = Receipt(
    shard="a.00000-00000.12345678.parquet",
    file="a.parquet",
    version="v",
    fragment="f0",
    fragment_index=0,
    slice_index=0,
    last=True,
    rows=3,
    rejected=1,
    distinct=2,
    tokens=30,
    encoded_tokens=20,
    truncated=1,
    dropped_tokens=7,
    input_bytes=99,
    embedding_xxh128="",
    output_bytes=0,
    precision="fp32",
    attention="packed",
    device="cpu",
    node="here",
)


def commit(storage: Storage, receipt: Receipt = RECEIPT, fingerprint: Fingerprint = FINGERPRINT) -> None:
    """Writes a shard of zeros for a receipt."""
    footer = receipt.footer() | {"fingerprint": fingerprint.sha256}
    vectors = EmbeddingFormat(4).array(np.zeros((receipt.rows, 4), np.float32))
    write_shard(storage, receipt.shard, {}, [vectors], [EmbeddingFormat(4)], footer)
