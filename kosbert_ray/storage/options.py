"""How to reach an object store: the options, and what s3fs calls them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class StorageOptions:
    """How to reach an object store. Empty fields fall back to the usual AWS variables and files.

    Attributes:
        retries: how often a failed request is sent again, with exponential backoff (botocore's "standard" mode).
        timeout: seconds to wait for an answer before the request counts as failed.
        retry_seconds: how long an operation that failed all its ``retries`` is tried anew, from a fresh connection with
            the credentials of that moment, before it is given up. 0: not at all.
        requester_pays: pay for requests to a bucket of another account that asks for it.
        server_side_encryption: "AES256" or "aws:kms", asked for with each write; None: as the bucket says.
        sse_kms_key_id: the key for "aws:kms"; None: the bucket's.
    """

    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None
    anonymous: bool = False
    access_key_id: str | None = field(default=None, repr=False)
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    retries: int = 8
    timeout: float = 60.0
    retry_seconds: float = 0.0
    requester_pays: bool = False
    server_side_encryption: str | None = None
    sse_kms_key_id: str | None = None

    def s3fs_kwargs(self) -> dict[str, Any]:
        """The same options as ``s3fs.S3FileSystem`` names them."""
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
            # Another run may write beside us: a remembered listing would be a wrong one.
            "use_listings_cache": False,
        }
        encryption = {"ServerSideEncryption": self.server_side_encryption, "SSEKMSKeyId": self.sse_kms_key_id}
        named = {
            "requester_pays": self.requester_pays,
            "s3_additional_kwargs": {name: value for name, value in encryption.items() if value},
            "endpoint_url": self.endpoint_url,
            "profile": self.profile,
            "key": self.access_key_id,
            "secret": self.secret_access_key,
            "token": self.session_token,
        }
        return kwargs | {name: value for name, value in named.items() if value}

    def object_store_options(self) -> dict[str, str]:
        """The same options as Rust's object_store crate names them, for libraries that are built on it."""
        endpoint = self.endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        named = {
            "aws_endpoint": endpoint,
            "allow_http": "true" if endpoint and endpoint.startswith("http://") else None,
            "aws_region": self.region,
            "aws_skip_signature": "true" if self.anonymous else None,
            "aws_access_key_id": self.access_key_id,
            "aws_secret_access_key": self.secret_access_key,
            "aws_session_token": self.session_token,
        }
        return {name: value for name, value in named.items() if value}


def is_url(path: str) -> bool:
    """True for ``scheme://…``; everything else is a path on this machine."""
    return "://" in path
