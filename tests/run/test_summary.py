"""A run's summary in a few lines, as the command and a notebook show it."""

from __future__ import annotations

from dataclasses import replace

from kosbert_ray.outputs.report.words import Words
from kosbert_ray.run.summary import Summary
from kosbert_ray.shards.totals import Totals

NEW = Totals(slices=4, rows=300, tokens=6000, distinct=290, input_rows=301, rejected=1)
SUMMARY = Summary("벡터", replace(NEW, rows=500), NEW, 40.0, 12.5, 10.0, removed=0, within_limit=True, complete=True)


def test_it_prints_as_result_speed_and_how_to_open_it() -> None:
    assert str(SUMMARY).splitlines() == [
        "done: 500 rows in 4 shards in 벡터, 1 row rejected (kosbert-ray rejected shows them)",
        "300 rows in 40 s, of which 10 s to start: 10 rows/s, 200 tokens/s; first slice after 12.5 s; 290 distinct texts "
        "encoded",
        "open it with kosbert_ray.Output.open('벡터')",
    ]


def test_it_tells_of_empty_sparse_vectors() -> None:
    one = str(replace(SUMMARY, totals=replace(SUMMARY.totals, empty_sparse=1))).splitlines()
    assert one[2] == "1 row has an empty sparse vector"


def test_many_truncated_rows_are_a_warning_with_what_the_job_accepts() -> None:
    cut = replace(NEW, truncated=30, dropped_tokens=6000)
    said = "10.0% of the rows are longer than the model's maximum; 50.0% of all tokens were cut off. Set "
    assert cut.truncation(("dense",)) == f"{said}long_text=chunk or long_text=mean to embed whole texts"
    for kinds in (("sparse",), ("multi_vector",), ("dense", "multi_vector")):
        assert cut.truncation(kinds) == f"{said}long_text=chunk to embed whole texts"
        korean = cut.truncation(kinds, Words("ko"))
        assert "mean" not in korean and "long_text=chunk를 설정하세요" in korean
    assert replace(cut, truncated=3).truncation(("dense",)) == ""


def test_without_new_slices_there_is_no_speed() -> None:
    unchanged = replace(SUMMARY, new=Totals(), complete=False, first_slice_seconds=None)
    assert str(unchanged).splitlines()[0].startswith("not complete: 500 rows")
    assert len(str(unchanged).splitlines()) == 2
