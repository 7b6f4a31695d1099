"""Training data: examples from each kind of file, held-out texts, and error messages."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from kosbert_ray.errors import InputError
from kosbert_ray.training.config import DataConfig, TaskConfig
from kosbert_ray.training.data import read_examples, read_texts

TEACHER = {"model": "teacher", "whitening": 0.5}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    sts = "sentence1\tsentence2\tscore\n가\t나\t5\n다\t라\t0\n마\t바\t2.5\n"
    (tmp_path / "sts.tsv").write_text(sts, "utf-8")
    nli = "sentence1\tsentence2\tgold_label\n개\t동물\tentailment\n개\t고양이\tcontradiction\n"
    nli += "개\t귀엽다\tneutral\n새\t난다\tentailment\n"
    (tmp_path / "nli.tsv").write_text(nli, "utf-8")
    (tmp_path / "pairs.tsv").write_text("utterance\targument\tlabel\n뭐 해\t하는 일\t1\n뭐 해\t날씨\t0\n", "utf-8")
    (tmp_path / "ko-en.tsv").write_text("안녕\thello\n안녕\thi\n잘 가\tbye\n", "utf-8")
    pq.write_table(pa.table({"text": ["하나", "둘", None, "셋"], "source": ["a", "b", "a", "a"]}), tmp_path / "t.parquet")
    return tmp_path


def task(loss: str, *data: dict, teacher: dict | None = None) -> TaskConfig:
    return TaskConfig.model_validate({"loss": loss, "data": list(data), "teacher": teacher})


def test_sts_scores_are_scaled_to_1_and_held_out_pairs_are_excluded(root: Path) -> None:
    given = task("cosine_similarity", {"path": "sts.tsv", "kind": "sts"})
    assert read_examples(given, str(root), set(), 0).scores == [1.0, 0.0, 0.5]
    # Sharing one sentence with the test set is allowed, sharing a pair is not.
    examples = read_examples(given, str(root), {"다", "라", "가"}, 0)
    assert examples.rows == [("가", "나"), ("마", "바")]


def test_nli_becomes_triplets_and_pairs_with_label_1_become_pairs(root: Path) -> None:
    nli = read_examples(task("multiple_negatives_ranking", {"path": "nli.tsv", "kind": "nli"}), str(root), set(), 0)
    assert (nli.columns, nli.rows) == (("anchor", "positive", "negative"), [("개", "동물", "고양이")])
    pairs = read_examples(task("multiple_negatives_ranking", {"path": "pairs.tsv", "kind": "pairs"}), str(root), set(), 0)
    assert (pairs.columns, pairs.rows) == (("anchor", "positive"), [("뭐 해", "하는 일")])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [("안녕", "hello"), ("안녕", "hi"), ("잘 가", "bye")]),
        ({"own_language": True}, [("안녕", "안녕"), ("잘 가", "잘 가")]),
        (
            {"sides": "both"},
            [("안녕", "hello"), ("hello", "hello"), ("안녕", "hi"), ("hi", "hi"), ("잘 가", "bye"), ("bye", "bye")],
        ),
    ],
)
def test_parallel_data_pair_the_texts_of_student_and_teacher(root: Path, options: dict, expected: list) -> None:
    given = task("distillation", {"path": "ko-en.tsv", "kind": "parallel"}, teacher={**TEACHER, **options})
    examples = read_examples(given, str(root), set(), 0)
    assert [(own, read) for (own,), read in zip(examples.rows, examples.teacher_texts, strict=True)] == expected


def test_texts_are_filtered_sampled_and_held_out(root: Path) -> None:
    texts = DataConfig(path="*.parquet", kind="texts", where={"source": ("a",)})
    assert read_texts(texts, str(root), set(), 0) == ["하나", "셋"]
    assert read_texts(texts, str(root), {"셋"}, 0) == ["하나"]
    one = texts.model_copy(update={"where": {}, "limit": 2})
    assert len(read_texts(one, str(root), set(), 0)) == 2
    assert read_texts(one, str(root), set(), 5) == read_texts(one, str(root), set(), 5)


@pytest.mark.parametrize(
    ("name", "kind", "content", "message"),
    [
        ("x.tsv", "parallel", "안녕\n", "x.tsv: line 1 has no second column"),
        ("x.tsv", "nli", "sentence1\tsentence2\n가\t나\n", "x.tsv: no column gold_label; it has sentence1, sentence2"),
        ("x.tsv", "pairs", "utterance\n가\n", "x.tsv: needs two columns of sentences; it has utterance"),
        ("x.tsv", "pairs", "a\tb\tlabel\n가\t나\t0\n", "x.tsv: no examples for multiple_negatives_ranking"),
    ],
)
def test_a_file_with_another_format_is_named(tmp_path: Path, name: str, kind: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content, "utf-8")
    loss, teacher = ("distillation", TEACHER) if kind == "parallel" else ("multiple_negatives_ranking", None)
    with pytest.raises(InputError) as raised:
        read_examples(task(loss, {"path": name, "kind": kind}, teacher=teacher), str(tmp_path), set(), 0)
    assert str(raised.value).endswith(message)


def test_a_missing_column_is_named(root: Path) -> None:
    with pytest.raises(InputError, match=r"t\.parquet: no column 'body'; it has text, source"):
        read_texts(DataConfig(path="t.parquet", kind="texts", text="body"), str(root), set(), 0)


def test_a_loss_checks_the_kind_of_its_data_and_its_teacher() -> None:
    with pytest.raises(ValidationError, match="cosine_similarity takes sts, not nli"):
        task("cosine_similarity", {"path": "nli.tsv", "kind": "nli"})
    with pytest.raises(ValidationError, match="distillation requires one"):
        task("distillation", {"path": "t.parquet", "kind": "texts"})
