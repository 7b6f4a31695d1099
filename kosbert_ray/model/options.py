"""Options of the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from pydantic import Field

from kosbert_ray.model.pooling import POOLING
from kosbert_ray.settings import Address, Section

if TYPE_CHECKING:
    Pooling: TypeAlias = str
else:  # what the option accepts: the names in the table
    Pooling = Literal[(*POOLING,)]
Positive = Annotated[int, Field(gt=0)]
PROMPT_OPTIONS = ("prompt", "prompt_name")  # either replaces the other


class _ModelName(Section):
    name: Address = Field(
        default="jhgan/ko-sbert-sts", description="Hugging Face name, folder, s3:// URL or bundled:kosbert-mini"
    )
    revision: str | None = Field(default=None, description="branch, tag or commit of a Hugging Face model")
    mirror: Address | None = Field(
        default=None,
        description="folder or s3:// URL from which the nodes of a cluster take the model; by default below the output",
    )


class SpecOptions(Section):
    """Options that override what a model folder says."""

    prompt: str | None = Field(
        default=None, description="text put before every text; by default the model's own prompt for documents"
    )
    prompt_name: str | None = Field(default=None, description="name of one of the model's own prompts")
    max_seq_length: Positive | None = Field(
        default=None, description="maximum tokens per text, with the special ones; by default the model's own limit"
    )
    truncate_dim: Positive | None = Field(
        default=None, description="keep only the first dimensions of each vector (for Matryoshka models)"
    )
    pooling: Pooling | None = Field(
        default=None, description="how a plain transformers folder is pooled; by default as sentence-transformers does"
    )
    allow_remote_code: bool | None = Field(
        default=None,
        description="run Python code that comes with the model; false runs transformers' own class of that type instead",
    )


class ModelOptions(SpecOptions, _ModelName):
    """The model and how it reads its texts."""
