"""Golden outputs: a job keeps its fingerprint, shard names, footers, schema, row order and vectors from version to version.

The pinned file holds everything that does not depend on the CPU or on library versions; vectors are compared by cosine.
``PIN_GOLDEN=1 pytest tests/system/test_golden.py`` pins it again, which is right only after a deliberate change.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import ROOT

GOLDEN = ROOT / "tests" / "golden"
EXPECTED = GOLDEN / "expected.json"
OLD_INPUTS = ROOT / "tests" / "outputs_0_1_0"
MTIME = 1764000000123456789  # part of shard names
COMMON = ["--model", "bundled:kosbert-mini", "--set", "slice.max_rows=8", "--set", "encoder.engine=torch"]
COMMON += ["--set", "encoder.precision=fp32", "--set", "max_rejected=5", "--no-text"]
JOBS = {
    "parquet and jsonl": ("in", ("input.keep=id,text",)),
    "txt.gz": ("lines", ()),
    "rejected rows": ("rejecting", ("input.keep=id", "on_bad_row=null_vector")),
    "chunks": ("long", ("input.keep=id", "long_text=chunk", "chunk.size=64", "chunk.text=true")),
    "int8": ("in", ("output.dtype=int8,ubinary", "output.list_type=fixed_size_list")),
    "dedup": ("in", ("dedup=corpus", "input.keep=id")),
}
OF_THE_MACHINE = ("embedding_xxh128", "precision", "attention", "device")
VECTORS = 4  # pinned, per job


def described(output: Path) -> dict[str, Any]:
    """What must not change about an output."""
    job = json.loads((output / "_kosbert" / "job.json").read_text("utf-8"))
    fingerprint = {name: value for name, value in job["fingerprint"].items() if name != "ranges"}
    digest = {} if job["fingerprint"]["ranges"] else {"sha256": job["sha256"]}  # ranges are rounded by the CPU
    shards = {}
    vectors: list[np.ndarray] = []
    for path in sorted(output.glob("*.parquet")):
        table = pq.read_table(path)
        footer = json.loads(table.schema.metadata[b"kosbert_ray"])
        if not digest:
            del footer["fingerprint"], footer["shard"]
        name = path.name if digest else path.name.rsplit(".", 2)[0]
        shards[name] = {
            "footer": {key: value for key, value in footer.items() if key not in OF_THE_MACHINE},
            "schema": [f"{field.name}: {field.type}" for field in table.schema],
            "ids": table["id"].to_pylist() if "id" in table.column_names else None,
        }
        column = table["embedding"].drop_null().combine_chunks()
        width = len(column[0])
        vectors += list(column.flatten().to_numpy().reshape(-1, width)[:VECTORS])
    pinned = np.array(vectors[:VECTORS], np.float16 if vectors[0].dtype == np.float32 else vectors[0].dtype)
    return {
        **digest,
        "fingerprint": fingerprint,
        "shards": shards,
        "vectors": {"dtype": str(pinned.dtype), "base64": base64.b64encode(pinned.tobytes()).decode()},
    }


def cosines(found: dict[str, str], expected: dict[str, str]) -> np.ndarray:
    one, other = (
        np.frombuffer(base64.b64decode(item["base64"]), item["dtype"]).reshape(VECTORS, -1).astype(np.float64)
        for item in (found, expected)
    )
    return (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


@pytest.mark.parametrize("name", JOBS)
def test_a_job_gives_what_is_pinned(cli, tmp_path: Path, name: str) -> None:
    source, settings = JOBS[name]
    folder = GOLDEN if (GOLDEN / source).exists() else OLD_INPUTS
    shutil.copytree(folder / source, tmp_path / source)
    for path in (tmp_path / source).iterdir():
        os.utime(path, ns=(MTIME, MTIME))
    more = [part for setting in settings for part in ("--set", setting)]
    cli("embed", tmp_path / source, tmp_path / "out", *COMMON, *more)
    found = described(tmp_path / "out")
    pinned = json.loads(EXPECTED.read_text("utf-8")) if EXPECTED.exists() else {}
    if os.environ.get("PIN_GOLDEN"):
        EXPECTED.write_text(json.dumps(pinned | {name: found}, indent=1, ensure_ascii=False) + "\n", "utf-8")
        return
    expected = pinned[name]
    assert cosines(found.pop("vectors"), expected.pop("vectors")).min() > 0.999
    assert found == json.loads(json.dumps(expected))
