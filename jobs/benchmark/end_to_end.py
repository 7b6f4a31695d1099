"""End-to-end benchmark: Parquet files in, Parquet files out, by a plain Ray Data script and by ``kosbert-ray embed``.

Each is a process timed from start to exit, so that starting Ray and loading the model count for all.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from competitors import python_of

FILES = 4
LOOP = "Ray Data map_batches + SentenceTransformer"
OURS = (("torch", "auto"), ("openvino", "auto"), ("openvino", "int8"))


def loop(source: str, output: str, model: str, threads: int) -> None:
    """Embeds with a plain Ray Data script: one actor with all cores, sentence-transformers' default batch size."""
    import ray
    from sentence_transformers import SentenceTransformer

    class Embed:
        def __init__(self) -> None:
            self.model = SentenceTransformer(model, device="cpu")

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            batch["embedding"] = self.model.encode(list(batch["text"]))
            return batch

    ray.init("local", num_cpus=threads + 2, include_dashboard=False, log_to_driver=False)
    dataset = ray.data.read_parquet(source)
    dataset.map_batches(Embed, concurrency=1, num_cpus=threads, batch_size=1024).write_parquet(output)


def measure_jobs(
    sets: dict[str, list[str]], model: Path, threads: int, takes_part: Callable[[str], bool], work: Path
) -> list[dict[str, Any]]:
    """Measures the seconds of each command on each text set.

    Args:
        sets: texts by name.
        model: folder of the model.
        threads: CPU threads of the plain script; kosbert-ray uses all cores.
        takes_part: returns True for the name of a command to run.
        work: folder for inputs and outputs.
    """
    commands = {LOOP: [__file__, str(model), str(threads)]}
    for engine, precision in OURS:
        settings = ["--set", f"encoder.engine={engine}", "--set", f"encoder.precision={precision}"]
        commands[f"kosbert-ray embed, {engine} {precision}"] = ["--model", str(model), *settings]
    rows = []
    for name, command in commands.items():
        if not takes_part(name):
            continue
        row: dict[str, Any] = {"name": name, "seconds": {}, "error": ""}
        rows.append(row)
        for texts_name, texts in sets.items():
            source, output = _folders(work / "jobs", texts_name, texts)
            if name == LOOP:
                start = [python_of("ray-data", work.parent / "environments"), *command, str(source), str(output)]
            else:
                start = [sys.executable, "-m", "kosbert_ray.cli", "embed", str(source), str(output), *command]
            print(f"{name} on {texts_name} …", file=sys.stderr)
            started = time.perf_counter()
            done = subprocess.run(start, capture_output=True, text=True)
            row["seconds"][texts_name] = time.perf_counter() - started
            written = sum(pq.read_metadata(path).num_rows for path in output.glob("*.parquet"))
            if done.returncode or written != len(texts):
                row["error"] = f"{written} of {len(texts)} rows: {(done.stderr.strip().splitlines() or [''])[-1][:200]}"
                break
    return rows


def _folders(work: Path, name: str, texts: list[str]) -> tuple[Path, Path]:
    shutil.rmtree(work / name, ignore_errors=True)
    source, output = work / name / "in", work / name / "out"
    source.mkdir(parents=True)
    each = -(-len(texts) // FILES)
    for start in range(0, len(texts), each):
        pq.write_table(pa.table({"text": texts[start : start + each]}), source / f"{start:08d}.parquet")
    return source, output


def table_of_jobs(rows: list[dict[str, Any]], sets: dict[str, list[str]], tokens: dict[str, int]) -> list[str]:
    """Formats the times as a Markdown table: seconds, texts/s and tokens/s including the start, and ratio to the first."""
    head = ["end to end", *(f"{name}: seconds | texts/s | tokens/s | ratio" for name in sets)]
    lines = ["| " + " | ".join(head) + " |", "|---" * (1 + 4 * len(sets)) + "|"]
    for row in rows:
        if row["error"]:
            lines.append(f"| {row['name']} | failed: {row['error']} |")
            continue
        cells = [row["name"]]
        for name, texts in sets.items():
            seconds = row["seconds"][name]
            first = rows[0]["seconds"].get(name, seconds)
            rates = f"{len(texts) / seconds:,.0f} | {tokens[name] / seconds:,.0f}"
            cells.append(f"{seconds:,.1f} | {rates} | {first / seconds:.2f}x")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    loop(sys.argv[3], sys.argv[4], sys.argv[1], int(sys.argv[2]))
