"""Ray itself: joining a cluster or starting a local one, and how many encoders fit on it."""

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
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.data import DataContext

from kosbert_ray.config import EncoderConfig, RayConfig
from kosbert_ray.corpus.fragments import Limits
from kosbert_ray.encoder.options import EncoderOptions, require_possible, usable_cores
from kosbert_ray.errors import JobFailed, UsageError, first_line

# Reading, tokenising and writing a slice take a few percent of the time of encoding it on a CPU. A local Ray is told of
# this many cores more than there are, so that those tasks run beside the encoders instead of waiting for them.
LOCAL_TASK_CORES = 2
NODE_SPARE_CORES = 1
CONNECT_SECONDS = 10.0
LOCAL_STARTS = 3
VERSION_LINES = 8  # of Ray's message on a version mismatch
LOG_LEVELS = {"ray": logging.ERROR, "ray.data": logging.CRITICAL}
ENCODERS_PER_NODE = 8
BYTES_PER_ENCODER = 64 * 2**10
WHOLE_SLICES_OF_A_GPU = 4  # of the default size and 768 numbers a row: 200 MB of vectors
PARTS_OF_AN_ENCODER = 8  # of the input, at the least, where its files are small: so that encoders end at the same time

_local = False  # whether the Ray in use is one that this process started


@dataclass(frozen=True)
class EncoderPool:
    """Size and shape of the actor pool: ``minimum`` to ``maximum`` actors of ``cpus`` and ``gpus`` each.

    ``local``: all of them are on this machine.
    """

    minimum: int
    maximum: int
    cpus: int
    gpus: int
    threads: int
    local: bool = True

    def bundle_limits(self, limits: Limits) -> Limits:
        """How much of slices of these limits may stay together on its way: a GPU is done with a whole one soon."""
        times = WHOLE_SLICES_OF_A_GPU if self.gpus else 1
        return Limits(times * limits.max_rows, times * limits.max_bytes)

    def bundle_input_bytes(self, input_bytes: int) -> int:
        """As much of so large an input as may stay together on its way to one encoder."""
        return input_bytes // (PARTS_OF_AN_ENCODER * self.maximum)

    def encoder_options(self, options: EncoderOptions) -> EncoderOptions:
        """The options of one of its actors; raises UsageError if they do not go together."""
        chosen = replace(options, device="cuda" if self.gpus else options.device, threads=self.threads)
        on_cpu = chosen.device == "auto" and sys.platform != "darwin"
        require_possible(replace(chosen, device="cpu") if on_cpu else chosen)
        return chosen


@contextlib.contextmanager
def joined(config: RayConfig) -> Iterator[None]:
    """Ray, for as long as the block lasts: the cluster at ``ray.address`` or ``RAY_ADDRESS``, else a local one.

    A Ray that the caller has started is used as it is and left running. Signal handlers, log levels and environment are
    the caller's again afterwards.

    Raises:
        JobFailed: there is no cluster at that address, or a local one does not start.
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
        for name, level in LOG_LEVELS.items():  # once more: Ray's start sets its own
            logging.getLogger(name).setLevel(level)
        yield


def _start(address: str, config: RayConfig) -> None:
    # Workers' warnings and Ray's banners are not the user's business; errors reach us as exceptions.
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if config.runtime_env:
        options["runtime_env"] = config.runtime_env
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        # Ray writes some of its troubles to standard output, which is for results.
        with contextlib.redirect_stdout(sys.stderr):
            if _local:
                _start_local(options)
            else:
                ray.init(address, **options)
    except SystemExit:  # Ray's handler of SIGTERM, which it puts in place early, exits without a word
        if callable(on_sigterm):
            on_sigterm(signal.SIGTERM, None)
        raise
    except Exception as error:
        raise JobFailed(f"Ray at {address} cannot be reached or started ({_reason(error)}){_hint(error)}") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)


def _start_local(options: dict[str, Any]) -> None:
    """Starts a Ray of this process's own; on a busy machine its first try may run out of time."""
    for left in reversed(range(LOCAL_STARTS)):
        try:
            ray.init("local", num_cpus=usable_cores() + LOCAL_TASK_CORES, include_dashboard=False, **options)
            return
        except Exception as error:
            if not left or "timed out" not in str(error):
                raise
            ray.shutdown()


def _reason(error: Exception) -> str:
    """Ray's own words in one line: a version mismatch has the versions in the lines below its first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:VERSION_LINES]) if "ersion mismatch" in str(error) else first_line(error)


def _hint(error: Exception) -> str:
    if isinstance(error, PermissionError) or "Permission denied" in str(error):
        return "; set RAY_TMPDIR to a folder that you may write to"
    if "home directory" in str(error):
        return "; set HOME to a folder that you may write to"
    if "ersion mismatch" in str(error):
        return "; install the cluster's versions here, or use kosbert-ray submit, which runs there"
    return "" if _local else "; if the cluster asks for a token, set RAY_AUTH_MODE=token"


def _forget() -> None:
    global _local
    _local = False


@contextlib.contextmanager
def _rays_environment() -> Iterator[None]:
    """Restores the variables that Ray sets in the process that starts it."""

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
    """Ray's loggers hushed, and what its start changes of them undone afterwards."""
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
    """Ray waits for minutes for a head that is not there; a connection tells at once."""
    if address.startswith(("http://", "https://")):
        raise UsageError(
            f"ray.address: {address} is the address of a job API; submit the job there (kosbert-ray submit --address "
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
    """Whether the Ray in use is one that :func:`joined` has started."""
    return _local


def described() -> str:
    """The cluster in use: where it is and what it has."""
    resources = ray.cluster_resources()
    nodes = sum(node["Alive"] for node in ray.nodes())
    where = "a local Ray starts" if _local else f"Ray at {ray.get_runtime_context().gcs_address} answers"
    return f"{where}: {nodes} nodes, {resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs"


def encoder_pool(config: EncoderConfig, input_bytes: int) -> EncoderPool:
    """How many encoders, from the config and what the cluster has.

    A GPU has one encoder. On CPUs it is one a core, as long as they are few: two encoders of a thread each did 9 % more
    than one of two threads (BERT-base on 2 cores), whose threads wait for each other whenever Ray needs a core. On many
    cores that would be many copies of the model, so a node has no more than eight.

    Args:
        config: what the user asks for.
        input_bytes: size of the corpus; a small one does not repay the start of many encoders.

    Raises:
        JobFailed: the config asks for GPUs, and the cluster has none and is not said to bring some.
    """
    gpus = int(ray.cluster_resources().get("GPU", 0))
    on_gpu = config.device == "cuda" or (config.device == "auto" and gpus > 0)
    if on_gpu and not gpus and (_local or config.actors is None):
        raise JobFailed(
            "encoder.device is cuda, but no node of the Ray cluster has a GPU; use encoder.device=cpu, or say how many "
            "encoders there are to be (encoder.actors=[1, 8]) where a cluster brings its GPU nodes on demand"
        )
    if on_gpu:
        cpus, threads, fit = 1, 1, gpus
    else:
        nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        # A local Ray has been told of more cores than there are; any other node keeps one for the tasks.
        spare = LOCAL_TASK_CORES if _local else NODE_SPARE_CORES
        threads = config.threads or max(1, (max(nodes) - spare) // ENCODERS_PER_NODE)
        cpus = threads if max(nodes) > spare else 0
        # A head without CPUs, as the pods and images here have it, takes no part.
        fit = sum(max(0, node - spare) // cpus for node in nodes) if cpus else 1
    fit = max(1, min(fit, 1 + input_bytes // BYTES_PER_ENCODER))
    minimum, maximum = config.actors if isinstance(config.actors, tuple) else (config.actors or fit,) * 2
    return EncoderPool(minimum, maximum, cpus, int(on_gpu), threads, _local)


@contextlib.contextmanager
def data_settings() -> Iterator[None]:
    """Ray Data's settings for a run: every row is a block of its own (a row is a slice), and it keeps quiet.

    They apply to a copy: the caller's settings are in force again afterwards.
    """
    before = DataContext.get_current()
    context = before.copy()
    context.target_max_block_size = 1
    context.target_min_block_size = 1
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True  # else an error of ours comes back without its type and its line
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
    """For a pass over rows instead of slices: blocks of the size that Ray Data would choose."""
    context = DataContext.get_current()
    before = context.target_max_block_size, context.target_min_block_size
    context.target_max_block_size, context.target_min_block_size = DataContext().target_max_block_size, 2**20
    try:
        yield
    finally:
        context.target_max_block_size, context.target_min_block_size = before
