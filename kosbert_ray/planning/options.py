"""Options of ``kosbert-ray plan``: hardware and prices."""

from __future__ import annotations

from pydantic import Field

from kosbert_ray.settings import Section


class ProfileOptions(Section):
    """Hardware to estimate time and cost for."""

    tokens_per_second: float = Field(gt=0, description="tokens that one device encodes per second")
    devices: int = Field(default=1, gt=0, description="number of devices")
    price_per_hour: float | None = Field(default=None, ge=0, description="price of one device per hour")


class PlanOptions(Section):
    """Hardware and prices that plan estimates with."""

    slices: int = Field(default=32, gt=0, description="number of slices to sample")
    profiles: dict[str, ProfileOptions] = Field(
        default_factory=dict,
        description="hardware by name: {a10g: {tokens_per_second: 400000, devices: 4, price_per_hour: 1.0}}",
    )
    currency: str = Field(default="USD", description="currency of the prices")
    storage_price: float | None = Field(default=None, ge=0, description="price of storing a GB (10^9 bytes) for a month")
    put_price: float | None = Field(default=None, ge=0, description="price of 1,000 write requests")
    get_price: float | None = Field(default=None, ge=0, description="price of 1,000 read requests")
