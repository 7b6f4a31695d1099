"""Batches without padding: every sequence once, within the budget, in an order that depends on nothing else."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st
from sequences import tokens

from kosbert_ray.encoder.packing import Pack, pack, pack_one_length

lengths = st.lists(st.integers(1, 40), max_size=60)


@given(lengths, st.integers(1, 100), st.sampled_from([pack, pack_one_length]))
def test_every_sequence_is_in_exactly_one_batch_whole(lengths: list[int], budget: int, pack: Pack) -> None:
    seen = []
    for batch in pack(tokens(lengths), budget):
        assert len(batch.ids) == len(batch.positions) == batch.offsets[-1]
        for text, start, stop in zip(batch.texts, batch.offsets, batch.offsets[1:], strict=False):
            assert batch.ids[start:stop].tolist() == [text] * lengths[text]
            assert batch.positions[start:stop].tolist() == list(range(lengths[text]))
            seen.append(int(text))
    assert sorted(seen) == list(range(len(lengths)))


@given(lengths, st.integers(1, 100))
def test_batches_keep_within_the_budget_and_are_full(lengths: list[int], budget: int) -> None:
    batches = list(pack(tokens(lengths), budget))
    assert all(len(batch.ids) <= budget or len(batch.texts) == 1 for batch in batches)
    for batch, following in itertools.pairwise(batches):
        assert len(batch.ids) + following.groups[0][2] > budget


@given(lengths, st.integers(1, 100))
def test_groups_are_runs_of_one_length_that_cover_the_batch(lengths: list[int], budget: int) -> None:
    for batch in pack(tokens(lengths), budget):
        at = 0
        for start, count, length in batch.groups:
            assert start == at
            at += count * length
        assert at == len(batch.ids)
        assert len({length for _, _, length in batch.groups}) == len(batch.groups)


@given(lengths, st.integers(1, 100))
def test_batches_of_one_length_are_as_few_as_the_budget_allows(lengths: list[int], budget: int) -> None:
    batches = list(pack_one_length(tokens(lengths), budget))
    assert all(len(batch.groups) == 1 for batch in batches)
    assert all(len(batch.ids) <= budget or len(batch.texts) == 1 for batch in batches)
    for length in {*lengths}:
        count = sum(batch.groups[0][2] == length for batch in batches)
        assert count == -(-lengths.count(length) // max(1, budget // length))
