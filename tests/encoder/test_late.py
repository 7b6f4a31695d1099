"""``long_text=late``: chunks are pooled from the token vectors of a longer text."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch
from conftest import TINY, everyday
from models import save_model
from sentence_transformers import SentenceTransformer

from kosbert_ray import Output, embed
from kosbert_ray.encoder import Encoder
from kosbert_ray.encoder.engines.base import Computed
from kosbert_ray.encoder.late import windows
from kosbert_ray.encoder.long_text import LongText, Sequences
from kosbert_ray.encoder.options import EncoderOptions
from kosbert_ray.encoder.packing import Batch
from kosbert_ray.encoder.tokenizer import Tokenizer
from kosbert_ray.model.options import SpecOptions
from kosbert_ray.model.spec import read_spec
from kosbert_ray.vectors.kinds import Kind

WINDOW, SIZE, OVERLAP = 128, 40, 8
PROMPT = "문서: "
FP32 = {"precision": "fp32", "device": "cpu"}


def texts() -> list[str]:
    """Texts of a chunk, of several in one window, of several windows, and without spaces."""
    chosen = random.Random(1)
    spaced = [" ".join(chosen.sample(everyday(), count)) for count in (1, 60, 8, 2, 30)]
    return [*spaced, spaced[-1].replace(" ", "")]


def cut(tokenizer: Tokenizer, of: list[str], policy: str = "late", size: int = SIZE, overlap: int = OVERLAP) -> Sequences:
    return LongText(policy, size, overlap, "words", True)(tokenizer, pa.array(of, pa.large_string()))


def vectors_of(encoder: Encoder, found: Sequences) -> np.ndarray:
    encoded = encoder.encode_tokens(found.tokens)
    assert not encoded.failed
    return encoded.vectors


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


@torch.inference_mode()
def reference(folder: Path, text: str, chunks: list[tuple[int, int]], prompt: str, include_prompt: bool) -> np.ndarray:
    """The vectors of a text's chunks by transformers' tokenizer and model, one window after another."""
    model = SentenceTransformer(str(folder), device="cpu").float().eval()
    tokenizer, transformer, pooled = model.tokenizer, model[0].auto_model, []
    skip = 0 if include_prompt else len(tokenizer(prompt)["input_ids"]) - 1
    at = 0
    while at < len(chunks):
        stop = at + 1
        while stop < len(chunks):
            if len(tokenizer(prompt + text[chunks[at][0] : chunks[stop][1]])["input_ids"]) > WINDOW:
                break
            stop += 1
        first = chunks[at][0]
        encoded = tokenizer(prompt + text[first : chunks[stop - 1][1]], return_offsets_mapping=True, return_tensors="pt")
        hidden = transformer(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]).last_hidden_state[0]
        offsets = (encoded["offset_mapping"][0] - len(prompt)).tolist()
        for number in range(at, stop):
            start, end = (place - first for place in chunks[number])
            own = [index for index, (begin, last) in enumerate(offsets) if max(begin, start) < min(last, end)]
            begin = skip if number == at else own[0]
            last = len(hidden) if number == stop - 1 else own[-1] + 1
            pooled.append(hidden[begin:last].mean(0))
        at = stop
    features = {"sentence_embedding": torch.stack(pooled)}
    for module in list(model)[2:]:
        features = module(features)
    return features["sentence_embedding"].numpy()


@pytest.mark.parametrize(
    ("kind", "prompt", "include_prompt"), [("bert", "", True), ("bert", PROMPT, False), ("modernbert", PROMPT, True)]
)
def test_chunks_are_pooled_from_the_token_vectors_of_their_window(
    kind: str, prompt: str, include_prompt: bool, tmp_path: Path
) -> None:
    folder = save_model(kind, everyday(), tmp_path, length=WINDOW, dense=32, normalize=True, include_prompt=include_prompt)
    encoder = Encoder.load(str(folder), EncoderOptions(engine="torch", **FP32), SpecOptions(prompt=prompt or None))
    assert encoder.attention == "packed"
    of = texts()
    found, alone = (cut(encoder.tokenizer, of, policy) for policy in ("late", "chunk"))
    vectors, chunks = vectors_of(encoder, found), found.chunks
    expected = []
    for number, text in enumerate(of):
        mine = chunks.source == number
        places = list(zip(chunks.start[mine].tolist(), chunks.end[mine].tolist(), strict=True))
        expected.append(reference(folder, text, places, prompt, include_prompt))
    assert [number for number, item in enumerate(expected) if len(item) == 1] == [0, 3]
    assert cosines(vectors, np.concatenate(expected)).min() >= 0.999999
    assert cosines(vectors, vectors_of(encoder, alone)).min() < 0.999
    assert found.tokens.lengths.max() <= WINDOW < np.bincount(chunks.source, found.tokens.row_lengths()).max()


def test_a_text_of_one_chunk_has_the_vector_of_the_text_alone(tiny_model: Path) -> None:
    encoder = Encoder.load(TINY, EncoderOptions(engine="torch", **FP32))
    short = everyday()[:50]
    found = cut(encoder.tokenizer, short)
    assert found.split == 0
    expected = vectors_of(encoder, cut(encoder.tokenizer, short, "chunk"))
    assert np.array_equal(vectors_of(encoder, found), expected)
    # In the company of long texts, and a window of one chunk.
    of = [*texts(), *short]
    vectors, found = vectors_of(encoder, cut(encoder.tokenizer, of)), cut(encoder.tokenizer, of)
    assert np.abs(vectors[-50:] - expected).max() < 1e-6
    alone = cut(encoder.tokenizer, of, "chunk", size=WINDOW, overlap=0)
    as_large = cut(encoder.tokenizer, of, size=WINDOW, overlap=0)
    assert len(as_large.tokens.span_of) == 11
    assert np.abs(vectors_of(encoder, as_large) - vectors_of(encoder, alone)).max() < 1e-6


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta"])
def test_any_text_is_cut_as_by_chunk_into_windows_that_the_model_takes(kind: str, tmp_path: Path) -> None:
    encoder = Encoder.load(str(save_model(kind, everyday(), tmp_path, length=48)), EncoderOptions(engine="torch", **FP32))
    tokenizer, chosen = encoder.tokenizer, random.Random(3)
    alphabet = ["가", "나다 ", " ", "\n\n", "a", "b ", "\u200b", "\x00", "🙂", "\u1100\u1161", "x" * 30, everyday()[0]]
    of = ["".join(chosen.choices(alphabet, k=chosen.randrange(5, 80))).strip() or "가" for _ in range(150)]
    found, alone = (cut(tokenizer, of, policy, 16, 3) for policy in ("late", "chunk"))
    for name in ("source", "number", "start", "end"):
        assert np.array_equal(getattr(found.chunks, name), getattr(alone.chunks, name))
    tokens = found.tokens
    assert tokens.lengths.max() <= 48
    assert (tokens.span_start < tokens.span_end).all()
    assert (tokens.span_end <= tokens.lengths[tokens.span_of]).all()
    assert found.split > 100
    several = np.bincount(tokens.span_of, minlength=len(tokens.lengths)) > 1
    assert not tokens.dropped[several].any()
    assert found.distinct == len(tokens.lengths) + len(tokens.span_of) - len(np.unique(tokens.span_of))
    assert len(vectors_of(encoder, found)) == len(found.chunks.source)


def test_windows_are_as_full_as_whole_chunks_make_them(tiny_model: Path) -> None:
    tokenizer = Tokenizer.load(read_spec(tiny_model))
    words = " ".join(["비"] * 400)
    chunks = [(place, min(place + 59, len(words))) for place in range(0, len(words), 60)]  # of 30 tokens
    assert len(tokenizer.places([words])[0]) == 400
    found = windows(tokenizer, [words], [chunks])
    assert found.lengths.tolist() == [122, 122, 122, 42]
    assert found.span_of.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3]
    spans = list(zip(found.span_start.tolist(), found.span_end.tolist(), strict=True))
    assert spans[:4] == [(0, 31), (31, 61), (61, 91), (91, 122)]
    assert found.rows.tolist() == list(range(4, 18))


def test_a_chunk_without_tokens_takes_the_one_before_it(tiny_model: Path) -> None:
    tokenizer = Tokenizer.load(read_spec(tiny_model))
    bare = replace(tokenizer, state=json.dumps(json.loads(tokenizer.state) | {"post_processor": None}), special_tokens=0)
    cases = [
        (tokenizer, "비 \x01 비", [(0, 2), (1, 2), (2, 4)]),
        (tokenizer, "\x01 비 비", [(0, 1), (1, 2), (2, 4)]),
        (bare, "\x01 비 비", [(0, 1), (0, 1), (1, 2)]),
    ]
    for cutting, text, expected in cases:
        found = windows(cutting, [text], [[(0, 1), (2, 3), (4, 5)]])
        assert list(zip(found.span_start.tolist(), found.span_end.tolist(), strict=True)) == expected


@pytest.mark.parametrize("include_prompt", [True, False])
def test_openvino_gives_the_vectors_of_pytorch(
    include_prompt: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = save_model("bert", everyday(), tmp_path / "m", length=WINDOW, dense=32, include_prompt=include_prompt)
    found = []
    for engine in ("torch", "openvino"):
        encoder = Encoder.load(str(folder), EncoderOptions(engine=engine, **FP32), SpecOptions(prompt=PROMPT))
        assert encoder.engine == engine
        found.append(vectors_of(encoder, cut(encoder.tokenizer, texts())))
    np.testing.assert_allclose(found[1], found[0], atol=1e-4)


def test_windows_are_computed_in_smaller_batches_when_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder.load(TINY, EncoderOptions(engine="torch", **FP32))
    found = cut(encoder.tokenizer, texts())
    expected = vectors_of(encoder, found)
    compute = encoder._engine.vectors

    def small(batch: Batch, kinds: Sequence[Kind]) -> Computed:
        if len(batch.ids) > 3 * WINDOW:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return compute(batch, kinds)

    monkeypatch.setattr(encoder._engine, "vectors", small)
    assert np.abs(vectors_of(encoder, found) - expected).max() < 1e-5
    assert encoder.token_budget <= 3 * WINDOW


# -- jobs ---------------------------------------------------------------------------------------------------------------


SETTINGS = {"encoder.precision": "fp32", "encoder.engine": "torch", "executor": "local", "max_rejected": 1}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Long and short texts, one of them twice, one empty."""
    folder = tmp_path_factory.mktemp("corpus")
    of = texts()
    rows = [{"id": index, "text": text} for index, text in enumerate([*of, of[1], " "])]
    (folder / "a.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    return folder


def read(out: Path) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(path) for path in sorted(out.glob("*.parquet"))])


def test_a_job_writes_the_rows_of_chunk_with_other_vectors(cli, corpus: Path, tmp_path: Path) -> None:
    encoder = {"precision": "fp32", "engine": "torch"}
    options = {
        "model": TINY,
        "keep": "id",
        "encoder": encoder,
        "executor": "local",
        "max_rejected": 1,
        "chunk": {"size": 32},
    }
    for policy in ("late", "chunk"):
        embed(corpus, tmp_path / policy, long_text=policy, **options)
    late, chunk = (read(tmp_path / policy) for policy in ("late", "chunk"))
    assert late.columns == ["id", "chunk", "chunk_start", "chunk_end", "text", "embedding"]
    assert late.drop("embedding").equals(chunk.drop("embedding"))
    vectors, alone = (np.array(frame["embedding"].to_list(), np.float32) for frame in (late, chunk))
    assert cosines(vectors, alone).min() < 0.999
    for number in (0, 3):  # texts of one chunk
        mine = (late["id"] == number).to_numpy()
        assert mine.sum() == 1 and np.abs(vectors[mine] - alone[mine]).max() < 1e-6
    twice = [vectors[(late["id"] == number).to_numpy()] for number in (1, 6)]
    assert len(twice[0]) > 10 and np.array_equal(*twice)

    output = Output.open(tmp_path / "late")
    assert output.totals.distinct == len(late) - len(twice[0])
    assert output.record.fingerprint["long_text"] == "late size=32 overlap=4 words"
    again = cli("embed", corpus, tmp_path / "late", "--set", "max_rejected=1")
    assert f"done: {len(late)} rows (7 texts) in 1 shard" in again.stdout
    assert "5 long texts split into chunks" in cli("status", tmp_path / "late").stdout
    cli("report", tmp_path / "late", "-o", tmp_path / "report.html")
    assert "5 long texts split into chunks" in (tmp_path / "report.html").read_text("utf-8")
    assert f"of {len(late)} rows in common" in cli("diff", tmp_path / "late", tmp_path / "chunk").stdout


def test_verify_embeds_whole_texts_again(cli, told, corpus: Path, tmp_path: Path) -> None:
    given = [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")]
    given += ["--model", TINY, "--set", "long_text=late"]
    cli("embed", corpus, tmp_path / "out", "--keep", "id", *given)
    checked = cli("verify", tmp_path / "out", "--input", corpus, "--sample", "50").stdout
    assert "1 rejected" in checked and "50 rows embedded again, cosine at least 1.0000" in checked
    message = told("verify", tmp_path / "out", "--sample", "50", code=1)
    assert "the whole texts are not among its columns; give the input with --input" in message
    cli("embed", corpus, tmp_path / "kept", "--keep", "text", *given)
    assert "cosine at least 1.0000" in cli("verify", tmp_path / "kept", "--sample", "50").stdout


def test_plan_counts_what_a_run_does(cli, corpus: Path, tmp_path: Path) -> None:
    given = [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")]
    given += ["--model", TINY, "--set", "long_text=late"]
    planned = json.loads(cli("plan", corpus, "--json", *given).stdout)
    cli("embed", corpus, tmp_path / "out", *given)
    totals = json.loads(cli("status", tmp_path / "out", "--json").stdout)["totals"]
    assert planned["output_rows"] == totals["rows"] > planned["rows"] == 7
    assert planned["tokens"] == totals["tokens"]
    assert planned["encoded_tokens"] == totals["encoded_tokens"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["chunk.size=1000"], "chunk.size: 1000 is more than the 128 tokens that the model takes"),
        (["chunk.size=10", "chunk.overlap=8"], "chunk.size: 2 of 10 tokens are special tokens"),
        (["input.keep=[chunk]"], "long_text: late writes a column 'chunk'"),
        (["reuse=old"], "reuse: with long_text=late the vector of a chunk depends on the text around it"),
    ],
)
def test_impossible_options_are_refused(told, corpus: Path, settings: list[str], message: str) -> None:
    given = [part for setting in ("long_text=late", *settings) for part in ("--set", setting)]
    assert message in told("plan", corpus, "--model", TINY, *given, code=2)


@pytest.mark.parametrize("pooling", ["cls", "lasttoken", "max"])
def test_a_model_without_mean_pooling_is_refused(told, corpus: Path, tmp_path: Path, pooling: str) -> None:
    model = save_model("bert", everyday(), tmp_path, pooling=pooling)
    message = told("embed", corpus, tmp_path / "out", "--model", model, "--set", "long_text=late", code=2)
    assert f"late needs a model with mean pooling, and {model} has {pooling} pooling; use long_text=chunk" in message
    assert not (tmp_path / "out").exists()
