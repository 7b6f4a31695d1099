"""Batch samplers. Batches of texts of similar length need less padding than random ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers.base.sampler import DefaultBatchSampler, NoDuplicatesBatchSampler
from torch.utils.data import RandomSampler, SequentialSampler

POOL = 64  # batches sorted together: a larger pool needs less padding but is less random


class LengthGroupedBatchSampler(DefaultBatchSampler):
    """Shuffles the examples, sorts them by length within pools of ``POOL`` batches, and shuffles the batches."""

    def __init__(self, dataset: Dataset, batch_size: int, drop_last: bool, seed: int = 0, **_: Any) -> None:
        super().__init__(SequentialSampler(dataset), batch_size=batch_size, drop_last=drop_last)
        columns = [dataset[name] for name in dataset.column_names if name != "label"]
        self.lengths = torch.tensor([sum(map(len, row)) for row in zip(*columns, strict=True)])
        self.seed = seed
        self.epoch = 0

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator)
        batches: list[torch.Tensor] = []
        for pool in order.split(POOL * self.batch_size):
            batches += pool[self.lengths[pool].argsort(stable=True)].split(self.batch_size)
        for index in torch.randperm(len(batches), generator=generator).tolist():
            if len(batches[index]) == self.batch_size or not self.drop_last:
                yield batches[index].tolist()


def make_sampler(dataset: Dataset, group_by_length: bool, **options: Any) -> DefaultBatchSampler:
    """Creates the batch sampler of a dataset. Contrastive batches contain no text twice, since the others are negatives."""
    if "anchor" in dataset.column_names:
        return NoDuplicatesBatchSampler(dataset, **options)
    if group_by_length:
        return LengthGroupedBatchSampler(dataset, **options)
    order = RandomSampler(dataset, generator=options["generator"])
    return DefaultBatchSampler(order, batch_size=options["batch_size"], drop_last=options["drop_last"])
