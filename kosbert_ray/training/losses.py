"""Losses: those of sentence-transformers, and two that distil a teacher's precomputed vectors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses
from torch import nn
from torch.nn import functional as F

from kosbert_ray.training.config import TaskConfig


class DistillationLoss(nn.Module):
    """Distils the directions of a teacher's vectors. The sum of three parts:

    - the mean cosine distance between student and teacher;
    - ``contrastive`` times the cross-entropy of identifying a text's own teacher vector among the batch's (InfoNCE,
      van den Oord et al. 2018, arXiv:1807.03748);
    - ``similarity`` times the mean squared difference between the cosine matrices of student and teacher over the batch
      (Tung and Mori 2019, arXiv:1907.09682).

    Args:
        model: student.
        targets: teacher vectors of length 1, float32 ``[n, dimension]``, indexed by the labels.
        contrastive: weight of the second part.
        similarity: weight of the third part.
        temperature: softmax temperature of the second part.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        targets: np.ndarray[Any, Any],
        contrastive: float = 1.0,
        similarity: float = 1.0,
        temperature: float = 0.05,
    ) -> None:
        super().__init__()
        self.model = model
        self.targets = targets
        self.contrastive = contrastive
        self.similarity = similarity
        self.temperature = temperature

    def forward(self, sentence_features: Iterable[dict[str, torch.Tensor]], labels: torch.Tensor) -> torch.Tensor:
        """Computes the loss of a batch; ``labels`` are row indices of ``targets``."""
        (features,) = sentence_features
        student = F.normalize(self.model(features)["sentence_embedding"].float(), dim=1)
        teacher = torch.from_numpy(self.targets[labels.cpu().numpy()]).to(student.device)
        cosines = student @ teacher.T
        loss = (1 - cosines.diagonal()).mean()
        if self.contrastive:
            own = torch.arange(len(student), device=student.device)
            # Duplicates in a batch must not count as negatives of each other.
            same = (teacher @ teacher.T > 1 - 1e-4) & ~torch.eye(len(own), dtype=torch.bool, device=student.device)
            logits = (cosines / self.temperature).masked_fill(same, -torch.inf)
            loss = loss + self.contrastive * F.cross_entropy(logits, own)
        if self.similarity:
            loss = loss + self.similarity * F.mse_loss(student @ student.T, teacher @ teacher.T)
        return loss


class TeacherMSELoss(nn.Module):
    """Mean squared error between student and teacher vectors (Reimers and Gurevych 2020, arXiv:2004.09813)."""

    def __init__(self, model: SentenceTransformer, targets: np.ndarray[Any, Any]) -> None:
        super().__init__()
        self.model = model
        self.targets = targets

    def forward(self, sentence_features: Iterable[dict[str, torch.Tensor]], labels: torch.Tensor) -> torch.Tensor:
        """Computes the loss of a batch; ``labels`` are row indices of ``targets``."""
        (features,) = sentence_features
        student = self.model(features)["sentence_embedding"].float()
        return F.mse_loss(student, torch.from_numpy(self.targets[labels.cpu().numpy()]).to(student.device))


def make_loss(task: TaskConfig, model: SentenceTransformer, targets: np.ndarray[Any, Any] | None) -> nn.Module:
    """Creates the loss of a task. ``targets`` are the vectors of its teacher, if it has one."""
    if task.loss == "cosine_similarity":
        return losses.CosineSimilarityLoss(model)
    if task.loss == "multiple_negatives_ranking":
        return losses.MultipleNegativesRankingLoss(model)
    assert task.teacher is not None and targets is not None
    if task.loss == "mse":
        return TeacherMSELoss(model, targets)
    teacher = task.teacher
    return DistillationLoss(model, targets, teacher.contrastive, teacher.similarity, teacher.temperature)
