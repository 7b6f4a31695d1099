"""Pooling a packed batch is pooling each sequence; the head's weights must fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kosbert_ray.encoder.head import Head
from kosbert_ray.errors import ModelError
from kosbert_ray.model.pooling import pool
from kosbert_ray.model.spec import Dense

GROUPS = ((0, 2, 3), (6, 1, 5))


@pytest.mark.parametrize("skip", [0, 2, 9])
def test_each_mode_is_its_formula_on_each_sequence(skip: int) -> None:
    hidden = torch.randn(11, 4, dtype=torch.float64).float()
    out = pool(hidden, GROUPS, ("cls", "max", "mean", "mean_sqrt_len_tokens", "lasttoken", "weightedmean"), skip)
    for row, (start, length) in enumerate([(0, 3), (3, 3), (6, 5)]):
        tokens = hidden[start + min(skip, length - 1) : start + length]
        weights = torch.arange(length)[min(skip, length - 1) :, None] + 1
        expected = [tokens[0], tokens.max(0).values, tokens.mean(0), tokens.sum(0) / len(tokens) ** 0.5]
        expected += [tokens[-1], (tokens * weights).sum(0) / weights.sum()]
        torch.testing.assert_close(out[row], torch.cat(expected))


def test_bf16_tokens_are_summed_in_float32() -> None:
    hidden = torch.full((11, 1), 1.0, dtype=torch.bfloat16)
    hidden[0] = 300.0
    assert pool(hidden, ((0, 1, 11),), ("mean",), 0).item() == pytest.approx(310 / 11)


def dense(folder: Path, **more) -> Dense:
    given = {
        "folder": folder,
        "in_features": 3,
        "out_features": 2,
        "bias": True,
        "activation": "torch.nn.Tanh",
        "residual": False,
    }
    return Dense(**(given | more))


def test_a_residual_dense_adds_its_input(tmp_path: Path) -> None:
    weights = {"linear.weight": torch.ones(2, 3), "linear.bias": torch.zeros(2), "residual.weight": torch.eye(3)[:2]}
    save_file(weights, tmp_path / "model.safetensors")
    vectors = torch.tensor([[1.0, 2.0, 3.0]])
    out = Head((dense(tmp_path, residual=True),))(vectors)
    torch.testing.assert_close(out, torch.tanh(torch.tensor([[6.0, 6.0]])) + vectors[:, :2])


def test_weights_that_do_not_fit_and_activations_that_are_no_torch_module_are_refused(tmp_path: Path) -> None:
    save_file({"linear.weight": torch.ones(9, 9)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="do not fit"):
        Head((dense(tmp_path),))
    save_file({"linear.weight": torch.ones(2, 3), "linear.bias": torch.zeros(2)}, tmp_path / "model.safetensors")
    for activation in ("os.system", "torch.nn.functional", "torch.load"):
        with pytest.raises(ModelError, match="not a torch.nn module"):
            Head((dense(tmp_path, activation=activation),))
