"""Competitors of ``benchmark.py`` with their environments, and the models and texts they run on."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MINI = Path(__file__).parents[2] / "kosbert_ray" / "bundled" / "kosbert-mini"
TORCH = "torch==2.13.0"
ENVIRONMENTS = {
    "sentence-transformers": [TORCH, "sentence-transformers==6.2.0"],
    "sentence-transformers-onnx": [TORCH, "sentence-transformers[onnx]"],  # the extra conflicts with version 6
    "sentence-transformers-openvino": [
        TORCH,
        "sentence-transformers==6.2.0",
        "optimum-intel",
        "openvino",
        "nncf",
        "datasets",
    ],
    "ray-data": [TORCH, "sentence-transformers==6.2.0", "ray[data]==2.60.0"],
    "matplotlib": ["matplotlib==3.10.7"],
    "fastembed": ["fastembed==0.9.1"],
    "infinity-emb": [TORCH, "infinity-emb[torch,optimum]==0.0.78"],
    "embed-anything": ["embed-anything==0.7.1"],
}


@dataclass
class Competitor:
    """A competitor and its measurements.

    Attributes:
        name: name in the tables.
        kind: key of ``worker.KINDS``.
        options: options of its worker.
        error: reason why it failed, else empty.
        seconds: seconds of each round by text set.
        peak_mb: peak memory of its process in MiB.
        cosine: lowest cosine to the first competitor's vectors by text set.
    """

    name: str
    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    seconds: dict[str, list[float]] = field(default_factory=dict)
    peak_mb: int = 0
    cosine: dict[str, float] = field(default_factory=dict)


def competitors(work: Path, dimension: int) -> list[Competitor]:
    """Lists all competitors. The first is the baseline that the others' ratios refer to."""
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


def python_of(kind: str, environments: Path) -> str:
    """Returns the interpreter of a competitor's environment, which it creates if needed. Raises RuntimeError on failure."""
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
        # Some packages pull in torchvision. If its build does not match torch, importing transformers fails.
        subprocess.run([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", "torchvision"], capture_output=True)
        (folder / "installed").touch()
    return str(python)


def base_model(folder: Path) -> Path:
    """Creates a sentence-transformers BERT-base with random weights and kosbert-mini's tokenizer, unless it exists."""
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
        for name in ("sentence_bert_config.json", "modules.json"):  # modules.json last: it marks a complete model
            shutil.copy(MINI / name, folder)
    return folder


def texts_of_length(tokenizer: Any, texts: list[str], length: int, count: int) -> list[str]:
    """Builds texts of about ``length`` tokens from whole words.

    Args:
        tokenizer: kosbert-ray's tokenizer.
        texts: source of the words.
        length: tokens per text, including special tokens.
        count: number of texts.
    """
    words = " ".join(texts).split()
    tokens = tokenizer(words)
    sizes = tokens.lengths[tokens.rows] - tokenizer.special_tokens
    found: list[str] = []
    start = 0
    while len(found) < count:
        stop, size = start, tokenizer.special_tokens
        while size + int(sizes[stop % len(words)]) <= length or stop == start:
            size += int(sizes[stop % len(words)])
            stop += 1
        found.append(" ".join(words[index % len(words)] for index in range(start, stop)))
        start = stop
    return found


def text_sets(data: Path | None, count: int) -> dict[str, list[str]]:
    """Returns the text sets ``short`` and ``mixed``, from the bundled sentences if ``data`` is None."""
    import pyarrow.parquet as pq

    if data is None:
        from kosbert_ray.model.source import bundled_sentences

        texts = bundled_sentences()
        return {"short": texts, "mixed": texts[::4] + [" ".join(texts[i : i + 30]) for i in range(0, len(texts) - 30, 4)]}
    found = {}
    for name, number in (("korpus_short", count), ("korpus_long", count // 20)):
        shards = sorted((data / name).glob("*.parquet"))
        if not shards:
            raise SystemExit(f"{data / name}: contains no *.parquet files")
        each = -(-number // len(shards))
        found[name] = [text for path in shards for text in pq.read_table(path, columns=["text"])["text"].to_pylist()[:each]]
    long = found["korpus_long"]
    return {"short": found["korpus_short"], "mixed": found["korpus_short"][: len(long)] + long}
