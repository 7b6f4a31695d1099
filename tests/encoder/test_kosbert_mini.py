"""The bundled model: small, readable by other libraries, and as good as its card reports."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import everyday
from sentence_transformers import SentenceTransformer

from kosbert_ray.encoder import Encoder
from kosbert_ray.encoder.options import EncoderOptions
from kosbert_ray.model.source import bundled_path

MINI = "bundled:kosbert-mini"
FOLDER = bundled_path(MINI)


def test_it_has_at_most_16_mb_and_vectors_that_sentence_transformers_gives_too() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*.safetensors")) <= 16e6
    sentences = everyday()[:40]
    theirs = SentenceTransformer(str(FOLDER), device="cpu").float().encode(sentences)
    ours = Encoder.load(MINI, EncoderOptions(precision="fp32", device="cpu")).encode(sentences)
    assert ours.shape == (40, 256)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.slow
def test_its_card_says_what_is_measured(cli, data: Path) -> None:
    front = yaml.safe_load((FOLDER / "README.md").read_text("utf-8").split("---")[1])
    said = {
        (result["dataset"]["name"], metric["type"]): metric["value"]
        for result in front["model-index"][0]["results"]
        for metric in result["metrics"]
    }
    sets = [data / "korsts" / "sts-test.tsv", data / "klue_sts" / "klue-sts-dev.json"]
    out = cli("evaluate", MINI, *sets, "--types", "float32", "--json", "--set", "encoder.precision=fp32").stdout
    for row in map(json.loads, out.splitlines()):
        for measure, (pearson, spearman) in row["figures"].items():
            assert said[row["data"], f"pearson_{measure}"] == pytest.approx(pearson, abs=0.05)
            assert said[row["data"], f"spearman_{measure}"] == pytest.approx(spearman, abs=0.05)
        if row["data"] == "sts-test":
            assert row["figures"]["cosine"][1] >= 77


@pytest.mark.slow
def test_clusters_are_the_question_groups_of_parakqc_more_than_word_counts_know(cli, data: Path, tmp_path: Path) -> None:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.metrics import adjusted_rand_score, v_measure_score

    from kosbert_ray.analysis.kmeans import assign, fit

    lines = (data / "paraphrase" / "paraKQC_groups.tsv").read_text("utf-8").splitlines()[1:]
    groups, texts = zip(*((line.split("\t")[0], line.split("\t")[3]) for line in lines), strict=True)
    pq.write_table(pa.table({"group": groups, "text": texts}), tmp_path / "in.parquet")
    cli("embed", tmp_path / "in.parquet", tmp_path / "out", "--model", MINI, "--keep", "group,text")
    number = len({*groups})
    cli("cluster", tmp_path / "out", "--clusters", number)
    labels = pq.read_table(tmp_path / "out" / "_clusters", schema=None).to_pydict()
    weights = TfidfVectorizer(analyzer="char", ngram_range=(1, 2), sublinear_tf=True).fit_transform(texts)
    lexical = TruncatedSVD(256, random_state=0).fit_transform(weights).astype(np.float32)
    by_words, _ = assign(lexical, fit(lambda _: [lexical], number, 3, 0))
    ours = v_measure_score(labels["group"], labels["cluster"]), adjusted_rand_score(labels["group"], labels["cluster"])
    theirs = v_measure_score(groups, by_words), adjusted_rand_score(groups, by_words)
    print(f"ParaKQC: V-measure {ours[0]:.3f} and ARI {ours[1]:.3f}; by words {theirs[0]:.3f} and {theirs[1]:.3f}")
    assert ours[0] > theirs[0]
    assert ours[1] > theirs[1]
