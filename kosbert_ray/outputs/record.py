"""Typed access to an output's job.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa

from kosbert_ray.config import JobConfig
from kosbert_ray.encoder.engines.table import supports
from kosbert_ray.errors import InputError
from kosbert_ray.job import recorded_commits
from kosbert_ray.shards.formats.base import VectorFormat
from kosbert_ray.shards.formats.table import formats_of
from kosbert_ray.shards.ledger import JOB_FILE, Ledger
from kosbert_ray.storage import Storage
from kosbert_ray.stored import settled_types, stored_config


@dataclass(frozen=True)
class JobRecord:
    """The record in job.json of the job that made an output.

    Attributes:
        config: the job's options, as the first run resolved them.
        digest: identifies the job in shard names and footers.
        fingerprint: everything that determines the vectors and the schema, as stored.
        created: time at which the output was begun, in ISO 8601.
        version: the version of kosbert-ray that began it.
    """

    config: JobConfig
    digest: str
    fingerprint: Mapping[str, Any]
    created: str
    version: str
    _content: Mapping[str, Any] = field(repr=False)

    @staticmethod
    def read(ledger: Ledger) -> JobRecord:
        """Reads the record of an output.

        Raises:
            InputError: the folder is not an output.
            StorageError: job.json is damaged.
        """
        content = ledger.job()
        if not content:
            raise InputError(f"{ledger.storage.url()}: not an output of kosbert-ray (it has no {JOB_FILE})")
        return JobRecord(
            config=stored_config(content, ledger.storage.url(JOB_FILE)),
            digest=str(content["sha256"]),
            fingerprint=content["fingerprint"],
            created=str(content.get("created", "")),
            version=str(content.get("kosbert_ray", "")),
            _content=content,
        )

    @cached_property
    def formats(self) -> tuple[VectorFormat, ...]:
        """Formats of the vectors, one per column of vectors."""
        return formats_of(self.fingerprint)

    @property
    def kept(self) -> tuple[str, ...]:
        """``name: type`` of each column beside the vectors."""
        return tuple(self.fingerprint["keep"])

    @property
    def normalized(self) -> bool:
        """True if the model normalizes its vectors to length 1."""
        return list(self.fingerprint["head"])[-1:] == ["Normalize"]

    def kept_types(self, storage: Storage, shards: Mapping[str, int]) -> pa.Schema | None:
        """Returns the types of the kept columns as the first run settled them; None if they are unknown.

        Args:
            storage: the output.
            shards: its Parquet files; version 0.1.0 stored no types, so they come from a shard.
        """
        return settled_types(self._content, storage, shards)

    def commits(self, job: JobConfig) -> dict[str, str]:
        """Returns the hub commits of the model, by repository, if ``job`` names the recorded model and revision."""
        return recorded_commits(job, self._content)

    def job_for(self, config: JobConfig) -> JobConfig:
        """Returns the job with the options of a command.

        What the vectors are comes from the record, including the prompt that the first run resolved: the default was
        another one in earlier versions. How to access stores and how to compute comes from ``config``.
        """
        encoder = config.encoder
        if encoder.precision == "auto":
            encoder = encoder.model_copy(update={"precision": self.config.encoder.precision})
            if not supports(encoder.engine, encoder.precision):
                encoder = encoder.model_copy(update={"engine": "auto"})
        model = {
            "allow_remote_code": config.model.allow_remote_code,
            "prompt": str(self.fingerprint.get("prompt", "")),
            "prompt_name": None,
        }
        return self.config.model_copy(
            update={
                "model": self.config.model.model_copy(update=model),
                "output": self.config.output.model_copy(update={"path": config.output.path}),
                "encoder": encoder,
                "storage": config.storage,
                "ray": config.ray,
            }
        )
