"""Tiny models with the heads of BGE-M3, with random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from zoo import ZOO, save

WIDTH = 64
HEADS = {"sparse_linear": 1, "colbert_linear": 48}


def add_heads(folder: Path, *names: str) -> Path:
    """Adds heads to a model's folder, as BGE-M3 has them in its root."""
    torch.manual_seed(2)
    for name in names:
        torch.save(torch.nn.Linear(WIDTH, HEADS[name]).state_dict(), folder / f"{name}.pt")
    return folder


def save_m3(folder: Path) -> Path:
    """A tiny model with all of them."""
    return add_heads(save(ZOO["xlm-roberta, cls"], folder), *HEADS)
