"""STS data: file formats, error messages, and the sign and scale of the correlations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kosbert_ray.errors import InputError
from kosbert_ray.evaluation.sts import correlations, read_sts

HEADER = "sentence1\tsentence2\tscore\n"


def test_quotes_and_line_separators_are_ordinary_characters(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(f'{HEADER}"가\t나"\t2.5\r\n다\u2028라\t마\t5\n\n'.encode())
    pairs = read_sts(path)
    assert pairs.first == ['"가', "다\u2028라"]
    assert pairs.second == ['나"', "마"]
    assert pairs.scores.tolist() == [2.5, 5]
    assert pairs.name == "a"


def test_klue_scores_are_read_from_nested_labels(tmp_path: Path) -> None:
    rows = [{"guid": "0", "sentence1": "가", "sentence2": "나", "labels": {"binary-label": 1, "real-label": 3.7}}]
    (tmp_path / "klue.json").write_text(json.dumps(rows), "utf-8")
    assert read_sts(tmp_path / "klue.json").scores.tolist() == [3.7]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "contains no rows"),
        ("sentence1\tscore\n가\t1\n", "no column 'sentence2'; it has sentence1, score"),
        ("sentence1\tsentence2\n가\t나\n", "no column 'score'; it has sentence1, sentence2"),
        (f"{HEADER}가\t나\t7\n", "row 0: '7' is not a score from 0 to 5"),
        (f"{HEADER}가\t나\thigh\n", "row 0: 'high' is not a score from 0 to 5"),
        (f"{HEADER}가\t나\t1\n가\t나\n", "line 3 does not have as many columns as the header"),
        (f"{HEADER}가\t나\t1\t2\n", "line 2 does not have as many columns as the header"),
    ],
)
def test_a_problem_with_a_file_is_one_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.tsv").write_text(content, "utf-8")
    with pytest.raises(InputError) as raised:
        read_sts(tmp_path / "a.tsv")
    assert str(raised.value) == f"{tmp_path / 'a.tsv'}: {message}"


def test_a_missing_or_binary_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_sts(tmp_path / "no.tsv")
    (tmp_path / "b.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(InputError, match="neither a TSV with a header nor a JSON list"):
        read_sts(tmp_path / "b.json")


def test_correlations_have_the_right_sign_and_scale() -> None:
    scores = np.array([0.0, 1, 2, 3, 4])
    angles = np.linspace(np.pi / 2, 0, 5)
    first = np.tile([1.0, 0.0], (5, 1))
    second = np.stack([np.cos(angles), np.sin(angles)], 1)
    for pearson, spearman in correlations(first, second, scores).values():
        assert spearman == pytest.approx(100)
        assert 90 < pearson <= 100
