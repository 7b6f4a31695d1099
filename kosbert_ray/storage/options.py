"""Options for reaching an object store, and their names in s3fs and in Rust's object_store."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, field_validator

from kosbert_ray.settings import Private, Seconds, Section


class StorageOptions(Section):
    """Access to object stores. Anything left out comes from the usual AWS variables and files."""

    # In job.json since 0.1.0. Credentials are refused in it, but messages still leave it out.
    endpoint_url: Annotated[str | None, Private(recorded=True)] = Field(
        default=None, description="address of an S3-compatible store; by default AWS"
    )
    region: str | None = Field(default=None, description="region of the store")
    profile: str | None = Field(default=None, description="profile in the AWS configuration files")
    anonymous: bool = Field(default=False, description="read without credentials")
    access_key_id: SecretStr | None = Field(default=None, description="access key; prefer AWS_ACCESS_KEY_ID")
    secret_access_key: SecretStr | None = Field(default=None, description="secret key; prefer AWS_SECRET_ACCESS_KEY")
    session_token: SecretStr | None = Field(default=None, description="session token; prefer AWS_SESSION_TOKEN")
    retries: int = Field(default=8, ge=0, description="retries of a failed request, with exponential backoff")
    timeout: Seconds = Field(default=60.0, gt=0, description="seconds to wait for a response")
    retry_seconds: Seconds = Field(
        default=600.0,
        ge=0,
        description="seconds that a run keeps retrying while the store is down or credentials have expired",
    )
    requester_pays: bool = Field(default=False, description="pay for requests to a requester-pays bucket")
    server_side_encryption: Literal["AES256", "aws:kms"] | None = Field(
        default=None, description="encryption requested for each write; by default the bucket's"
    )
    sse_kms_key_id: str | None = Field(default=None, description="key for aws:kms; by default the bucket's")

    @field_validator("endpoint_url")
    @classmethod
    def _no_credentials(cls, value: str | None) -> str | None:
        if value and "@" in value:
            raise ValueError("credentials do not belong in an address; use the AWS variables or storage.access_key_id")
        return value

    def fail_fast(self) -> StorageOptions:
        """The same options without ``retry_seconds``: for a command that reports an outage instead of waiting it out."""
        return self.model_copy(update={"retry_seconds": 0.0})

    def s3fs_kwargs(self) -> dict[str, Any]:
        """Arguments for ``s3fs.S3FileSystem``; secrets are revealed."""
        client: dict[str, Any] = {}
        if self.region or os.environ.get("AWS_REGION"):
            client["region_name"] = self.region or os.environ["AWS_REGION"]
        kwargs: dict[str, Any] = {
            "anon": self.anonymous,
            "client_kwargs": client,
            "config_kwargs": {
                "retries": {"mode": "standard", "max_attempts": self.retries},
                "connect_timeout": min(10.0, self.timeout),
                "read_timeout": self.timeout,
            },
            # Another run may write to the same folder, so a cached listing would be stale.
            "use_listings_cache": False,
        }
        encryption = {"ServerSideEncryption": self.server_side_encryption, "SSEKMSKeyId": self.sse_kms_key_id}
        named = {
            "requester_pays": self.requester_pays,
            "s3_additional_kwargs": {name: value for name, value in encryption.items() if value},
            "endpoint_url": self.endpoint_url,
            "profile": self.profile,
            "key": _reveal(self.access_key_id),
            "secret": _reveal(self.secret_access_key),
            "token": _reveal(self.session_token),
        }
        return kwargs | {name: value for name, value in named.items() if value}

    def object_store_options(self) -> dict[str, str]:
        """Options for libraries built on Rust's object_store crate; secrets are revealed."""
        endpoint = self.endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        named = {
            "aws_endpoint": endpoint,
            "allow_http": "true" if endpoint and endpoint.startswith("http://") else None,
            "aws_region": self.region,
            "aws_skip_signature": "true" if self.anonymous else None,
            "aws_access_key_id": _reveal(self.access_key_id),
            "aws_secret_access_key": _reveal(self.secret_access_key),
            "aws_session_token": _reveal(self.session_token),
        }
        return {name: value for name, value in named.items() if value}


FAIL_FAST = StorageOptions(retry_seconds=0.0)  # for callers without a job


def _reveal(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret else None


def is_url(path: str) -> bool:
    """True for ``scheme://…``; everything else is a path on this machine."""
    return "://" in path
