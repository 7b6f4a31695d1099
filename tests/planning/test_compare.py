"""``doctor --compare``: a model's vectors beside sentence-transformers' on the user's own texts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, everyday
from m3_models import save_m3
from multi_vector_models import save_colbert
from sparse_models import save_autoencoder, save_inference_free, save_splade
from zoo import ZOO, save

from kosbert_ray.config import JobConfig, load_config
from kosbert_ray.encoder.encoder import Encoded
from kosbert_ray.errors import ModelError, UsageError
from kosbert_ray.planning import references
from kosbert_ray.planning.compare import compare

EXPANSION = {"strategy": "fixed", "length": 16, "attend": False}


def config(folder: Path, *settings: str) -> JobConfig:
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in ["", *everyday()[:40]]]
    (folder / "in.jsonl").write_text("\n".join(lines), "utf-8")
    return load_config(None, [f"input.path={folder / 'in.jsonl'}", f"model.name={TINY}", *settings])


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_vectors_agree_with_a_prompt_and_a_length(tmp_path: Path, engine: str) -> None:
    settings = (f"encoder.engine={engine}", "encoder.precision=fp32", "model.prompt='글: '", "model.max_seq_length=12")
    found = compare(config(tmp_path, *settings), 15)
    assert found.startswith("least cosine of dense vectors to sentence-transformers over 15 texts: 1.000000")
    assert engine in found


def test_a_vector_that_differs_is_shown_with_its_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = Encoded.vectors.fget
    monkeypatch.setattr(Encoded, "vectors", property(lambda self: np.roll(vectors(self), 1, axis=0)))
    with pytest.raises(ModelError, match=r"over 15 texts: -?0\.\d+ .*, for '.+'; please report the model"):
        compare(config(tmp_path, "encoder.precision=fp32"), 15)


KINDS: dict[str, tuple[Callable[[Path], Path], tuple[str, ...]]] = {
    "a SPLADE": (lambda folder: save_splade(folder, "bert"), ("sparse",)),
    "an autoencoder": (lambda folder: save_autoencoder(folder, "bert"), ("dense", "sparse")),
    "an inference-free model, whose queries have another route": (save_inference_free, ("sparse",)),
    "a ColBERT whose documents have a prompt and a length of their own": (
        lambda folder: save_colbert(folder, "bert", (".", ","), document_length=9, query_expansion=EXPANSION),
        ("multi_vector",),
    ),
    "a ColBERT that pools": (lambda folder: save_colbert(folder, "bert", pool_factor=2), ("multi_vector",)),
    "a dense model without a head": (lambda folder: save(ZOO["modernbert"], folder), ("dense", "multi_vector")),
}


@pytest.mark.parametrize("case", KINDS)
def test_every_kind_that_the_job_writes_is_compared(case: str, tmp_path: Path) -> None:
    make, kinds = KINDS[case]
    options = (f"model.name={make(tmp_path / 'made')}", f"output.vectors={','.join(kinds)}", "encoder.precision=fp32")
    found = compare(config(tmp_path, *options), 15).split("; ")
    assert [sentence.partition(" vectors to ")[0] for sentence in found] == [
        f"least cosine of {kind.replace('_', '-')}" for kind in kinds
    ]
    assert all("over 15 texts: 1.000000 (" in sentence for sentence in found), found


@pytest.mark.parametrize("kind", ["sparse", "multi_vector"])
def test_a_kind_that_differs_is_an_error(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = save_splade(tmp_path / "made", "bert") if kind == "sparse" else save_colbert(tmp_path / "made", "bert")
    same = references.REFERENCES[kind]
    monkeypatch.setitem(references.REFERENCES, kind, lambda spec, texts, dim: same(spec, [texts[1], *texts[1:]], dim))
    message = (
        "not [0-9]+; please report" if kind == "multi_vector" else r"sparse vectors .*: 0\.\d+ .*, for '.+'; please report"
    )
    with pytest.raises(ModelError, match=message):
        compare(config(tmp_path, f"model.name={made}", "encoder.precision=fp32"), 15)


def test_heads_of_bge_m3_are_named_as_not_compared(tmp_path: Path) -> None:
    options = (f"model.name={save_m3(tmp_path / 'made')}", "output.vectors=dense,sparse,multi_vector")
    dense, *others = compare(config(tmp_path, *options, "encoder.precision=fp32"), 15).split("; ")
    assert "dense vectors to sentence-transformers over 15 texts: 1.000000" in dense
    assert others == [
        "sparse vectors are not compared: only FlagEmbedding reads sparse_linear.pt",
        "multi-vector vectors are not compared: only FlagEmbedding reads colbert_linear.pt",
    ]


def test_without_sentence_transformers_it_is_said_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kosbert_ray.planning.compare.find_spec", lambda _: None)
    with pytest.raises(UsageError, match="pip install sentence-transformers"):
        compare(config(tmp_path), 5)


def test_the_command_shows_it_as_a_check(cli, told, tmp_path: Path) -> None:
    config(tmp_path)
    options = ("--model", TINY, "--set", "ray.address=127.0.0.1:9")
    done = cli("doctor", tmp_path / "in.jsonl", *options, "--compare", "5", code=1)  # there is no Ray
    assert "ok   compare   least cosine of dense vectors to sentence-transformers over 5 texts: " in done.stdout
    assert "--compare: -1 is no number of texts" in told("doctor", "bundled:everyday", *options, "--compare", "-1", code=2)
