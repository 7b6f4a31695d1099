"""A stage on several processes, data-parallel, by Ray Train: a GPU each where the cluster has any, else CPUs."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from kosbert_ray.errors import JobFailed, UsageError, described
from kosbert_ray.training.stage import StageJob, run_stage


def run_on_workers(job: StageJob, workers: int, say: Callable[[str], None]) -> None:
    """Runs a stage on ``workers`` processes; its folder must be one that all their machines see.

    Raises:
        UsageError: the cluster has fewer GPUs than workers, but some.
        JobFailed: a worker failed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Version 2 is the Ray Train that is kept up.
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    ours = not ray.is_initialized()
    if ours:
        ray.init(os.environ.get("RAY_ADDRESS") or "local", include_dashboard=False, logging_level=logging.ERROR)
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        if 0 < gpus < workers:
            raise UsageError(f"workers: {workers} asked for, but the cluster has {gpus} GPUs")
        trainer = TorchTrainer(
            _worker,
            train_loop_config={"job": job},
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus > 0),
            torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
            run_config=RunConfig(name=job.stage.name, storage_path=str((job.folder / "ray").resolve())),
        )
        say(f"{job.stage.name}: {workers} workers on {'GPUs' if gpus else 'CPUs'}")
        try:
            trainer.fit()
        except Exception as error:
            raise JobFailed(f"stage {job.stage.name}: a worker failed ({described(error)})") from error
    finally:
        if ours:
            ray.shutdown()


def _worker(config: dict[str, Any]) -> None:
    job: StageJob = config["job"]
    run_stage(job, lambda line: print(line, flush=True))
