"""Process of one competitor of ``benchmark.py``: loads a model with the competitor's own API and encodes texts.

Runs in the competitor's environment, so it imports kosbert-ray only where that is the competitor. Communicates in JSON
lines: first writes ``{"ready": true}`` or ``{"error": reason}``, then answers each request
``{"texts": path, "vectors": path}`` with ``{"seconds": …, "peak_mb": …}`` or an error.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Encode = Callable[[list[str]], Any]
BATCH_SIZES = (8, 16, 32, 64, 128)
TRIAL_TEXTS = 200  # texts on which the best batch size is chosen
COMMIT = "0" * 40  # commit of the model in a made-up hub cache


def sentence_transformers(model: str, threads: int, work: Path, options: dict[str, Any]) -> Encode:
    """Loads sentence-transformers as documented: ``SentenceTransformer(model).encode(texts)``."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    backend = options.get("backend", "torch")
    arguments: dict[str, Any] = {"dtype": getattr(torch, options.get("dtype", "float32"))} if backend == "torch" else {}
    if options.get("int8"):
        folder = work / f"{Path(model).name}-{backend}-int8"
        if not folder.exists():
            (_onnx_int8 if backend == "onnx" else _openvino_int8)(model, folder, options["calibration"])
        model, arguments = str(folder), {"file_name": options["int8"]}
    loaded = SentenceTransformer(model, device="cpu", backend=backend, model_kwargs=arguments)
    if "save" in options and not Path(options["save"]).exists():
        loaded.save_pretrained(options["save"])
    batch_size = options.get("batch_size", 32)
    if batch_size != "best":
        return lambda texts: loaded.encode(texts, batch_size=batch_size)

    chosen: list[int] = []

    def encode(texts: list[str]) -> Any:
        if not chosen:  # in the warm-up round
            sample = texts[:: max(1, len(texts) // TRIAL_TEXTS)]
            chosen.append(min(BATCH_SIZES, key=lambda size: _seconds(lambda: loaded.encode(sample, batch_size=size))))
        return loaded.encode(texts, batch_size=chosen[0])

    return encode


def _seconds(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _onnx_int8(model: str, folder: Path, calibration: str) -> None:
    del calibration  # dynamic quantization needs none
    from sentence_transformers import SentenceTransformer, export_dynamic_quantized_onnx_model

    loaded = SentenceTransformer(model, device="cpu", backend="onnx")
    loaded.save_pretrained(str(folder))
    export_dynamic_quantized_onnx_model(loaded, "avx512_vnni", str(folder))


def _openvino_int8(model: str, folder: Path, calibration: str) -> None:
    """Does the same as ``export_static_quantized_openvino_model``, but calibrates on texts from a file, not the hub."""
    from datasets import Dataset
    from optimum.intel import OVConfig, OVModelForFeatureExtraction, OVQuantizationConfig, OVQuantizer
    from sentence_transformers import SentenceTransformer
    from transformers import AutoTokenizer

    SentenceTransformer(model, device="cpu", backend="openvino").save_pretrained(str(folder))
    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = json.loads(Path(calibration).read_text("utf-8"))
    sample = Dataset.from_dict(dict(tokenizer(texts, padding="max_length", max_length=128, truncation=True)))
    quantizer = OVQuantizer.from_pretrained(OVModelForFeatureExtraction.from_pretrained(model, export=True))
    quantizer.quantize(
        calibration_dataset=sample,
        ov_config=OVConfig(quantization_config=OVQuantizationConfig()),
        save_directory=folder / "q",
    )
    for part in (folder / "q").glob("openvino_model.*"):
        part.rename(folder / "openvino" / part.name.replace("openvino_model", "openvino_model_qint8"))


def fastembed(model: str, threads: int, work: Path, options: dict[str, Any]) -> Encode:
    """Loads fastembed (ONNX Runtime) with the same weights, as a custom model."""
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    del work
    TextEmbedding.add_custom_model(
        model="bench/model",
        pooling=PoolingType.MEAN,
        normalization=False,
        sources=ModelSource(hf="bench/model"),
        dim=options["dimension"],
        model_file="onnx/model.onnx",
    )
    loaded = TextEmbedding("bench/model", specific_model_path=options["onnx"], threads=threads)
    del model
    return lambda texts: np.stack(list(loaded.embed(texts)))


def infinity(model: str, threads: int, work: Path, options: dict[str, Any]) -> Encode:
    """Loads infinity-emb's engine without its server."""
    import torch
    from infinity_emb import AsyncEmbeddingEngine, EngineArgs

    del work, options
    torch.set_num_threads(threads)
    engine = AsyncEmbeddingEngine.from_args(
        EngineArgs(model_name_or_path=model, engine="torch", device="cpu", bettertransformer=False, compile=False)
    )

    async def run(texts: list[str]) -> Any:
        async with engine:
            vectors, _ = await engine.embed(sentences=texts)
        return np.stack(vectors)

    return lambda texts: asyncio.run(run(texts))


def embed_anything(model: str, threads: int, work: Path, options: dict[str, Any]) -> Encode:
    """Loads embed-anything (Rust, candle)."""
    # It takes hub names only, so put the model into a hub cache of its own.
    hub = work / "hf" / "hub" / "models--bench--model"
    if not hub.exists():
        shutil.copytree(model, hub / "snapshots" / COMMIT)
        (hub / "refs").mkdir()
        (hub / "refs" / "main").write_text(COMMIT)
    os.environ["HF_HOME"] = str(work / "hf")
    import embed_anything as ea

    del threads, options
    loaded = ea.EmbeddingModel.from_pretrained_hf(model_id="bench/model")
    config = ea.TextEmbedConfig(batch_size=32)
    return lambda texts: np.array([found.embedding for found in ea.embed_query(texts, embedder=loaded, config=config)])


def kosbert_ray(model: str, threads: int, work: Path, options: dict[str, Any]) -> Encode:
    """Loads kosbert-ray's encoder."""
    from kosbert_ray.encoder import Encoder
    from kosbert_ray.encoder.options import EncoderOptions

    del work
    encoder = Encoder.load(
        model, EncoderOptions(precision=options["precision"], device="cpu", threads=threads, engine=options["engine"])
    )
    return encoder.encode


KINDS = {
    "sentence-transformers": sentence_transformers,
    "fastembed": fastembed,
    "infinity-emb": infinity,
    "embed-anything": embed_anything,
    "kosbert-ray": kosbert_ray,
}


def main() -> None:
    """Loads the competitor, then answers requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # keep output of libraries out of the answers
    task = json.loads(sys.argv[1])
    try:
        encode = KINDS[task["kind"]](task["model"], task["threads"], Path(task["work"]), task["options"])
        encode(["한 문장만 먼저."])
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        print(json.dumps({"error": f"{type(error).__name__}: {lines[0][:200]}"}), file=answers)
        return
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        texts = json.loads(Path(request["texts"]).read_text("utf-8"))
        try:
            started = time.perf_counter()
            vectors = encode(texts)
            seconds = time.perf_counter() - started
        except Exception as error:
            print(json.dumps({"error": f"{type(error).__name__}: {str(error)[:200]}"}), file=answers)
            return
        np.save(request["vectors"], np.asarray(vectors, np.float32))
        peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        print(json.dumps({"seconds": seconds, "peak_mb": int(peak.split()[1]) // 1024}), file=answers)


if __name__ == "__main__":
    main()
