"""Batches by length: each example once an epoch, little padding, another order each epoch and the same by the same seed."""

from __future__ import annotations

import numpy as np
from datasets import Dataset

from kosbert_ray.training.sampler import LengthGroupedBatchSampler

LENGTHS = np.random.default_rng(0).integers(1, 200, 1000)
DATA = Dataset.from_dict({"text": ["가" * length for length in LENGTHS.tolist()], "label": list(range(1000))})


def sampler(seed: int = 0, drop_last: bool = False) -> LengthGroupedBatchSampler:
    return LengthGroupedBatchSampler(DATA, batch_size=8, drop_last=drop_last, seed=seed)


def test_each_example_is_in_one_batch_and_batches_are_of_like_length() -> None:
    batches = list(sampler())
    assert sorted(index for batch in batches for index in batch) == list(range(1000))
    padded = sum(len(batch) * LENGTHS[batch].max() for batch in batches)
    assert padded < 1.1 * LENGTHS.sum()
    firsts = [LENGTHS[batch].mean() for batch in batches]
    assert abs(np.corrcoef(firsts, range(len(firsts)))[0, 1]) < 0.3  # not from short to long


def test_epochs_differ_and_seeds_repeat() -> None:
    one, two = sampler(3), sampler(3)
    assert list(one) == list(two)
    two.set_epoch(1)
    assert list(one) != list(two)


def test_the_last_short_batch_can_be_dropped() -> None:
    data = DATA.select(range(13))
    batches = list(LengthGroupedBatchSampler(data, batch_size=8, drop_last=True))
    assert [len(batch) for batch in batches] == [8]
