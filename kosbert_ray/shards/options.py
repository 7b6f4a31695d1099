"""Options of the output."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from kosbert_ray.settings import Address, Names, Seconds, Section, split_names
from kosbert_ray.shards.vector_types import VectorType
from kosbert_ray.vectors.kinds import DENSE, Kind


def require_unit(value: Any) -> Any:
    """Refuses a few seconds that are written like days: what they delete too early is lost."""
    if str(value).isdigit() and 0 < int(value) < 60:
        raise ValueError(f"{value} would be seconds; write a unit, such as {value}d")
    return value


class OutputOptions(Section):
    """The folder that is written, and how vectors are stored in it."""

    path: Address = Field(default="", description="folder or s3:// URL")
    text: bool = Field(
        default=True, description="copy the texts as they are in the input, of chunks the chunk, to a column text"
    )
    text_hash: bool = Field(
        default=False, description="write a hash of each text to a column text_hash, by which later outputs reuse vectors"
    )
    address: bool = Field(
        default=False,
        description="write the place of each row in the input: columns file, row and byte_offset, of which one is null",
    )
    rejected_text: bool = Field(default=True, description="keep the texts of rejected rows in rejected/")
    vectors: Annotated[tuple[Kind, ...], BeforeValidator(split_names)] = Field(
        default=(), description="kinds of vectors: dense, sparse, multi_vector; by default that of the model"
    )
    column: str = Field(default="embedding", description="name of the column of dense vectors")
    dtype: Annotated[tuple[VectorType, ...], BeforeValidator(split_names), Field(min_length=1)] = Field(
        default=("float32",),
        description="types of dense vectors: the first is stored in column, each other in <column>_<type>",
    )
    list_type: Literal["list", "fixed_size_list"] = Field(
        default="list", description="Arrow type of dense vectors and of token vectors"
    )
    sparse_top_k: Annotated[int, Field(gt=0)] | None = Field(
        default=None, description="how many of the largest values a sparse vector keeps; by default all"
    )
    sparse_threshold: float = Field(default=0.0, ge=0, description="the smallest value that a sparse vector keeps")
    sparse_dtype: Literal["float32", "float16"] = Field(default="float32", description="type of a sparse vector's values")
    multi_vector_dtype: Literal["float32", "float16"] = Field(
        default="float32",
        description="type of token vectors, whose numbers have half precision in both; more readers take float32",
    )
    token_pooling: float = Field(
        default=1.0, ge=1, description="about how many token vectors of a text become one, the mean of similar ones"
    )
    compression: Literal["zstd", "snappy", "none"] = Field(default="zstd", description="compression of the Parquet files")
    removed_inputs: Literal["keep", "delete"] = Field(
        default="keep", description="what to do with the vectors of input files that no longer exist"
    )

    publish: Names = Field(
        default=(), description="tables to publish the complete output as: delta, iceberg://CATALOG/NAMESPACE.TABLE"
    )
    retain: Annotated[Seconds, BeforeValidator(require_unit)] = Field(
        default=7 * 86400, ge=0, description="how long shards are kept after the last published table has left them"
    )

    @model_validator(mode="after")
    def _check(self) -> OutputOptions:
        for name in ("dtype", "vectors"):
            if len({*getattr(self, name)}) < len(getattr(self, name)):
                raise ValueError(f"{name}: an entry is named twice")
        return self

    def columns(self) -> tuple[str, ...]:
        """Names of the columns of vectors, as far as they are known without the model."""
        others = tuple(kind for kind in self.vectors if kind != DENSE)  # their columns have the names of the kinds
        return (*(self.dense_columns() if DENSE in self.vectors or not self.vectors else ()), *others)

    def dense_columns(self) -> tuple[str, ...]:
        """Names of the columns of dense vectors, if there are any."""
        return (self.column, *(f"{self.column}_{dtype}" for dtype in self.dtype[1:]))
