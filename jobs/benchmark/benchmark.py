"""Benchmarks kosbert-ray against its alternatives on the same texts in one run: ``make bench``.

Each competitor is a process with the model loaded (``worker.py``), in its own environment if its packages conflict with
those of kosbert-ray. Rounds are interleaved: every competitor runs once before any runs again. The floor is the time
that the model's FLOPs alone would take at the measured peak of the machine's matrix products.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from competitors import MINI, Competitor, base_model, competitors, python_of, text_sets, texts_of_length
from end_to_end import measure_jobs, table_of_jobs
from stages import measure_stages, table_of_stages

HERE = Path(__file__).parent
LENGTHS = (8, 16, 32, 64, 128, 256, 512)
TOKENS_OF_A_LENGTH = 4096
PLOTTED = (
    "sentence-transformers fp32, batch 32",
    "sentence-transformers bf16, best batch",
    "sentence-transformers openvino int8",
    "kosbert-ray torch bf16",
    "kosbert-ray openvino bf16",
    "kosbert-ray openvino int8",
)
SLICE_ROWS = 16_384
BASE_DIMENSION = 768
JOB_TIMES = 4  # multiple of --texts in the end-to-end runs, whose time includes the start
SLOW_SECONDS = 60.0  # a competitor that takes longer for a set runs it once, and that run counts


def peak_flops(precision: str, threads: int) -> float:
    """Measures the peak FLOP/s of BERT-base's largest linear layer on 1,024 tokens."""
    import torch

    torch.set_num_threads(threads)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    layer, x = torch.nn.Linear(768, 3072).to(dtype), torch.randn(1024, 768).to(dtype)
    best = 0.0
    with torch.inference_mode():
        for _ in range(30):
            started = time.perf_counter()
            for _ in range(5):
                layer(x)
            best = max(best, 5 * 2 * 1024 * 768 * 3072 / (time.perf_counter() - started))
    return best


def flops(model: Path, lengths: np.ndarray) -> float:
    """Counts the FLOPs of all matrix products for sequences of these lengths: linear layers and attention."""
    config = json.loads((model / "config.json").read_text())
    width, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    weights = layers * (4 * width * width + 2 * width * inner)
    return float(2 * weights * lengths.sum() + 4 * layers * width * (lengths.astype(np.float64) ** 2).sum())


# -- the run -------------------------------------------------------------------------------------------------------


class Worker:
    """The process of a competitor."""

    def __init__(self, competitor: Competitor, model: Path, threads: int, work: Path) -> None:
        self.competitor = competitor
        task = {
            "kind": competitor.kind,
            "model": str(model),
            "threads": threads,
            "work": str(work),
            "options": competitor.options,
        }
        backend = competitor.options.get("backend")
        python = python_of(f"{competitor.kind}-{backend}" if backend else competitor.kind, work.parent / "environments")
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "true",
        }
        environment |= {"DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
        self.log = (work / f"{competitor.name.replace(' ', '-').replace('/', '-')}.log").open("wb")
        self.process = subprocess.Popen(
            [python, str(HERE / "worker.py"), json.dumps(task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
        )

    def answer(self) -> dict[str, Any]:
        """Reads the next answer and records its error, if any, with the competitor."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": f"process died, see {self.log.name}"}
        self.competitor.error = answer.get("error", "")
        return answer

    def run(self, texts: Path, vectors: Path) -> dict[str, Any]:
        """Encodes a set of texts and returns the answer."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"texts": str(texts), "vectors": str(vectors)}) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def end(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()
        self.log.close()


def measure(
    model: Path,
    sets: dict[str, list[str]],
    calibration: list[str],
    threads: int,
    rounds: int,
    takes_part: Callable[[str], bool],
    work: Path,
) -> list[Competitor]:
    """Measures the competitors in interleaved rounds. The first round is a warm-up and does not count.

    Args:
        model: folder of the model.
        sets: texts by name.
        calibration: texts for int8 calibration.
        threads: CPU threads.
        rounds: rounds that count.
        takes_part: returns True for the name of a competitor to run.
        work: folder for texts, vectors and logs.

    Returns:
        The competitors with their times, peak memory and lowest cosine to the first one's vectors.
    """
    for name, texts in sets.items():
        (work / f"{name}.json").write_text(json.dumps(texts, ensure_ascii=False), "utf-8")
    sample = calibration[:: max(1, len(calibration) // 300)]
    (work / "calibration.json").write_text(json.dumps(sample, ensure_ascii=False), "utf-8")
    dimension = json.loads((model / "config.json").read_text())["hidden_size"]
    everyone = [one for one in competitors(work, dimension) if takes_part(one.name)]
    workers = []
    for competitor in everyone:
        print(f"loading {competitor.name} …", file=sys.stderr)
        try:
            worker = Worker(competitor, model, threads, work)
        except RuntimeError as error:
            competitor.error = str(error)
            continue
        workers.append(worker)
        worker.answer()
    try:
        for number in range(rounds + 1):
            for worker in workers:
                one = worker.competitor
                for name in sets:
                    if one.error or max(one.seconds.get(name, [0])) > SLOW_SECONDS:
                        continue
                    path = work / f"{everyone.index(one)}-{name}.npy"
                    answer = worker.run(work / f"{name}.json", path)
                    if not one.error and (number or answer["seconds"] > SLOW_SECONDS):
                        one.seconds.setdefault(name, []).append(answer["seconds"])
                        one.peak_mb = max(one.peak_mb, answer["peak_mb"])
            print(f"round {number} of {rounds} done", file=sys.stderr)
    finally:
        for worker in workers:
            worker.end()
    for name in sets:
        exact: np.ndarray | None = None
        for index, one in enumerate(everyone):
            if name in one.seconds:
                vectors = np.load(work / f"{index}-{name}.npy")
                exact = vectors if exact is None else exact
                lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(exact, axis=1)
                one.cosine[name] = float(((vectors * exact).sum(1) / lengths).min())
    return everyone


def report(
    everyone: list[Competitor], sets: dict[str, list[str]], tokens: dict[str, np.ndarray], model: Path, threads: int
) -> dict[str, Any]:
    """Summarizes the measurements as plain values."""
    peaks = {precision: peak_flops(precision, threads) for precision in ("fp32", "bf16")}
    floors = {
        name: {precision: lengths.sum() / (flops(model, lengths) / peak) for precision, peak in peaks.items()}
        for name, lengths in tokens.items()
    }
    rows = []
    for one in everyone:
        row: dict[str, Any] = {"name": one.name, "error": one.error, "peak_mb": one.peak_mb, "sets": {}}
        for name, seconds in one.seconds.items():
            middle = statistics.median(seconds)
            first = next(other for other in everyone if name in other.seconds)
            precision = "fp32" if "fp32" in one.name or not ("bf16" in one.name or "int8" in one.name) else "bf16"
            rate = float(tokens[name].sum() / middle)
            row["sets"][name] = {
                "tokens_per_second": rate,
                "texts_per_second": len(sets[name]) / middle,
                "spread": (max(seconds) - min(seconds)) / middle,
                "ratio": statistics.median(first.seconds[name]) / middle,
                "share_of_floor": rate / floors[name][precision],
                "min_cosine": one.cosine[name],
            }
        rows.append(row)
    return {
        "date": date.today().isoformat(),
        "peak_gflops": {precision: peak / 1e9 for precision, peak in peaks.items()},
        "floor_tokens_per_second": floors,
        "texts": {name: {"texts": len(sets[name]), "tokens": int(tokens[name].sum())} for name in sets},
        "competitors": rows,
        "seconds": [asdict(one) for one in everyone],
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def table(found: dict[str, Any]) -> list[str]:
    """Formats the summary as a Markdown table."""
    sets = list(found["texts"])
    head = ["", *(f"{name}: tokens/s | texts/s | ratio | of floor | spread | cosine" for name in sets), "peak MB"]
    lines = ["| " + " | ".join(head) + " |", "|---" * (2 + 6 * len(sets)) + "|"]
    for row in found["competitors"]:
        if row["error"]:
            lines.append(f"| {row['name']} | failed: {row['error']} |")
            continue
        cells = [row["name"]]
        for name in sets:
            one = row["sets"][name]
            cells.append(
                f"{one['tokens_per_second']:,.0f} | {one['texts_per_second']:,.0f} | {one['ratio']:.2f}x "
                f"| {one['share_of_floor']:.0%} | ±{one['spread'] / 2:.0%} | {one['min_cosine']:.5f}"
            )
        lines.append("| " + " | ".join([*cells, f"{row['peak_mb']:,}"]) + " |")
    return lines


def wanted(arguments: argparse.Namespace, name: str) -> bool:
    """Returns True if ``--only`` selects the competitor."""
    return not arguments.only or any(part in name for part in arguments.only)


def plot_lengths(model: Path, texts: list[str], tokenizer: Any, arguments: argparse.Namespace, folder: Path) -> None:
    """Measures some competitors at each text length and plots their texts per second to ``lengths.svg``."""
    max_length = json.loads((model / "config.json").read_text())["max_position_embeddings"]
    sets = {
        str(length): texts_of_length(tokenizer, texts, length, max(8, TOKENS_OF_A_LENGTH // length))
        for length in LENGTHS
        if length <= max_length
    }

    def takes_part(name: str) -> bool:
        return name in PLOTTED and wanted(arguments, name)

    everyone = measure(model, sets, texts, arguments.threads, 1, takes_part, folder)
    rates = {
        one.name: {name: len(sets[name]) / statistics.median(seconds) for name, seconds in one.seconds.items()}
        for one in everyone
        if one.seconds
    }
    title = f"{model.name}, {_cpu()}, {arguments.threads} threads, {date.today().isoformat()}"
    result = folder / "lengths.json"
    result.write_text(json.dumps({"title": title, "texts_per_second": rates}, indent=1), "utf-8")
    python = python_of("matplotlib", folder.parent / "environments")
    subprocess.run([python, str(HERE / "plot.py"), str(result), str(folder / "lengths.svg")], check=True)
    print(f"\ntexts/s by length: {folder / 'lengths.svg'}", flush=True)


def named_model(model: Path, work: Path) -> Path:
    """Returns the folder of ``--model``. Creates ``bert-base`` in the work folder if it does not exist."""
    if model.resolve() == work / "bert-base":
        return base_model(model)
    if not model.is_dir():
        sys.exit(f"--model {model}: no such model folder")
    return model


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model folder (default: BERT-base with random weights, then kosbert-mini)")
    parser.add_argument(
        "--data", type=Path, help="folder with korpus_short/ and korpus_long/ (default: the bundled sentences)"
    )
    parser.add_argument("--texts", type=int, default=1600, help="number of short texts; long texts are a twentieth of it")
    parser.add_argument("--rounds", type=int, default=3, help="rounds that count, after a warm-up round")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads (default: all)")
    parser.add_argument("--only", action="append", default=[], help="run competitors whose name contains this; repeatable")
    parser.add_argument("--parts", default="rounds,lengths,jobs,stages", help="comma-separated parts to run (default: all)")
    parser.add_argument(
        "--work", type=Path, default=Path("bench-out"), help="folder for environments, converted models and results"
    )
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    parts = arguments.parts.split(",")
    models = [named_model(Path(arguments.model), work)] if arguments.model else [base_model(work / "bert-base"), MINI]
    sets = text_sets(arguments.data, arguments.texts)
    from kosbert_ray.encoder.tokenizer import Tokenizer
    from kosbert_ray.model.spec import read_spec

    def lengths_of(sets: dict[str, list[str]], tokenizer: Tokenizer) -> dict[str, np.ndarray]:
        found = {name: tokenizer(texts) for name, texts in sets.items()}
        return {name: tokens.lengths[tokens.rows] for name, tokens in found.items()}

    for model in models:
        folder = work / f"run-{model.name}"
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer = Tokenizer.load(read_spec(model))
        result: dict[str, Any] = {"model": model.name, "machine": f"{_cpu()}, {arguments.threads} threads"}
        print(f"\n## {result['model']}, {result['machine']}, {date.today().isoformat()}\n", flush=True)
        if "rounds" in parts:
            everyone = measure(
                model,
                sets,
                sets["mixed"],
                arguments.threads,
                arguments.rounds,
                lambda name: wanted(arguments, name),
                folder,
            )
            result |= report(everyone, sets, lengths_of(sets, tokenizer), model, arguments.threads)
            print("\n".join(table(result)), flush=True)
        if "lengths" in parts:
            plot_lengths(model, sets["short"], tokenizer, arguments, folder)
        if "jobs" in parts:
            larger = text_sets(arguments.data, JOB_TIMES * arguments.texts)
            result["jobs"] = measure_jobs(larger, model, arguments.threads, lambda name: wanted(arguments, name), folder)
            tokens = {name: int(lengths.sum()) for name, lengths in lengths_of(larger, tokenizer).items()}
            print("\n" + "\n".join(table_of_jobs(result["jobs"], larger, tokens)), flush=True)
        if "stages" in parts:
            for name, texts in text_sets(arguments.data, SLICE_ROWS).items():
                slice_texts = list(dict.fromkeys(texts))
                stages = measure_stages(slice_texts, model, BASE_DIMENSION)
                result.setdefault("stages", {})[name] = [asdict(stage) for stage in stages]
                tokens_of_slice = int(lengths_of({name: slice_texts}, tokenizer)[name].sum())
                print(f"\n{name}: {len(slice_texts):,} texts, {tokens_of_slice:,} tokens\n")
                print("\n".join(table_of_stages(stages, len(slice_texts), tokens_of_slice)), flush=True)
        (folder / "result.json").write_text(json.dumps(result, indent=1, ensure_ascii=False, default=float), "utf-8")


if __name__ == "__main__":
    main()
