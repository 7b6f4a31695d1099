"""Data-parallel training of a stage with Ray Train: one GPU per worker if the cluster has any, else CPUs."""

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
    """Runs a stage on ``workers`` processes. All their machines must be able to reach the stage's folder.

    Raises:
        UsageError: the cluster has GPUs, but fewer than workers.
        JobFailed: a worker failed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # V2 is the maintained version of Ray Train.
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    started_here = not ray.is_initialized()
    if started_here:
        # Workers send their log through a queue; the output of libraries is not shown.
        quiet: dict[str, Any] = {"include_dashboard": False, "logging_level": logging.ERROR, "log_to_driver": False}
        ray.init(os.environ.get("RAY_ADDRESS") or "local", **quiet)
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        if 0 < gpus < workers:
            raise UsageError(f"workers: {workers} requested, but the cluster has {gpus} GPUs; use at most {gpus}")
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
        if started_here:
            ray.shutdown()


class _Relay(logging.Handler):
    """Logs the records of workers in the driver's process."""

    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger(record.name).handle(record)


def _worker(config: dict[str, Any]) -> None:
    logger = logging.getLogger(LOGGER)
    logger.setLevel(logging.INFO)
    logger.handlers[:] = [QueueHandler(config["lines"])]
    logger.propagate = False
    run_stage(config["job"])
