"""Options of the output."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from kosbert_ray.settings import Address, Names, Seconds, Section, split_names
from kosbert_ray.shards.vector_types import VectorType


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
    column: str = Field(default="embedding", description="name of the vector column")
    dtype: Annotated[tuple[VectorType, ...], BeforeValidator(split_names), Field(min_length=1)] = Field(
        default=("float32",), description="vector types: the first is stored in column, each other in <column>_<type>"
    )
    list_type: Literal["list", "fixed_size_list"] = Field(default="list", description="Arrow type of vector columns")
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
        if len(set(self.dtype)) < len(self.dtype):
            raise ValueError("dtype: a type is named twice")
        return self

    def columns(self) -> tuple[str, ...]:
        """Names of the vector columns."""
        return (self.column, *(f"{self.column}_{dtype}" for dtype in self.dtype[1:]))
