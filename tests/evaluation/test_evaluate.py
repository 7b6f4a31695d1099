"""``kosbert-ray evaluate``: scores equal sentence-transformers', each output type has its row, and the limits fail."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import everyday
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

from kosbert_ray.evaluation.evaluate import published, table
from kosbert_ray.evaluation.sts import MEASURES, read_sts

FP32 = ["--set", "encoder.precision=fp32"]


@pytest.fixture(scope="module")
def sts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Creates pairs of bundled sentences, scored by the characters that they share."""
    path = tmp_path_factory.mktemp("sts") / "pairs.tsv"
    sentences = everyday()
    lines = ["sentence1\tsentence2\tscore"]
    for index in range(200):
        first, second = sentences[index], sentences[(index * 7 + 3) % 520] if index % 3 else sentences[index][3:]
        shared = len({*first} & {*second}) / len({*first} | {*second})
        lines.append(f"{first}\t{second}\t{5 * shared:.3f}")
    path.write_text("\n".join(lines), "utf-8")
    return path


@pytest.fixture(scope="module")
def rows(cli, sts: Path, tiny_model: Path) -> list[dict]:
    out = cli("evaluate", tiny_model, sts, "--json", "--dimension", "64", *FP32).stdout
    return [json.loads(line) for line in out.splitlines()]


def test_scores_equal_those_of_sentence_transformers(rows: list[dict], sts: Path, tiny_model: Path) -> None:
    pairs = read_sts(sts)
    names = list(MEASURES)
    model = SentenceTransformer(str(tiny_model), device="cpu").float()
    evaluator = EmbeddingSimilarityEvaluator(
        pairs.first, pairs.second, pairs.scores.tolist(), similarity_fn_names=names, write_csv=False
    )
    theirs = evaluator(model)
    for name in names:
        pearson, spearman = rows[0]["figures"][name]
        assert pearson / 100 == pytest.approx(theirs[f"pearson_{name}"], abs=1e-4)
        assert spearman / 100 == pytest.approx(theirs[f"spearman_{name}"], abs=1e-4)


def test_each_type_and_dimension_has_a_row_with_its_size(rows: list[dict]) -> None:
    assert [(row["dtype"], row["dimension"], row["bytes"]) for row in rows] == [
        ("float32", 128, 512),
        ("float16", 128, 256),
        ("int8", 128, 128),
        ("ubinary", 128, 16),
        ("float32", 64, 256),
        ("float16", 64, 128),
        ("int8", 64, 64),
        ("ubinary", 64, 8),
    ]
    by_type = {row["dtype"]: row["figures"]["cosine"][1] for row in reversed(rows)}
    assert by_type["float16"] == pytest.approx(by_type["float32"], abs=0.1)
    assert by_type["ubinary"] != by_type["float32"]


def test_ubinary_is_compared_bit_by_bit(rows: list[dict], sts: Path, tiny_model: Path) -> None:
    pairs = read_sts(sts)
    model = SentenceTransformer(str(tiny_model), device="cpu").float()
    first, second = (model.encode(texts) > 0 for texts in (pairs.first, pairs.second))
    differing = (first != second).sum(1)
    from scipy.stats import spearmanr

    expected = 100 * spearmanr(-differing, pairs.scores)[0]
    row = next(row for row in rows if row["dtype"] == "ubinary" and row["dimension"] == 128)
    assert row["figures"]["manhattan"][1] == pytest.approx(expected, abs=0.3)


def test_max_drop_fails_the_command_and_names_the_row(cli, sts: Path, tiny_model: Path) -> None:
    done = cli("evaluate", tiny_model, sts, "--types", "ubinary", "--dimension", "8", "--max-drop", "0.5", *FP32, code=1)
    assert "error: pairs: ubinary with 8 dimensions loses" in done.stderr
    header, whole, bits, few = done.stdout.splitlines()
    assert header.split()[:4] == ["data", "type", "dim", "bytes"]
    assert whole.split()[:4] == ["pairs", "float32", "128", "512"]
    assert bits.split()[:4] == ["pairs", "ubinary", "128", "16"]
    assert few.split()[:4] == ["pairs", "ubinary", "8", "1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--types", "int4"], "--types: int4 is not one of float32, float16, int8, ubinary"),
        (["--dimension", "129"], "--dimension 129: must be between 1 and the model's 128"),
    ],
)
def test_wrong_options_are_refused(told, sts: Path, tiny_model: Path, options: list[str], message: str) -> None:
    assert told("evaluate", tiny_model, sts, *options, code=2) == message


def test_published_scores_follow_the_rows_of_a_known_model() -> None:
    from kosbert_ray.evaluation.evaluate import Row

    figures = dict.fromkeys(MEASURES, (80.0, 79.0))
    cells = table([Row("sts-test", "float32", 768, 3072, figures)], "jhgan/ko-sbert-sts")
    assert cells[2][:2] == ["sts-test", "(the model card)"]
    assert cells[2][4:] == ["80.79", "79.01", "78.03", "77.31", "78.08", "77.35", "75.96", "75.20"]
    assert cells[3][4:] == ["81.55", "81.23", *[""] * 6]
    assert not published("jhgan/ko-sbert-sts", "klue-sts-dev")
    assert np.shape(cells) == (4, 12)
