"""Everything a user would pick instead, and ours, on the same texts, in one run: ``make bench``.

Each competitor is a process with the model loaded (``benchmark_worker.py``), in an environment that this script makes
where its packages do not go with ours. Rounds are interleaved: every competitor has its turn before any has its next. The
floor is what the machine's measured matrix products would take for the model's FLOPs alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
import venv
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
MINI = HERE.parent / "kosbert_ray" / "bundled" / "kosbert-mini"
TORCH = "torch==2.13.0"
ENVIRONMENTS = {
    "sentence-transformers": [TORCH, "sentence-transformers==6.2.0"],
    "sentence-transformers-onnx": [TORCH, "sentence-transformers[onnx]"],  # version 6 does not go with it
    "sentence-transformers-openvino": [
        TORCH,
        "sentence-transformers==6.2.0",
        "optimum-intel",
        "openvino",
        "nncf",
        "datasets",
    ],
    "fastembed": ["fastembed==0.9.1"],
    "infinity-emb": [TORCH, "infinity-emb[torch,optimum]==0.0.78"],
    "embed-anything": ["embed-anything==0.7.1"],
}
SLOW_SECONDS = 60.0  # who takes longer for a set has one turn at it, which counts


@dataclass
class Competitor:
    """Who, how, and what was measured of it: seconds of each round by text set."""

    name: str
    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    seconds: dict[str, list[float]] = field(default_factory=dict)
    peak_mb: int = 0
    cosine: dict[str, float] = field(default_factory=dict)


def competitors(work: Path, dimension: int) -> list[Competitor]:
    """All of them, the usual one first: the others are told as multiples of it."""
    sample = {"calibration": str(work / "calibration.json")}
    st = "sentence-transformers"
    found = [
        Competitor(f"{st} fp32, batch 32", st),
        Competitor(f"{st} fp32, best batch", st, {"batch_size": "best"}),
        Competitor(f"{st} bf16, best batch", st, {"batch_size": "best", "dtype": "bfloat16"}),
        Competitor(f"{st} onnx", st, {"backend": "onnx", "save": str(work / "onnx")}),
        Competitor(f"{st} onnx int8", st, {"backend": "onnx", "int8": "onnx/model_qint8_avx512_vnni.onnx"} | sample),
        Competitor(f"{st} openvino", st, {"backend": "openvino"}),
        Competitor(f"{st} openvino int8", st, {"backend": "openvino", "int8": "openvino_model_qint8.xml"} | sample),
        Competitor("fastembed (onnx)", "fastembed", {"dimension": dimension, "onnx": str(work / "onnx")}),
        Competitor("infinity-emb (torch)", "infinity-emb"),
        Competitor("embed-anything", "embed-anything"),
    ]
    for engine, precisions in (("torch", ("fp32", "bf16")), ("openvino", ("fp32", "bf16", "int8"))):
        found += [
            Competitor(f"kosbert-ray {engine} {precision}", "kosbert-ray", {"engine": engine, "precision": precision})
            for precision in precisions
        ]
    return found


# -- what they run on ----------------------------------------------------------------------------------------------


def python_of(kind: str, environments: Path) -> str:
    """The interpreter of a competitor's environment, made if it is not there; raises RuntimeError if it cannot be."""
    if kind == "kosbert-ray":
        return sys.executable
    folder = environments / kind
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        print(f"installing {kind} …", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *ENVIRONMENTS[kind]]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"pip: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
        # torchvision comes along, and where it is of another build than torch, transformers cannot be imported.
        subprocess.run([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", "torchvision"], capture_output=True)
        (folder / "installed").touch()
    return str(python)


def base_model(folder: Path) -> Path:
    """A model of BERT-base's shape with random weights and kosbert-mini's tokenizer, in sentence-transformers' format."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    if not (folder / "modules.json").exists():
        torch.manual_seed(0)
        tokenizer = AutoTokenizer.from_pretrained(str(MINI))
        BertModel(BertConfig(vocab_size=len(tokenizer)), add_pooling_layer=False).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "1_Pooling").mkdir(exist_ok=True)
        pooling = {"word_embedding_dimension": 768, "pooling_mode_mean_tokens": True}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
        for name in ("sentence_bert_config.json", "modules.json"):  # the last makes it a model
            shutil.copy(MINI / name, folder)
    return folder


def text_sets(data: Path | None, count: int) -> dict[str, list[str]]:
    """ "short" and "mixed", the bundled sentences if there is no other text."""
    import pyarrow.parquet as pq

    if data is None:
        from kosbert_ray.encoder.source import bundled_sentences

        texts = bundled_sentences()
        return {"short": texts, "mixed": texts[::4] + [" ".join(texts[i : i + 30]) for i in range(0, len(texts) - 30, 4)]}
    found = {}
    for name, number in (("korpus_short", count), ("korpus_long", count // 20)):
        shards = sorted((data / name).glob("*.parquet"))
        if not shards:
            raise SystemExit(f"{data / name}: no *.parquet in it")
        each = -(-number // len(shards))
        found[name] = [text for path in shards for text in pq.read_table(path, columns=["text"])["text"].to_pylist()[:each]]
    long = found["korpus_long"]
    return {"short": found["korpus_short"], "mixed": found["korpus_short"][: len(long)] + long}


def peak_flops(precision: str, threads: int) -> float:
    """FLOP/s of linear layers of BERT-base's largest shape on 1,024 tokens: the best of several."""
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
    """FLOPs of the products for sequences of these lengths: the layers' weights, and attention's scores and sums."""
    config = json.loads((model / "config.json").read_text())
    width, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    weights = layers * (4 * width * width + 2 * width * inner)
    return float(2 * weights * lengths.sum() + 4 * layers * width * (lengths.astype(np.float64) ** 2).sum())


# -- the run -------------------------------------------------------------------------------------------------------


class Worker:
    """A competitor's process."""

    def __init__(self, competitor: Competitor, model: Path, threads: int, work: Path) -> None:
        self.competitor = competitor
        order = {
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
            [python, str(HERE / "benchmark_worker.py"), json.dumps(order)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
        )

    def answer(self) -> dict[str, Any]:
        """Its next line; notes an error with the competitor."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": f"died, see {self.log.name}"}
        self.competitor.error = answer.get("error", "")
        return answer

    def run(self, texts: Path, vectors: Path) -> dict[str, Any]:
        """Encodes a set."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"texts": str(texts), "vectors": str(vectors)}) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def end(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()
        self.log.close()


def measure(model: Path, sets: dict[str, list[str]], threads: int, rounds: int, only: str, work: Path) -> list[Competitor]:
    """Runs all competitors in interleaved rounds, the first of which is not counted."""
    for name, texts in sets.items():
        (work / f"{name}.json").write_text(json.dumps(texts, ensure_ascii=False), "utf-8")
    (work / "calibration.json").write_text(json.dumps(sets["mixed"][:: max(1, len(sets["mixed"]) // 300)]), "utf-8")
    dimension = json.loads((model / "config.json").read_text())["hidden_size"]
    everyone = [one for one in competitors(work, dimension) if only in one.name]
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
    """What was measured, as plain values."""
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
                "least_cosine": one.cosine[name],
            }
        rows.append(row)
    return {
        "date": date.today().isoformat(),
        "machine": f"{_cpu()}, {threads} threads",
        "model": model.name,
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
    """The report in Markdown."""
    sets = list(found["texts"])
    head = ["", *(f"{name}: tokens/s | texts/s | ratio | of floor | spread | cosine" for name in sets), "peak MB"]
    lines = ["| " + " | ".join(head) + " |", "|---" * (2 + 6 * len(sets)) + "|"]
    for row in found["competitors"]:
        if row["error"]:
            lines.append(f"| {row['name']} | cannot run: {row['error']} |")
            continue
        cells = [row["name"]]
        for name in sets:
            one = row["sets"][name]
            cells.append(
                f"{one['tokens_per_second']:,.0f} | {one['texts_per_second']:,.0f} | {one['ratio']:.2f}x "
                f"| {one['share_of_floor']:.0%} | ±{one['spread'] / 2:.0%} | {one['least_cosine']:.5f}"
            )
        lines.append("| " + " | ".join([*cells, f"{row['peak_mb']:,}"]) + " |")
    return lines


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model folder; by default BERT-base's shape, then kosbert-mini")
    parser.add_argument("--data", type=Path, help="holds korpus_short/ and korpus_long/; else the bundled sentences")
    parser.add_argument("--texts", type=int, default=1600, help="short texts; a twentieth as many long ones")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", default="", help="competitors with this in their name")
    parser.add_argument("--work", type=Path, default=Path("bench-out"), help="environments, converted models and results")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    models = [Path(arguments.model)] if arguments.model else [base_model(work / "bert-base"), MINI]
    sets = text_sets(arguments.data, arguments.texts)
    from kosbert_ray.encoder.spec import read_spec
    from kosbert_ray.encoder.tokenizer import Tokenizer

    for model in models:
        folder = work / f"run-{model.name}"
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer = Tokenizer.load(read_spec(model))
        tokens = {}
        for name, texts in sets.items():
            found = tokenizer(texts)
            tokens[name] = found.lengths[found.rows]
        everyone = measure(model, sets, arguments.threads, arguments.rounds, arguments.only, folder)
        result = report(everyone, sets, tokens, model, arguments.threads)
        (folder / "result.json").write_text(json.dumps(result, indent=1, ensure_ascii=False, default=float), "utf-8")
        print(f"\n## {result['model']}, {result['machine']}, {result['date']}\n")
        print("\n".join(table(result)), flush=True)


if __name__ == "__main__":
    main()
