"""The description of one run in ``_kosbert/runs``: what may differ from run to run of a job."""

from __future__ import annotations

import contextlib
import os
import socket
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from kosbert_ray._version import __version__
from kosbert_ray.config import JobConfig
from kosbert_ray.corpus.listing import Corpus
from kosbert_ray.model.prepare import PreparedModel
from kosbert_ray.model.source import BUNDLED_PREFIX
from kosbert_ray.storage import is_url

PACKAGES = ("ray", "torch", "transformers", "tokenizers", "pyarrow", "openvino")


def absolute(path: str) -> str:
    """A path from anywhere; an address of another kind as it is."""
    return path if is_url(path) or path.startswith(BUNDLED_PREFIX) else os.path.abspath(path)


def account(run: str, given: JobConfig, corpus: Corpus, model: PreparedModel | None) -> dict[str, Any]:
    """Describes a run as plain values.

    Args:
        run: the run's id.
        given: the options as they were given.
        corpus: the input.
        model: the model.
    """
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "run": run,
        "kosbert_ray": __version__,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "input": corpus.storage.address,
        "input_path": absolute(given.input.path),
        "reuse_path": absolute(given.reuse) if given.reuse else None,
        "model_path": os.path.abspath(given.model.name) if os.path.isdir(given.model.name) else None,
        "files": len(corpus.files),
        "failed_files": len(corpus.failed),
        "model": model.described() if model else None,
        "said": given.public(only_set=True),
        "versions": versions,
    }
