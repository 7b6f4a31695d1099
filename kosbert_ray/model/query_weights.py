"""Reads the weights that a model gives the tokens of queries, which then need no transformer. Loads without torch.

Source: ``SparseStaticEmbedding`` of sentence-transformers 6; Geng et al. 2024, "Towards Competitive Search Relevance For
Inference-Free Learned Sparse Retrievers" (arXiv:2411.04403).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kosbert_ray.errors import ModelError
from kosbert_ray.model import files


@dataclass(frozen=True)
class QueryWeights:
    """A weight for each token: the sparse vector of a query has those of its tokens, however often they occur.

    Attributes:
        folder: the folder of its tokenizer and, unless there is a ``table``, of its weights.
        table: a JSON file with the weights by token; None if ``folder`` has them as a tensor.
        default: whether texts of which nobody says what they are count as queries.
    """

    folder: Path
    table: Path | None
    default: bool


def read_query_weights(model: Path, name: str, default: bool) -> QueryWeights:
    """Reads the config of SparseStaticEmbedding.

    Args:
        model: the model.
        name: subfolder of the module.
        default: whether texts of which nobody says what they are count as queries.

    Raises:
        ModelError: the file that its config names is missing.
    """
    folder = model / name
    config = folder / "config.json"
    path = files.read_object(config).get("path") if config.exists() else None
    if not path or not str(path).endswith(".json"):
        return QueryWeights(folder, None, default)
    for place in (folder, model):
        table = place / str(path)
        if table.is_file() and model.resolve() in table.resolve().parents:
            return QueryWeights(folder, table, default)
    raise ModelError(f"{config}: names {path} for the weights of tokens, which is not in the model's folder")
