"""A whole job from S3 to S3 on a real server, with the model in S3, too."""

from __future__ import annotations

import io
import json
import os
import subprocess
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from conftest import command, everyday

from kosbert_ray.encoder.encoder import Encoder
from kosbert_ray.encoder.options import EncoderOptions

SENTENCES = everyday()


def read(files, folder: str) -> dict[str, bytes]:
    return {path.rpartition("/")[2]: files.cat_file(path) for path in files.ls(folder) if path.endswith(".parquet")}


@pytest.mark.faults
def test_a_killed_run_from_s3_to_s3_resumes_and_completes(cli, s3, tiny_model: Path, tmp_path: Path) -> None:
    files = s3.filesystem()
    files.mkdir("my-bucket")
    files.put(str(tiny_model), "my-bucket/model", recursive=True)
    source = tmp_path / "in"
    source.mkdir()
    texts = [f"{SENTENCES[number % 520]} {number}" for number in range(9000)]
    for number in range(3):
        part = texts[number * 3000 : (number + 1) * 3000]
        (source / f"{number}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in part), "utf-8")
    files.put(str(source), "my-bucket/in", recursive=True)
    # Credentials come from the environment, the endpoint from the config.
    env = {key: value for key, value in s3.env.items() if key != "AWS_ENDPOINT_URL"}
    settings = ["--set", f"storage.endpoint_url={s3.endpoint}", "--set", "slice.max_rows=200", "--keep", "text"]
    arguments = ["embed", "s3://my-bucket/in/*.jsonl", "s3://my-bucket/out", "--model", "s3://my-bucket/model", *settings]
    env |= {"XDG_CACHE_HOME": str(tmp_path / "cache")}

    process = subprocess.Popen(command(*arguments), env={**os.environ, **env}, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not files.exists("my-bucket/out") or len(read(files, "my-bucket/out")) < 5:
            assert time.monotonic() < deadline, "no shard was committed"
            time.sleep(0.2)
        family = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
        process.wait()
    for child in family:  # at once, so that nothing of the killed run keeps writing
        if child.is_running():
            child.kill()
    committed = read(files, "my-bucket/out")

    done = cli(*arguments, env=env)
    assert "done: 9,000 rows" in done.stdout
    found = read(files, "my-bucket/out")
    assert {name: found[name] for name in committed} == committed
    assert [json.loads(files.cat_file("my-bucket/out/_SUCCESS"))[name] for name in ("rows", "files")] == [9000, 3]
    for path in files.find("my-bucket/out"):
        assert b"secret" not in files.cat_file(path)

    rows = [row for content in found.values() for row in pq.read_table(io.BytesIO(content)).to_pylist()]
    assert sorted(row["text"] for row in rows) == sorted(texts)
    expected = Encoder.load(str(tiny_model), EncoderOptions(precision="fp32", device="cpu")).encode(
        [row["text"] for row in rows[:300]]
    )
    vectors = np.array([row["embedding"] for row in rows[:300]], np.float32)
    cosines = (vectors * expected).sum(1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() > 0.999

    before = files.info("my-bucket/out/_SUCCESS")["LastModified"]
    cli(*arguments, env=env)
    assert files.info("my-bucket/out/_SUCCESS")["LastModified"] == before, "a complete output is not written again"
