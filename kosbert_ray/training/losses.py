"""Losses: sentence-transformers' own, and the distillation of a teacher's vectors of another geometry."""

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
    """Draws a student's vectors to its teacher's: by direction, by who is nearest in the batch, and by all likenesses.

    The sum of the mean cosine distance; ``contrastive`` times the cross-entropy of finding one's own teacher vector among
    the batch's (InfoNCE, van den Oord et al. 2018, arXiv:1807.03748); and ``similarity`` times the mean squared difference
    of the batch's matrices of cosines (Tung and Mori 2019, arXiv:1907.09682).

    Args:
        model: the student.
        targets: teacher vectors of length 1, float32 ``[n, dimension]``; a label is a row of it.
        contrastive: weight of the second part.
        similarity: weight of the third.
        temperature: of the second.
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
        """The loss of a batch; ``labels`` are rows of ``targets``."""
        (features,) = sentence_features
        student = F.normalize(self.model(features)["sentence_embedding"].float(), dim=1)
        teacher = torch.from_numpy(self.targets[labels.cpu().numpy()]).to(student.device)
        likeness = student @ teacher.T
        loss = (1 - likeness.diagonal()).mean()
        if self.contrastive:
            own = torch.arange(len(student), device=student.device)
            # The same sentence twice in a batch is no negative of itself.
            same = (teacher @ teacher.T > 1 - 1e-4) & ~torch.eye(len(own), dtype=torch.bool, device=student.device)
            logits = (likeness / self.temperature).masked_fill(same, -torch.inf)
            loss = loss + self.contrastive * F.cross_entropy(logits, own)
        if self.similarity:
            loss = loss + self.similarity * F.mse_loss(student @ student.T, teacher @ teacher.T)
        return loss


class TeacherMSELoss(nn.Module):
    """The mean squared difference of student's and teacher's vectors (Reimers and Gurevych 2020, arXiv:2004.09813)."""

    def __init__(self, model: SentenceTransformer, targets: np.ndarray[Any, Any]) -> None:
        super().__init__()
        self.model = model
        self.targets = targets

    def forward(self, sentence_features: Iterable[dict[str, torch.Tensor]], labels: torch.Tensor) -> torch.Tensor:
        """The loss of a batch; ``labels`` are rows of ``targets``."""
        (features,) = sentence_features
        student = self.model(features)["sentence_embedding"].float()
        return F.mse_loss(student, torch.from_numpy(self.targets[labels.cpu().numpy()]).to(student.device))


def make_loss(task: TaskConfig, model: SentenceTransformer, targets: np.ndarray[Any, Any] | None) -> nn.Module:
    """The loss a task names; ``targets`` are its teacher's vectors, if it has one."""
    if task.loss == "cosine_similarity":
        return losses.CosineSimilarityLoss(model)
    if task.loss == "multiple_negatives_ranking":
        return losses.MultipleNegativesRankingLoss(model)
    assert task.teacher is not None and targets is not None
    if task.loss == "mse":
        return TeacherMSELoss(model, targets)
    teacher = task.teacher
    return DistillationLoss(model, targets, teacher.contrastive, teacher.similarity, teacher.temperature)
