"""Joins a Ray cluster or starts a local one, and sizes the encoder pool."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import ray
from ray.data import DataContext

from kosbert_ray.encoder.options import EncoderOptions, usable_cores
from kosbert_ray.errors import JobFailed, UsageError, first_line
from kosbert_ray.run.executors.base import EncoderPool
from kosbert_ray.run.options import RayOptions

# Reading, tokenizing and writing take a few percent of the time of encoding on a CPU. A local Ray gets this many cores more
# than the machine has, so that those tasks run beside the encoders instead of waiting for them.
LOCAL_TASK_CORES = 2
NODE_SPARE_CORES = 1
CONNECT_SECONDS = 10.0
LOCAL_STARTS = 3
VERSION_LINES = 8  # of Ray's message about a version mismatch
LOG_LEVELS = {"ray": logging.ERROR, "ray.data": logging.CRITICAL}
ENCODERS_PER_NODE = 8
BYTES_PER_ENCODER = 64 * 2**10

log = logging.getLogger(__name__)

_local = False  # whether this process started the Ray in use


@contextlib.contextmanager
def joined(config: RayOptions) -> Iterator[None]:
    """Connects to the cluster at ``ray.address`` or ``RAY_ADDRESS``, or starts a local Ray, until the block ends.

    A Ray that the caller has initialized is used and left running. Signal handlers, log levels and environment are
    restored afterwards.

    Raises:
        JobFailed: there is no cluster at that address, or a local Ray does not start.
    """
    global _local
    if ray.is_initialized():
        yield
        return
    address = config.address or os.environ.get("RAY_ADDRESS") or "local"
    _require_listener(address)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_rays_environment())
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        stack.enter_context(_quiet_logs())
        _local = address == "local"
        stack.callback(_forget)
        stack.callback(ray.shutdown)
        _start(address, config)
        for name, level in LOG_LEVELS.items():  # again, because Ray's start sets its own
            logging.getLogger(name).setLevel(level)
        yield


def _start(address: str, config: RayOptions) -> None:
    # Hide workers' warnings and Ray's banners; errors arrive as exceptions.
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if config.runtime_env:
        options["runtime_env"] = config.runtime_env
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        # Ray prints some problems to standard output, which is for results.
        with contextlib.redirect_stdout(sys.stderr):
            if _local:
                _start_local(options)
            else:
                log.info(f"connecting to Ray at {address}")
                ray.init(address, **options)
    except SystemExit:  # Ray installs its SIGTERM handler early, and it exits silently
        if callable(on_sigterm):
            on_sigterm(signal.SIGTERM, None)
        raise
    except Exception as error:
        raise JobFailed(f"Ray at {address} cannot be reached or started ({_reason(error)}){_hint(error)}") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)


def _start_local(options: dict[str, Any]) -> None:
    """Starts a local Ray; on a busy machine the first attempt may time out."""
    log.info("starting Ray on this machine")
    for left in reversed(range(LOCAL_STARTS)):
        try:
            ray.init("local", num_cpus=usable_cores() + LOCAL_TASK_CORES, include_dashboard=False, **options)
            return
        except Exception as error:
            if not left or "timed out" not in str(error):
                raise
            ray.shutdown()


def _reason(error: Exception) -> str:
    """Ray's message in one line; for a version mismatch with the lines that name the versions."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:VERSION_LINES]) if "ersion mismatch" in str(error) else first_line(error)


def _hint(error: Exception) -> str:
    if isinstance(error, PermissionError) or "Permission denied" in str(error):
        return "; set RAY_TMPDIR to a folder that you can write to"
    if "home directory" in str(error):
        return "; set HOME to a folder that you can write to"
    if "ersion mismatch" in str(error):
        return "; install the cluster's versions here, or use kosbert-ray submit, which runs on the cluster"
    return "" if _local else "; if the cluster asks for a token, set RAY_AUTH_MODE=token"


def _forget() -> None:
    global _local
    _local = False


@contextlib.contextmanager
def _rays_environment() -> Iterator[None]:
    """Restores the environment variables that Ray sets."""

    def rays() -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if name.startswith("RAY_") or name == "PYTHONBREAKPOINT"}

    before = rays()
    try:
        yield
    finally:
        for name in rays().keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextlib.contextmanager
def _quiet_logs() -> Iterator[None]:
    """Silences Ray's loggers, and restores what Ray changes in them."""
    loggers = [logging.getLogger(name) for name in LOG_LEVELS]
    before = [(logger, logger.level, logger.handlers[:], logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.setLevel(LOG_LEVELS[logger.name])
    try:
        yield
    finally:
        for logger, level, handlers, propagate in before:
            logger.setLevel(level)
            logger.handlers[:] = handlers
            logger.propagate = propagate


def _require_listener(address: str) -> None:
    """Checks the address by connecting to it; Ray would wait for minutes for a missing head."""
    if address.startswith(("http://", "https://")):
        raise UsageError(
            f"ray.address: {address} is the URL of a job API; submit the job there (kosbert-ray submit --address "
            f"{address}), or give the cluster's own address (HEAD:6379, or auto on one of its nodes)"
        )
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise JobFailed(f"Ray at {address} cannot be reached ({error.strerror or error}); check ray.address") from error


def is_local() -> bool:
    """True if :func:`joined` started the Ray in use."""
    return _local


def described() -> str:
    """Describes the cluster in use: address and resources."""
    resources = ray.cluster_resources()
    nodes = sum(node["Alive"] for node in ray.nodes())
    where = "a local Ray starts" if _local else f"Ray at {ray.get_runtime_context().gcs_address} answers"
    more = f" ({LOCAL_TASK_CORES} more than there are cores, for tasks beside the encoders)" if _local else ""
    return f"{where}: {nodes} nodes, {resources.get('CPU', 0):g} CPUs{more}, {resources.get('GPU', 0):g} GPUs"


def encoder_pool(config: EncoderOptions, input_bytes: int) -> EncoderPool:
    """Sizes the encoder pool for the config and the cluster. Unless the config sets its size, it grows with the cluster.

    Each GPU gets one encoder. On CPUs there is one per core, because threads of one encoder wait for each other whenever
    Ray needs a core; but at most eight per node, because each holds a copy of the model.

    Args:
        config: the options.
        input_bytes: size of the corpus; a small one does not repay the start of many encoders.

    Raises:
        JobFailed: the config asks for GPUs, and the cluster has none and is not expected to add any.
    """
    gpus = int(ray.cluster_resources().get("GPU", 0))
    on_gpu = config.device == "cuda" or (config.device == "auto" and gpus > 0)
    if on_gpu and not gpus and (_local or config.actors is None):
        raise JobFailed(
            "encoder.device is cuda, but no node of the Ray cluster has a GPU; use encoder.device=cpu, or set the number "
            "of encoders (encoder.actors=[1, 8]) if the cluster adds GPU nodes on demand"
        )
    if on_gpu:
        cpus, threads = 1, 1
        each = [int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]]
    else:
        nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        # A local Ray has extra cores for the tasks; any other node reserves one.
        spare = LOCAL_TASK_CORES if _local else NODE_SPARE_CORES
        threads = config.threads or max(1, (max(nodes) - spare) // ENCODERS_PER_NODE)
        cpus = threads if max(nodes) > spare else 0
        # A head without CPUs runs no encoder.
        each = [max(0, node - spare) // cpus for node in nodes] if cpus else [1]
    worthwhile = 1 + input_bytes // BYTES_PER_ENCODER
    fit = max(1, min(sum(each), worthwhile))
    if isinstance(config.actors, tuple):
        minimum, maximum = config.actors
    elif config.actors:
        minimum = maximum = config.actors
    else:
        minimum, maximum = fit, fit if _local else worthwhile
    return EncoderPool(minimum, max(minimum, maximum), cpus, int(on_gpu), threads, max(each) or maximum, _local)


@contextlib.contextmanager
def data_settings() -> Iterator[None]:
    """Configures Ray Data for a run until the block ends: one row (a slice) per block, and no output.

    The caller's settings are restored afterwards.
    """
    before = DataContext.get_current()
    context = before.copy()
    context.target_max_block_size = 1
    context.target_min_block_size = 1
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True  # otherwise a KosbertError loses its type
    context.log_internal_stack_trace_to_stdout = False
    context.execution_options.preserve_order = False
    DataContext._set_current(context)
    try:
        with _quiet_logs(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"ray\.data")
            yield
    finally:
        DataContext._set_current(before)


@contextlib.contextmanager
def row_blocks() -> Iterator[None]:
    """Uses Ray Data's own block sizes until the block ends, for rows that are not slices."""
    context = DataContext.get_current()
    before = context.target_max_block_size, context.target_min_block_size
    context.target_max_block_size, context.target_min_block_size = DataContext().target_max_block_size, 2**20
    try:
        yield
    finally:
        context.target_max_block_size, context.target_min_block_size = before
