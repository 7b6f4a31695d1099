"""Options of the run: the executor and Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import Field

from kosbert_ray.run.executors.table import EXECUTORS
from kosbert_ray.settings import Private, Section

if TYPE_CHECKING:
    ExecutorName: TypeAlias = str
else:  # what the option accepts: the names in the table
    ExecutorName = Literal[("auto", *EXECUTORS)]


class RayOptions(Section):
    """The Ray cluster that runs the job."""

    address: str | None = Field(
        default=None, description="address of a running cluster; by default RAY_ADDRESS, or else a local Ray is started"
    )
    runtime_env: Annotated[dict[str, Any], Private()] = Field(
        default_factory=dict, description="Ray's runtime environment for all processes: env_vars, pip, image_uri …"
    )
