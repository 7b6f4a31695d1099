"""A file far larger than what memory is allowed is streamed (slow: ``make test-slow``)."""

from __future__ import annotations

import base64
import gzip
import json
import random
import subprocess
import time
from pathlib import Path

import psutil
import pyarrow.dataset as ds
import pytest
from conftest import TINY, command, everyday

MEMBER_ROWS = 64
SIZE = 2 * 10**9
LIMIT = 2 * 2**30


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_2_gb_gzip_is_embedded_in_under_2_gb_of_memory_above_the_encoders(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    noise = random.Random(0)
    rows = [
        {"text": everyday()[number], "page": base64.b64encode(noise.randbytes(12_000)).decode()}
        for number in range(MEMBER_ROWS)
    ]
    member = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())  # gzip files may be concatenated
    copies = SIZE // len(member) + 1
    with (source / "a.jsonl.gz").open("wb") as file:
        for _ in range(copies):
            file.write(member)
    assert (source / "a.jsonl.gz").stat().st_size > SIZE

    process = subprocess.Popen(command("embed", source, target, "--model", TINY))
    peak = 0
    try:
        while process.poll() is None:
            peak = max(peak, _memory(process.pid))
            time.sleep(0.5)
    finally:
        process.kill()
    assert process.returncode == 0
    assert ds.dataset(target, format="parquet").count_rows() == copies * MEMBER_ROWS
    print(f"peak above the encoders: {peak / 2**20:.0f} MiB")
    assert peak < LIMIT


def _memory(pid: int) -> int:
    """Bytes that only the run's processes hold (not the object store, which is shared), but for the encoders."""
    total = 0
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        try:
            if "EncodeSlices" not in " ".join(process.cmdline()):
                total += process.memory_full_info().uss
        except psutil.Error:
            continue
    return total
