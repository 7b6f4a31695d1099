"""Options of Ray."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from kosbert_ray.settings import Private, Section


class RayOptions(Section):
    """The Ray cluster that runs the job."""

    address: str | None = Field(
        default=None, description="address of a running cluster; by default RAY_ADDRESS, or else a local Ray is started"
    )
    runtime_env: Annotated[dict[str, Any], Private()] = Field(
        default_factory=dict, description="Ray's runtime environment for all processes: env_vars, pip, image_uri …"
    )
