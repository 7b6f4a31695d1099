"""Batches by length: each example once per epoch, little padding, and an order that depends on seed and epoch."""

from __future__ import annotations

import numpy as np
from datasets import Dataset

from kosbert_ray.training.sampler import LengthGroupedBatchSampler

LENGTHS = np.random.default_rng(0).integers(1, 200, 1000)
DATA = Dataset.from_dict({"text": ["가" * length for length in LENGTHS.tolist()], "label": list(range(1000))})


def sampler(seed: int = 0, drop_last: bool = False) -> LengthGroupedBatchSampler:
    return LengthGroupedBatchSampler(DATA, batch_size=8, drop_last=drop_last, seed=seed)


def test_each_example_is_in_one_batch_and_batches_have_little_padding() -> None:
    batches = list(sampler())
    assert sorted(index for batch in batches for index in batch) == list(range(1000))
    padded = sum(len(batch) * LENGTHS[batch].max() for batch in batches)
    assert padded < 1.1 * LENGTHS.sum()
    firsts = [LENGTHS[batch].mean() for batch in batches]
    assert abs(np.corrcoef(firsts, range(len(firsts)))[0, 1]) < 0.3  # batches are not sorted by length


def test_the_order_changes_with_the_epoch_and_repeats_with_the_seed() -> None:
    one, two = sampler(3), sampler(3)
    assert list(one) == list(two)
    two.set_epoch(1)
    assert list(one) != list(two)


def test_an_incomplete_last_batch_can_be_dropped() -> None:
    data = DATA.select(range(13))
    batches = list(LengthGroupedBatchSampler(data, batch_size=8, drop_last=True))
    assert [len(batch) for batch in batches] == [8]
