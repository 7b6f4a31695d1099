"""Distillation losses, compared with the same sums in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from kosbert_ray.training.losses import DistillationLoss, TeacherMSELoss

RANDOM = np.random.default_rng(0)
TARGETS = RANDOM.normal(size=(20, 8)).astype(np.float32)
TARGETS /= np.linalg.norm(TARGETS, axis=1, keepdims=True)


def student(vectors: torch.Tensor):
    """Returns a model that outputs these vectors for any input."""
    return lambda _: {"sentence_embedding": vectors}


@pytest.mark.parametrize(("contrastive", "similarity"), [(0.0, 0.0), (1.0, 0.0), (0.0, 2.0), (0.5, 1.0)])
def test_the_loss_is_the_sum_of_its_three_parts(contrastive: float, similarity: float) -> None:
    labels = torch.tensor([3, 7, 1, 19, 4])
    vectors = torch.from_numpy(RANDOM.normal(size=(5, 8)).astype(np.float32))
    loss = DistillationLoss(student(vectors), TARGETS, contrastive, similarity, temperature=0.1)([{}], labels)
    a, b = normalize(vectors).double().numpy(), TARGETS[labels.numpy()].astype(float)
    cosine = np.mean([1 - a[i] @ b[i] for i in range(5)])
    logits = a @ b.T / 0.1
    found = np.mean([np.log(np.exp(logits[i]).sum()) - logits[i, i] for i in range(5)])
    square = np.mean((a @ a.T - b @ b.T) ** 2)
    assert float(loss) == pytest.approx(cosine + contrastive * found + similarity * square, rel=1e-4)


def test_duplicates_in_a_batch_are_not_negatives() -> None:
    vectors = torch.from_numpy(TARGETS[[2, 2, 5]])
    twice = DistillationLoss(student(vectors), TARGETS, 1.0, 0.0)([{}], torch.tensor([2, 2, 5]))
    once = DistillationLoss(student(vectors[1:]), TARGETS, 1.0, 0.0)([{}], torch.tensor([2, 5]))
    assert float(twice) < float(once) + 1e-3


def test_mse_compares_the_vectors_without_normalizing() -> None:
    vectors = torch.from_numpy(2 * TARGETS[[4, 6]])
    loss = TeacherMSELoss(student(vectors), TARGETS)([{}], torch.tensor([4, 6]))
    assert float(loss) == pytest.approx(float(np.mean(TARGETS[[4, 6]] ** 2)), rel=1e-5)
