"""Reports of sparse and token vectors show what is in the output."""

from __future__ import annotations

import base64
import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import Run
from kind_outputs import embed
from multi_vector_models import DIMENSION
from sparse_models import save_autoencoder
from transformers import AutoTokenizer

from kosbert_ray import Output
from kosbert_ray.outputs.report.kinds.base import Column
from kosbert_ray.outputs.report.kinds.multi_vector import TokenFigures, TokenMeans
from kosbert_ray.outputs.report.words import KOREAN, Words
from kosbert_ray.outputs.sample import sample_kinds
from kosbert_ray.shards.formats.multi_vector import MultiVectorFormat
from kosbert_ray.units import data_size
from kosbert_ray.vectors.token_vectors import TokenVectors


class Page:
    """The report of an output, with its sections and the summary."""

    def __init__(self, cli: Run, output: Output, target: Path, *arguments: str) -> None:
        cli("report", output.storage.root, "-o", target, *arguments)
        self.html = target.read_text("utf-8")
        body = self.html[self.html.index("<body>") :]
        self.warnings = [html.unescape(one) for one in re.findall('<p class="bad">(.*?)</p>', body)]
        self.sections = {html.unescape(one.partition("</h2>")[0]): one for one in body.split("<section><h2>")[1:]}
        self.ids = re.findall(r'<div id="([^"]+)"', body)

    def about(self, heading: str) -> str:
        return html.unescape(re.findall('<p class="faint">(.*?)</p>', self.sections[heading])[0])

    def table(self, heading: str) -> list[list[str]]:
        rows = re.findall("<tr>(.*?)</tr>", self.sections[heading], re.S)
        return [[html.unescape(cell) for cell in re.findall("<t[hd][^>]*>(.*?)</t[hd]>", row, re.S)] for row in rows]

    @property
    def summary(self) -> dict[str, str]:
        return dict(self.table(next(iter(self.sections))))

    def figure(self, name: str) -> list[dict[str, Any]]:
        """The traces of a figure, as plotly gets them."""
        start = re.search(f'Plotly.newPlot\\(\\s*"{name}",\\s*', self.html)
        assert start is not None
        return json.JSONDecoder().raw_decode(self.html[start.end() :])[0]


def matrix_of(output: Output, dimension: int) -> np.ndarray:
    rows = output.to_arrow(["sparse"])["sparse"].to_pylist()
    matrix = np.zeros((len(rows), dimension))
    for row, one in enumerate(rows):
        matrix[row, one["indices"]] = one["values"]
    return matrix


def bytes_a_row(output: Output, column: str) -> float:
    total = 0
    for shard in output.shards():
        metadata = pq.read_metadata(Path(output.storage.root) / shard)
        for group in range(metadata.num_row_groups):
            chunks = [metadata.row_group(group).column(number) for number in range(metadata.num_columns)]
            total += sum(one.total_compressed_size for one in chunks if one.path_in_schema.startswith(f"{column}."))
    return total / output.totals.rows


def random_cosine(directions: np.ndarray) -> float:
    """The mean cosine of all pairs of different rows."""
    n = len(directions)
    return float((np.square(directions.sum(0)).sum() - np.square(directions).sum()) / (n * (n - 1)))


def nearest(directions: np.ndarray, texts: list[str]) -> tuple[float, set[str]]:
    cosines = directions @ directions.T - 3 * np.eye(len(directions))
    first, second = np.unravel_index(cosines.argmax(), cosines.shape)
    return float(cosines.max()), {texts[first], texts[second]}


def values(stored: Any) -> list[float]:
    """The numbers of an array in a figure, which plotly writes as base64 where there are many."""
    if isinstance(stored, list):
        return stored
    return np.frombuffer(base64.b64decode(stored["bdata"]), stored["dtype"]).tolist()


def number(text: str, pattern: str) -> float:
    found = re.search(pattern.replace("#", r"(-?[\d,]+(?:\.\d+)?)"), text)
    assert found is not None, (pattern, text)
    return float(found[1].replace(",", ""))


def test_a_report_of_sparse_vectors(sparse: Output, splade: Path, cli: Run, tmp_path: Path) -> None:
    page = Page(cli, sparse, tmp_path / "r.html")
    tokenizer = AutoTokenizer.from_pretrained(splade)
    matrix = matrix_of(sparse, sparse.record.fingerprint["sparse_dimension"])
    counts, summary = (matrix > 0).sum(1), page.summary
    assert number(summary["Values per row"], "median #") == round(np.median(counts))
    assert number(summary["Values per row"], "percentile #") == round(np.quantile(counts, 0.95))
    assert number(summary["Values per row"], "# of 520 sampled vectors empty") == 0
    used = int((matrix > 0).any(0).sum())
    assert summary["Dimensions"] == f"{used:,} of {matrix.shape[1]:,} used in the sampled rows"
    directions = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    assert number(summary["Anisotropy"], "^#, the mean") == pytest.approx(random_cosine(directions), abs=0.005)
    assert summary["Size on disk"] == f"{data_size(round(bytes_a_row(sparse, 'sparse')))} a row"
    heaviest = np.argsort(-matrix.sum(0), kind="stable")[:20]
    assert page.table("Heaviest dimensions") == [
        ["token", "share of the rows", "mean value above 0"],
        *(
            [token, f"{(column > 0).mean():.1%}", f"{column[column > 0].mean():.3f}"]
            for token, column in zip(tokenizer.convert_ids_to_tokens(heaviest), matrix.T[heaviest], strict=True)
        ),
    ]
    (bars,) = page.figure("values-per-row")
    assert sum(values(bars["y"])) == 520
    cosine, pair = nearest(directions, sparse.to_arrow(["text"])["text"].to_pylist())
    best = page.table("Nearest pairs")[1]
    assert (float(best[0]), {*best[1:]}) == (pytest.approx(cosine, abs=0.001), pair)
    assert "Cosines are those of the sparse vectors." in page.about("Nearest pairs")
    assert "truncated SVD" in page.about("Map")
    assert page.warnings == []


def test_a_report_of_token_vectors(tokens: Output, cli: Run, tmp_path: Path) -> None:
    page = Page(cli, tokens, tmp_path / "r.html")
    rows = [np.array(row, np.float32) for row in tokens.to_arrow(["multi_vector"])["multi_vector"].to_pylist()]
    counts, summary = [len(row) for row in rows], page.summary
    assert number(summary["Vectors per row"], "median #") == round(np.median(counts))
    assert number(summary["Vectors per row"], "percentile #") == round(np.quantile(counts, 0.95))
    assert number(summary["Vectors per row"], "each of # numbers") == DIMENSION
    means = np.array([(row / np.linalg.norm(row, axis=1, keepdims=True)).mean(0) for row in rows])
    directions = means / np.linalg.norm(means, axis=1, keepdims=True)
    assert number(summary["Anisotropy"], "^#, the mean") == pytest.approx(random_cosine(directions), abs=0.01)
    assert summary["Size on disk"] == f"{data_size(round(bytes_a_row(tokens, 'multi_vector')))} a row"
    (bars,) = page.figure("vectors-per-row")
    assert sum(values(bars["y"])) == 520
    cosine, pair = nearest(directions, tokens.to_arrow(["text"])["text"].to_pylist())
    best = page.table("Nearest pairs")[1]
    assert (float(best[0]), {*best[1:]}) == (pytest.approx(cosine, abs=0.001), pair)
    assert "mean token vectors, not MaxSim" in page.about("Nearest pairs")
    assert "the mean of its token vectors" in page.about("Map")


def test_a_report_of_three_kinds_names_them(three: Output, cli: Run, tmp_path: Path) -> None:
    page = Page(cli, three, tmp_path / "r.html")
    alone = Page(cli, embed(tmp_path / "dense", three.job.model.name), tmp_path / "dense.html")
    for name in ("Anisotropy", "Dimensions"):
        assert page.summary[f"{name} (dense vectors)"] == alone.summary[name]
    for name in ("Map", "Spread", "Similarity", "Nearest pairs", "Most isolated rows"):
        assert page.about(f"{name} (dense vectors)") == alone.about(name)
    assert page.table("Nearest pairs (dense vectors)") == alone.table("Nearest pairs")
    matrix = matrix_of(three, three.record.fingerprint["sparse_dimension"])
    found = page.summary["Values per row (sparse vectors)"]
    assert number(found, "median #") == round(np.median((matrix > 0).sum(1)))
    counts = [len(row) for row in three.to_arrow(["multi_vector"])["multi_vector"].to_pylist()]
    assert number(page.summary["Vectors per row (token vectors)"], "median #") == round(np.median(counts))
    assert {"Similarity (sparse vectors)", "Similarity (token vectors)", "Heaviest dimensions (sparse vectors)"} <= {
        *page.sections
    }
    assert len({*page.ids}) == len(page.ids) > 8
    assert not any("vectors" in name for name in alone.sections)


def test_dimensions_of_an_autoencoder_are_numbered(cli: Run, tmp_path: Path) -> None:
    output = embed(tmp_path / "out", save_autoencoder(tmp_path, "bert"), output={"vectors": ["sparse"]})
    page = Page(cli, output, tmp_path / "r.html")
    heading, *rows = page.table("Heaviest dimensions")
    matrix = matrix_of(output, output.record.fingerprint["sparse_dimension"])
    assert heading[0] == "dimension"
    assert [int(row[0]) for row in rows] == np.argsort(-matrix.sum(0), kind="stable")[:20].tolist()


def test_empty_sparse_vectors_are_a_warning(sparse: Output, splade: Path, cli: Run, tmp_path: Path) -> None:
    largest = matrix_of(sparse, sparse.record.fingerprint["sparse_dimension"]).max(1)
    threshold = float(np.quantile(largest, 0.1))
    output = embed(tmp_path / "out", splade, output={"sparse_threshold": threshold})
    empty = sum(not row["indices"] for row in output.to_arrow(["sparse"])["sparse"].to_pylist())
    assert 10 < empty < 100
    page = Page(cli, output, tmp_path / "r.html")
    assert len(page.warnings) == 1
    assert page.warnings[0].startswith(f"Empty sparse vectors: {empty} of 520 sampled rows.")
    assert f"{empty} of 520 sampled vectors empty" in page.summary["Values per row"]
    sizes = {row[0]: int(row[1]) for row in page.table("Clusters")[1:]}
    assert sizes["others"] == empty and sum(sizes.values()) == 520
    rows = output.to_arrow(["text", "sparse"]).to_pylist()
    without = {row["text"] for row in rows if not row["sparse"]["indices"]}
    for heading in ("Nearest pairs", "Most isolated rows"):
        assert not without & {text for row in page.table(heading)[1:] for text in row[1:]}, "there is nothing to compare"
    every = embed(tmp_path / "none", splade, output={"sparse_threshold": 1e6})
    page = Page(cli, every, tmp_path / "r.html")
    assert page.warnings[0].startswith("Empty sparse vectors: 520 of 520 sampled rows.")
    assert not {"Values per row", "Similarity", "Heaviest dimensions", "Nearest pairs"} & {*page.sections}
    assert np.isfinite(values(page.figure("map")[0]["x"])).all()


def test_rows_without_token_vectors_are_a_warning() -> None:
    vectors = TokenVectors.of_lengths(np.array([[3, 0], [0, 2], [5, 0]], np.float16), np.array([2, 0, 1]))
    kept = TokenMeans.of(vectors).joined([TokenMeans.of(TokenVectors.empty(2, 1))])
    assert kept.means.tolist() == [[0.5, 0.5], [0, 0], [1, 0], [0, 0]]
    found = TokenFigures.of(kept, Column(MultiVectorFormat(2), lambda: 10.0, None))
    (warning,) = found.warnings(Words("en"))
    assert warning.startswith("Rows without token vectors: 2 of 4 sampled.")
    assert found.cosines == pytest.approx(np.sqrt(0.5))


def test_a_sample_of_several_kinds_has_the_same_rows(both: Output) -> None:
    lengths: list[int] = []

    def keep(vectors: TokenVectors) -> TokenVectors:
        lengths.append(len(vectors))
        return vectors

    found = sample_kinds(both, 60, 1, ["id"], None, {"dense": lambda vectors: vectors, "multi_vector": keep})
    assert sum(lengths) == 60 and len(lengths) >= len(both.shards()) > 1  # reduced shard by shard
    table = both.to_arrow()
    place = {id: row for row, id in enumerate(table["id"].to_pylist())}
    rows = [place[id] for id in found["dense"].table["id"].to_pylist()]
    assert np.allclose(found["dense"].vectors, np.array(table["embedding"].take(rows).to_pylist(), np.float32))
    for tokens, right in zip(
        found["multi_vector"].vectors.to_list(), table["multi_vector"].take(rows).to_pylist(), strict=True
    ):
        assert np.array_equal(tokens, np.array(right, tokens.dtype))


KEPT = {"MaxSim", "SVD", "SNE", "truncated", "output", "sparse", "threshold"}  # these stay as they are in Korean


SAID = ("Values per row", "Vectors per row", "Dimensions", "Anisotropy", "Size on disk")


@pytest.mark.parametrize("name", ["three", "sparse", "tokens", "empty"])
def test_a_korean_report_of_all_kinds_is_korean(
    name: str, splade: Path, cli: Run, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    limits = {"sparse_threshold": 1e6}
    output = embed(tmp_path / "out", splade, output=limits) if name == "empty" else request.getfixturevalue(name)
    english = Page(cli, output, tmp_path / "en.html")
    korean = Page(cli, output, tmp_path / "ko.html", "--lang", "ko")
    said = Words("ko")
    for one, other in zip(english.sections, korean.sections, strict=True):
        name, _, kind = one.partition(" (")
        assert other == said.heading(name, kind.removesuffix(")") or None)
    lines = [*korean.sections, *korean.warnings, *korean.summary]
    lines += [korean.about(name) for name, section in korean.sections.items() if 'class="faint"' in section]
    lines += [cell for name in [*korean.sections][1:] for row in korean.table(name)[:1] for cell in row]
    of_vectors = {KOREAN[name] for name in SAID}
    lines += [value for name, value in korean.summary.items() if name.partition("(")[0] in of_vectors]
    lines += json.loads("[" + ",".join(re.findall(r'"title":\{"text":("[^"]*")', korean.html)) + "]")
    for line in lines:
        left = {*re.findall("[A-Za-z]{3,}", line)} - KEPT
        assert not left - {"kosbert", "mini"}, line
    assert len(lines) > 30
