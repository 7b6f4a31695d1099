"""A corpus that is partly embedded: each file keeps the cut it was begun with."""

from __future__ import annotations

from dataclasses import replace

from kosbert_ray.corpus.files import InputFile
from kosbert_ray.corpus.fragments import Fragment, Limits, is_current
from kosbert_ray.corpus.plan import plan, replan

FILE = InputFile("a.jsonl", 100, "v1", "jsonl")
FIRST, NOW = Limits(8, 40), Limits(16, 50)


def again(begun: dict, whole: set[str]) -> list[Fragment]:
    return list(replan([FILE], NOW, False, FIRST, begun, whole.__contains__))


def cuts(fragments: list[Fragment]) -> list[tuple[int, int, str]]:
    return [(item.start, item.stop, item.cut) for item in fragments]


def test_a_file_that_is_not_begun_is_cut_by_todays_limits() -> None:
    assert cuts(again({}, set())) == [(0, 50, NOW.cut), (50, 100, NOW.cut)]
    assert cuts(again({("a.jsonl", "v0"): {""}}, set())) == [(0, 50, NOW.cut), (50, 100, NOW.cut)]


def test_whole_fragments_of_an_older_cut_are_done_and_half_done_ones_are_done_again_by_its_limits() -> None:
    old = list(plan([FILE], FIRST))
    found = again({("a.jsonl", "v1"): {""}}, {old[0].id})
    assert cuts(found) == [(0, 40, ""), (40, 80, FIRST.cut), (80, 100, FIRST.cut)]
    assert found[0].id == old[0].id
    assert found[1].id != old[1].id
    # The redo was killed and went on: its own cut counts, too.
    again_done = replace(old[1], cut=FIRST.cut)
    found = again({("a.jsonl", "v1"): {"", FIRST.cut}}, {old[0].id, again_done.id})
    assert cuts(found) == [(0, 40, ""), (40, 80, FIRST.cut), (80, 100, FIRST.cut)]


def test_of_two_cuts_with_other_limits_the_one_that_is_further_counts() -> None:
    mine = [replace(item, cut=NOW.cut) for item in plan([FILE], NOW)]
    found = again({("a.jsonl", "v1"): {FIRST.cut, NOW.cut}}, {item.id for item in mine})
    assert found == mine


def test_only_todays_readers_cut_is_current() -> None:
    assert is_current(NOW.cut)
    assert not is_current("")
    assert not is_current("1;16;50")
