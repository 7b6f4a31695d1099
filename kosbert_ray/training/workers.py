"""A stage on several processes, data-parallel, by Ray Train: a GPU each where the cluster has any, else CPUs."""

from __future__ import annotations

import logging
import os
from logging.handlers import QueueHandler, QueueListener
from typing import Any

import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.queue import Queue

from kosbert_ray.errors import JobFailed, UsageError, described
from kosbert_ray.logs import LOGGER
from kosbert_ray.training.stage import StageJob, run_stage

log = logging.getLogger(__name__)


def run_on_workers(job: StageJob, workers: int) -> None:
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
        # The workers' log comes through a queue; what libraries print is not shown.
        quiet: dict[str, Any] = {"include_dashboard": False, "logging_level": logging.ERROR, "log_to_driver": False}
        ray.init(os.environ.get("RAY_ADDRESS") or "local", **quiet)
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        if 0 < gpus < workers:
            raise UsageError(f"workers: {workers} asked for, but the cluster has {gpus} GPUs")
        lines = Queue(actor_options={"num_cpus": 0})
        trainer = TorchTrainer(
            _worker,
            train_loop_config={"job": job, "lines": lines},
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus > 0),
            torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
            run_config=RunConfig(name=job.stage.name, storage_path=str((job.folder / "ray").resolve())),
        )
        log.info(f"{job.stage.name}: {workers} workers on {'GPUs' if gpus else 'CPUs'}")
        listener = QueueListener(lines, _Relay())
        listener.start()
        try:
            trainer.fit()
        except Exception as error:
            raise JobFailed(f"stage {job.stage.name}: a worker failed ({described(error)})") from error
        finally:
            listener.stop()
    finally:
        if ours:
            ray.shutdown()


class _Relay(logging.Handler):
    """Logs a worker's records in this process."""

    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger(record.name).handle(record)


def _worker(config: dict[str, Any]) -> None:
    logger = logging.getLogger(LOGGER)
    logger.setLevel(logging.INFO)
    logger.handlers[:] = [QueueHandler(config["lines"])]
    logger.propagate = False
    run_stage(config["job"])
